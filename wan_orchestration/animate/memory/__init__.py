"""How the models fit a device: what each way to place them takes, and what makes them take less."""
