"""The commands of `wan-animate`."""
