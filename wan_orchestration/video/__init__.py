"""Video files: reading frames by index, writing segments and lossless clips, joining segments into one mp4.

Frames are RGB everywhere. Only requested frames are kept in memory.
"""
