"""The weights: a snapshot's layouts and files, and the hub that it is downloaded from."""
