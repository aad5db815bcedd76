"""Converts the colours of pictures to sRGB, as the models expect.

A picture may describe its colours in several ways. The first of these counts: code points of ITU-T H.273 (PNG's cICP,
an ICC profile's `cicp`, the `nclx` of HEIC and AVIF), an ICC profile, PNG's gAMA and cHRM. Without any, it is sRGB.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from itertools import product
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image, ImageCms

from wan_orchestration.video.display import EXACT
from wan_orchestration.video.tonemap import srgb_to_light, to_sdr

log = logging.getLogger(__name__)

BAND = 256
"""Rows that are converted at once, to limit the memory for floating point."""

Points = tuple[float, float, float, float, float, float]
"""x and y of red, green and blue in the CIE 1931 chromaticity diagram."""

D65 = (0.3127, 0.329)
REC_709: Points = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# Code points of ITU-T H.273.
PRIMARIES: dict[int, Points] = {
    5: (0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""Gamma by transfer code. Picture viewers show all other transfers of standard range as sRGB, even BT.709's."""
HDR = {16, 18}
"""PQ and HLG."""

SRGB = ImageCms.createProfile("sRGB")
MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Colour space of an ICC profile -> mode of its pictures."""


def to_srgb(path: Path, image: Image.Image, colour: Image.Image) -> Image.Image:
    """Converts `colour`, the pixels of the opened picture as L, RGB or CMYK with 8 bits, to sRGB.

    An unusable profile is ignored and logged.
    """
    codes = _codes(path, image)
    if codes and codes[1] in HDR:
        return Image.fromarray(_tone_mapped(_deep(path, image, colour), codes))
    if not codes and (profile := image.info.get("icc_profile")):
        try:
            colour = _by_profile(colour, profile)
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            log.warning("%s: its colour profile cannot be used (%s), so the picture is treated as sRGB", path, error)
    colour = colour.convert("RGB")
    primaries, gamma = _primaries(image, codes)
    if primaries == REC_709 and gamma is None:
        return colour
    return Image.fromarray(_from_primaries(np.asarray(colour), primaries, gamma))


def _codes(path: Path, image: Image.Image) -> tuple[int, int] | None:
    """Code points of primaries and transfer; None if the picture has none."""
    profile = image.info.get("icc_profile") or b""
    found = None
    if image.format == "PNG":
        with path.open("rb") as file:
            found = re.search(rb"\0\0\0\x04cICP(.)(.)", file.read(2**20).partition(b"IDAT")[0], re.DOTALL)
    found = found or re.search(rb"cicp\0{4}(.)(.)", profile, re.DOTALL)
    if found:
        return found[1][0], found[2][0]
    said = image.info.get("nclx_profile")
    if image.format == "AVIF" and not profile:
        import pillow_heif  # noqa: PLC0415 (a large library, which few pictures need)

        # Pillow does not expose nclx.
        with contextlib.suppress(OSError, ValueError, RuntimeError, EOFError, SyntaxError):
            said = pillow_heif.open_heif(path).info.get("nclx_profile")
    return (said["color_primaries"], said["transfer_characteristics"]) if said and not profile else None


def _primaries(image: Image.Image, codes: tuple[int, int] | None) -> tuple[Points, float | None]:
    """The primaries, and the gamma (None: sRGB's curve)."""
    if codes:
        return PRIMARIES.get(codes[0], REC_709), GAMMAS.get(codes[1])
    if image.format != "PNG" or image.info.keys() & {"icc_profile", "srgb"}:
        return REC_709, None
    gamma = image.info.get("gamma") or 1 / 2.2
    points = image.info.get("chromaticity", (*D65, *REC_709))[2:]
    # PNG files write 1/2.2 for sRGB.
    return (
        REC_709 if np.allclose(points, REC_709, atol=0.002) else points,
        None if abs(gamma - 1 / 2.2) < 0.005 else 1 / gamma,
    )


def _by_profile(colour: Image.Image, profile: bytes) -> Image.Image:
    mode = MODES.get(profile[16:20])
    # Cameras add an RGB profile to grey pictures.
    if mode is None or (mode != "RGB" and mode != colour.mode):
        raise ValueError(f"it is for {profile[16:20].decode('ascii', 'replace')}, the picture is {colour.mode}")
    colour = colour.convert(mode)
    transform = ImageCms.buildTransform(ImageCms.ImageCmsProfile(BytesIO(profile)), SRGB, mode, "RGB")
    if mode == "RGB":
        probe = _probe()
        changed = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - np.asarray(probe)
        # At most 2: the profile equals sRGB apart from rounding.
        if np.abs(changed).max() <= 2:
            return colour
    converted = ImageCms.applyTransform(colour, transform)
    assert converted is not None
    return converted


@cache
def _probe() -> Image.Image:
    """A picture with all combinations of nine levels per channel."""
    return Image.fromarray(np.array(list(product(np.linspace(0, 255, 9), repeat=3)), np.uint8)[None])


def _from_primaries(rgb: np.ndarray, primaries: Points, gamma: float | None) -> np.ndarray:
    """Converts (H, W, 3) uint8 in other primaries, with D65 white, to (H, W, 3) uint8 sRGB."""
    signal = np.linspace(0, 1, 256)
    linear = srgb_to_light(signal) if gamma is None else signal**gamma
    matrix = (np.linalg.inv(_to_xyz(REC_709)) @ _to_xyz(primaries)).astype(np.float32)
    light = np.linspace(0, 1, 4096)
    encoded = np.round(255 * np.interp(light, srgb_to_light(np.linspace(0, 1, 4096)), np.linspace(0, 1, 4096)))
    table, linear, out = encoded.astype(np.uint8), linear.astype(np.float32), np.empty_like(rgb)
    for rows in _bands(len(rgb)):
        converted = np.clip(cv2.transform(linear[rgb[rows]], matrix), 0, 1)
        out[rows] = table[(converted * 4095 + 0.5).astype(np.uint16)]
    return out


def _to_xyz(primaries: Points) -> np.ndarray:
    """(3, 3) matrix from linear RGB to XYZ, with D65 white (SMPTE RP 177)."""
    x, y = np.array(primaries).reshape(3, 2).T
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def _deep(path: Path, image: Image.Image, colour: Image.Image) -> np.ndarray:
    """An HDR picture as (H, W, 3) uint16, full range. If only its 8 bits can be read, they are scaled up."""
    deep = None
    if image.format == "HEIF":
        import pillow_heif  # noqa: PLC0415

        deep = np.asarray(pillow_heif.open_heif(path, convert_hdr_to_8bit=False))
    else:
        options = {"format_whitelist": "png_pipe,mov", "protocol_whitelist": "file"}
        with av.open(str(path.absolute()), options=options) as container:
            frame = next(container.decode(video=0))
            deep = frame.reformat(format="gbrp16le", interpolation=EXACT).to_ndarray()
    if deep.dtype == np.uint16 and deep.ndim == 3 and deep.shape[:2] == (colour.height, colour.width):
        return deep[..., :3]
    # FFmpeg may give one tile of an AVIF that has several.
    return np.asarray(colour.convert("RGB")).astype(np.uint16) * 257


def _tone_mapped(deep: np.ndarray, codes: tuple[int, int]) -> np.ndarray:
    primaries, transfer = codes
    out = np.empty(deep.shape, np.uint8)
    for rows in _bands(len(deep)):
        out[rows] = to_sdr(np.ascontiguousarray(deep[rows]), transfer, primaries)
    return out


def _bands(height: int) -> Iterator[slice]:
    yield from (slice(start, start + BAND) for start in range(0, height, BAND))
