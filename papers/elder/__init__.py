"""ELDER (Li et al., AAAI 2025)."""
