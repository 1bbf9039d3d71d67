"""The networks of MEND and KE, which turn gradients into edits: their files, edits, losses and training."""
