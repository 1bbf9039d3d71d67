"""Reports that the command-line programs print."""
