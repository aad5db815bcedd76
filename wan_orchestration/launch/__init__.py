"""Starts the engine in processes of its own, and sees to it that they end."""
