"""The embedded world: generated facts, a corpus about them, a tokenizer and evaluation records."""
