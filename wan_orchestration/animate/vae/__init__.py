"""The causal video VAE: in long chunks, over ranks by rows, and within little memory."""
