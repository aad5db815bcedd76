"""Estimators, which find people and their keypoints: one interface, three implementations (ViTPose, light, file)."""
