"""The causal video VAE: fast in long chunks, split over ranks by rows, and with little memory in bands."""
