"""The figures of the library. They need matplotlib, from the extra `plot`."""
