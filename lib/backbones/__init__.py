"""Pretrained models: what they are, where they come from, how they are read and taught."""
