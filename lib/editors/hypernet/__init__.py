"""Editors whose shifts a trained network predicts: MALMEN, MEND."""
