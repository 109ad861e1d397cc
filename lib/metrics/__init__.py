"""Pure numbers: scores, perplexities, intervals, rankings, costs; no model, no file."""
