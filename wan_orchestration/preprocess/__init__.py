"""Makes the clips that condition the model (pose, face, background, mask) from a driving video and a picture."""
