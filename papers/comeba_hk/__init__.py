"""COMEBA-HK, published as CoachHooK (EMNLP 2024)."""
