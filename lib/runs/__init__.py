"""Runs: planned, done, resumed, stored, read back."""
