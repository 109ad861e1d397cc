"""Facts to edit: records, streams, training facts, datasets by name."""
