"""MELO (Yu et al., AAAI 2024)."""
