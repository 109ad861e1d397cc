"""Figures: one look, shared parts, files."""
