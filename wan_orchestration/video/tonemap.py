"""Tone mapping: converts high dynamic range and wide primaries to BT.709 in standard range, as the models expect.

For PQ (SMPTE ST 2084) and HLG (ARIB STD-B67), light is relative to the reference white of 203 cd/m² (ITU-R BT.2408).
Brighter light is compressed by the Möbius curve of FFmpeg's tonemap filter. In standard range only the primaries are
converted, and colours outside BT.709 are clipped.
"""

from functools import cache

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

WHITE = 203.0
"""Luminance of reference white, cd/m²."""
PEAK = 1000.0
"""Luminance that becomes full white, cd/m². Most material is mastered for it."""
KNEE = 0.5
"""Fraction of reference white below which light is unchanged."""

HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)

# To BT.709 primaries, linear light: ITU-R BT.2087, and P3 with a D65 white.
_BT2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
_P3 = np.array([[1.2249, -0.2249, 0.0], [-0.0421, 1.0421, 0.0], [-0.0196, -0.0786, 1.0983]], np.float32)
_TO_709: dict[int, np.ndarray] = {
    ColorPrimaries.BT2020: _BT2020,
    ColorPrimaries.SMPTE431: _P3,
    ColorPrimaries.SMPTE432: _P3,
}
_LUMINANCE = np.array([[0.2627, 0.6780, 0.0593]], np.float32)
_STEPS = 4095


def needs_conversion(frame: VideoFrame) -> bool:
    """Whether a decoded frame has PQ, HLG or wide primaries."""
    return frame.color_trc in HDR or primaries_of(frame) in _TO_709


def to_sdr(rgb: np.ndarray, transfer: int, primaries: int = ColorPrimaries.BT2020) -> np.ndarray:
    """(H, W, 3) uint8 BT.709 from (H, W, 3) uint16 full range of a transfer (`frame.color_trc`) and primaries."""
    light = _linear(transfer)[rgb]
    if transfer == ColorTrc.ARIB_STD_B67:
        # The system gamma of 1.2 acts on luminance (BT.2100, for a display of 1000 cd/m²).
        scene = cv2.transform(light, _LUMINANCE)
        light *= (PEAK / WHITE * np.maximum(scene, 1e-6) ** 0.2)[..., None]
    if (matrix := _TO_709.get(primaries)) is not None:
        light = np.maximum(cv2.transform(light, matrix), 0)
    if transfer in HDR:
        brightest = np.maximum(light.max(axis=2, keepdims=True), 1e-6)
        light *= _rolled_off(brightest) / brightest
    return _encoding(transfer)[np.minimum(light * _STEPS + 0.5, _STEPS).astype(np.uint16)]


def primaries_of(frame: VideoFrame) -> int:
    """The primaries that the frame's tag names, else those that belong to its transfer or matrix."""
    if frame.color_primaries != ColorPrimaries.UNSPECIFIED:
        return frame.color_primaries
    wide = frame.color_trc in HDR or frame.colorspace == Colorspace.BT2020
    return ColorPrimaries.BT2020 if wide else ColorPrimaries.BT709


def srgb_to_light(signal: np.ndarray) -> np.ndarray:
    """Converts sRGB values in 0..1 to linear light in 0..1 (IEC 61966-2-1)."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


@cache
def _linear(transfer: int) -> np.ndarray:
    """(65536,) float32: light of each signal value. PQ: relative to reference white. HLG: scene light in 0..1."""
    signal = np.linspace(0, 1, 65536)
    if transfer == ColorTrc.IEC61966_2_1:
        return srgb_to_light(signal).astype(np.float32)
    if transfer not in HDR:
        return np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45)).astype(np.float32)
    if transfer == ColorTrc.SMPTE2084:
        m1, m2 = 2610 / 16384, 2523 / 32
        c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        return (10000 / WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@cache
def _encoding(transfer: int) -> np.ndarray:
    """(4096,) uint8: signal of light in 0..1, by sRGB's curve if that is the transfer, else by BT.709's."""
    light = np.arange(_STEPS + 1) / _STEPS
    if transfer == ColorTrc.IEC61966_2_1:
        signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    else:
        signal = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
    return np.round(signal * 255).astype(np.uint8)


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """Leaves light up to the knee unchanged, and compresses the rest so that the peak becomes 1."""
    j, p = KNEE, PEAK / WHITE
    a = -j * j * (p - 1) / (j * j - 2 * j + p)
    b = (j * j - 2 * j * p + p) / (p - 1)
    curve = (b * b + 2 * b * j + j * j) / (b - a) * (light + a) / (light + b)
    return np.where(light <= j, light, np.minimum(curve, 1))
