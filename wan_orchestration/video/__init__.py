"""Video files in and out: frames by index, lossless clips, segments joined into one mp4.

Frames are RGB everywhere. Nothing here holds more than the frames that were asked for.
"""

from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import FrameReader, VideoInfo, iter_frames, pingpong, probe
from wan_orchestration.video.sound import Sound, find_sound
from wan_orchestration.video.stills import read_image, write_poster
from wan_orchestration.video.writer import write_lossless, write_segment

__all__ = [
    "FrameReader",
    "Sound",
    "VideoInfo",
    "concatenate",
    "find_sound",
    "iter_frames",
    "pingpong",
    "probe",
    "read_image",
    "write_lossless",
    "write_poster",
    "write_segment",
]
