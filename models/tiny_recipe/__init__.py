"""The recipe of the tiny target and drafter pairs: text, tokenizer, targets, drafters, measurement."""
