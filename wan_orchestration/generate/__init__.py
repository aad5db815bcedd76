"""One launch: loads the models once and generates videos, segment by segment."""
