"""The invented world of the factworld models: facts, texts about them, and evaluation records."""
