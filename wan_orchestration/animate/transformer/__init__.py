"""The transformer: its forward pass, attention, sharding and compiled blocks."""
