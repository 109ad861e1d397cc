"""Editors by keys and gradients: with a trained network MALMEN, MEND, RLEdit, without UltraEdit."""
