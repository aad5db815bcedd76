"""The weights: a snapshot's layouts and files, its manifest, and the download from a hub."""
