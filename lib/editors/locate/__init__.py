"""Editors that find keys and solve for weights: ROME, WilKE, MEMIT, COMEBA-HK."""
