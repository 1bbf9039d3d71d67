"""The training of the two small models that come with the package."""
