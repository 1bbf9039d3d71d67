"""The steps that methods share."""
