"""Character animation with Wan2.2-Animate and Wan-Animate-2, orchestrated as Dagster assets."""
