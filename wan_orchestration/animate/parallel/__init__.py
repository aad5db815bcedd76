"""Ranks that make one video together."""
