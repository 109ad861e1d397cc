"""Forward passes: hooks, the frozen prefix, logits at labels, decoding."""
