"""The layouts in which snapshots come."""
