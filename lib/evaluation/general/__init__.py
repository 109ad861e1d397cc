"""General ability: embedded tasks as rows, published ones by lm-eval."""
