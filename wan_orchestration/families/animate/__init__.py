"""Wan2.2-Animate: a character performs the motion of a skeleton and a face, or replaces a person."""
