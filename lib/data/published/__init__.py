"""Datasets in their published files, from a local folder or the hub."""
