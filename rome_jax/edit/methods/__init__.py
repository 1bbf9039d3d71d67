"""The editing methods, one module each."""
