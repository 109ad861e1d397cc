"""The default data, from packages alone."""
