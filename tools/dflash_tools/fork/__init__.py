"""Get the pinned llama.cpp, put the patch series on it, build it, and prove that the result runs."""
