import subprocess

import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from imageio_ffmpeg import get_ffmpeg_exe

from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.tonemap import to_sdr


def pq(light: float) -> int:
    """The PQ code of light in cd/m², 16 bits: SMPTE ST 2084."""
    y = (light / 10000) ** (2610 / 16384)
    return round(65535 * ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32))


def test_light_keeps_its_order_and_white_stays_gray():
    codes = np.array([[[pq(light)] * 3 for light in (0.01, 1, 20, 100, 203, 500, 1000, 4000)]], np.uint16)
    made = to_sdr(codes, ColorTrc.SMPTE2084)[0].astype(int)
    assert (np.ptp(made, axis=1) <= 1).all()
    assert (np.diff(made[:, 0]) >= 0).all() and made[0, 0] < 3 and made[-1, 0] == 255
    # Below the knee only the encoding changes: 100 cd/m² are 0.49 of white.
    assert made[3, 0] == pytest.approx(255 * (1.099 * (100 / 203) ** 0.45 - 0.099), abs=1)


def test_hybrid_log_gamma_white_is_bright_and_not_clipped():
    codes = np.full((1, 1, 3), round(0.75 * 65535), np.uint16)
    assert 200 < to_sdr(codes, ColorTrc.ARIB_STD_B67).max() < 250


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_a_10_bit_video_keeps_its_colours(tmp_path, transfer):
    path = tmp_path / "hdr.mp4"
    chain = (
        "format=yuv444p10le,setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709,"
        f"zscale=t=linear:npl=203,format=gbrpf32le,zscale=t={transfer}:p=bt2020:m=bt2020nc:r=tv,format=yuv420p10le"
    )
    command = [
        *(get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "smptebars=s=224x128:d=0.2:r=10", "-vf", chain),
        *("-c:v", "libx265", "-x265-params", "log-level=error", "-color_primaries", "bt2020"),
        *("-color_trc", transfer, "-colorspace", "bt2020nc", str(path)),
    ]
    subprocess.run(command, check=True, timeout=60)
    with FrameReader(path) as reader:
        bars = reader.read([0])[0][40, 16::32].astype(int)
    # White, yellow, cyan, green, magenta, red, blue at three quarters.
    lit = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1]], bool)
    assert bars[lit].min() > 90 and bars[~lit].max() < 60
