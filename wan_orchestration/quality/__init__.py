"""How good clips and videos are, in numbers. Which numbers are good enough is for Dagster's checks to say.

Everything is measured in one pass over the frames, of which only small copies are kept, and few.
"""
