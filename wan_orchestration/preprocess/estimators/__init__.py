"""Finding people and their keypoints: one interface, three ways (ViTPose, light, from a file)."""
