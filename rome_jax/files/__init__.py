"""Files: downloads and the cache, whole-file writing, safetensors."""
