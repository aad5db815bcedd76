"""Wan-Animate-2: a character performs the motion of a driving video, which the model sees as it is."""
