"""How the models fit a device: the memory that each placement needs, and what reduces it."""
