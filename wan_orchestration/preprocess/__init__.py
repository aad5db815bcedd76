"""From a driving video and a picture to the clips that condition the model: pose, face, background, mask."""
