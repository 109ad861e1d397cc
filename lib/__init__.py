"""A reproducibility study of model editing: editors, protocols, metrics, and the papers' tables."""

__version__ = "0.5.0"
