"""The engine: computes Wan2.2-Animate with model classes of diffusers and transformers. It knows no job, message or
video file."""
