"""Several ranks that make one video together."""
