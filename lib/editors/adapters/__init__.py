"""Editors that add low-rank adapters behind a gate: MELO, ELDER, LoRA."""
