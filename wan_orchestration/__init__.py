"""Character animation with Wan2.2-Animate-14B, orchestrated as Dagster assets."""
