"""Starts the worker in processes of its own, on this machine or on a Slurm cluster, and ends them."""
