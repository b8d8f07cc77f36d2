"""Tools around the llama.cpp fork: build it, run it, measure it, explain it."""
