"""Claims: sentences with a test on reproduced numbers, and their verdicts."""
