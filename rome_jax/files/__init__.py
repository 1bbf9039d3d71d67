"""Files: downloads and the cache, atomic writing, safetensors, optional packages, progress bars."""
