"""Convert Hugging Face DFlash and EAGLE3 drafters to the GGUF dialects that llama.cpp reads."""
