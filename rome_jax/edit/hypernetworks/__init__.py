"""Networks that turn gradients into edits (MEND, KE): their files, losses and training."""
