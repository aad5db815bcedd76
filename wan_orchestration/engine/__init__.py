"""The engine: computes videos with model classes of diffusers and transformers. It knows no job, message or
video file."""
