"""All editors on one stream of facts."""
