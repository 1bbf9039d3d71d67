"""What is drawn; needs matplotlib, from the extra `plot`."""
