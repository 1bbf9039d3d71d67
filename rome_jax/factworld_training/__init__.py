"""The training of the two small models that come with the package, and the report on what they know."""
