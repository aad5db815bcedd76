"""The two layouts of snapshots, and how their tensors get into the model classes."""
