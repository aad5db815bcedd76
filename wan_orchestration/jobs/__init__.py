"""A job: its folder, its inputs, its clips."""
