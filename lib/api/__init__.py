"""The public face: models, facts, edits and comparisons of one's own; `import lib` offers it."""
