"""Measures of clips and videos. Dagster's checks decide which values are good enough.

One pass over each video measures everything. Only a few frames are kept in memory.
"""
