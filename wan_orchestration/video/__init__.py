"""Video files in and out: frames by index, lossless clips, segments joined into one mp4.

Frames are RGB everywhere. Nothing here holds more than the frames that were asked for.
"""
