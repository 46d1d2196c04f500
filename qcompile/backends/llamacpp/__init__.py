"""GGUF: one file with the weights, the sizes and the tokenizer of a language model, as llama.cpp loads it."""
