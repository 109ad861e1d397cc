"""Editors that keep edits beside the model: GRACE, Defer, SERAC, T-Patcher."""
