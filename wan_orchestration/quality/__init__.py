"""Measures of clips and videos. Dagster's checks decide which values are good enough.

One pass over the frames measures everything. Only a few small copies of frames are kept.
"""
