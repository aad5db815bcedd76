"""The Animate transformer: its attention and blocks, compiled, or sharded over ranks."""
