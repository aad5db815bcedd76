"""The engine: what Wan2.2-Animate computes, on diffusers and transformers model classes. No Dagster here."""
