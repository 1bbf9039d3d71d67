"""Memory, work, and time of each job, counted from the shapes of a model without loading its weights."""
