"""Model families: a folder for each, with everything that only it does. `choose.py` alone tells families apart."""
