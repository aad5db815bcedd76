"""Pictures as cameras, phones and editors write them."""

import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pillow_heif
import pytest
from media import moving_frames
from PIL import Image, ImageCms

from wan_orchestration.errors import BadInput
from wan_orchestration.video.stills import read_image, write_poster

SIZE = (64, 48)
P3_RED, RED = (211, 76, 56), (229, 62, 44)
"""A colour in Display P3, and in sRGB."""
P3 = [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)]
"""XYZ of its primaries, relative to D50."""
SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + b"".join(
    struct.pack(">i", round(65536 * v)) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)
PQ = b"cicp\0\0\0\0\x09\x10\0\1"
PQ_WHITE = 38060
"""Signal of 203 cd/m², of 65535."""


@pytest.fixture(scope="session", autouse=True)
def heif() -> None:
    pillow_heif.register_heif_opener()


def flat(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, SIZE, colour if colour[1:] else colour[0])


def profile(tags: dict[bytes, bytes], space: bytes = b"RGB ", pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {**tags, b"wtpt": b"XYZ \0\0\0\0" + white}
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = struct.pack(">I", start + len(data))
    head = size + bytes(4) + b"\4\x30\0\0" + kind + space + pcs + bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def display_p3(curve: bytes = SRGB_CURVE, **more: bytes) -> bytes:
    points = {n: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in p)) for n, p in zip("rgb", P3)}
    colourants = {f"{name}XYZ".encode(): point for name, point in points.items()}
    extra = {name.encode(): content for name, content in more.items()}
    return profile({**colourants, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve, **extra})


def linear_grey() -> bytes:
    return profile({b"kTRC": b"para\0\0\0\0\0\0\0\0" + struct.pack(">i", 65536)}, b"GRAY")


def inks() -> bytes:
    """A printer's profile: paper is white, and full cyan is one blue, regardless of the other inks."""
    lab = np.array([[255, 128, 128], [100, 120, 60]], np.uint8)
    grid = b"".join(lab[cyan].tobytes() * 8 for cyan in (0, 1))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    return profile({b"A2B0": table}, b"CMYK", b"Lab ", b"prtr")


def png(path: Path, samples: np.ndarray, kind: int, *chunks: tuple[bytes, bytes]) -> None:
    """16 bits per sample. Kind 0 is grey, 2 RGB, 4 grey and alpha."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    )


def deep(value: int | tuple[int, ...]) -> np.ndarray:
    return np.full((SIZE[1], SIZE[0], len(value)) if isinstance(value, tuple) else SIZE[::-1], value, np.uint16)


def avif(path: Path, colour: tuple[int, ...], primaries: str, transfer: str) -> None:
    """10 bits. Pillow cannot write code points."""
    flat(colour).save(path.with_suffix(".source.png"))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path.with_suffix(".source.png"))]
    filters = f"format=gbrp10le,setparams=color_primaries={primaries}:color_trc={transfer}:colorspace=gbr"
    codec = ["-c:v", "libaom-av1", "-aom-params", "lossless=1", "-cpu-used", "8", "-still-picture", "1"]
    subprocess.run([*command, "-vf", filters, *codec, str(path)], check=True)


def heic(path: Path, colour: tuple[int, ...], primaries: int, transfer: int) -> None:
    """10 bits."""
    codes = {"color_primaries": primaries, "transfer_characteristics": transfer, "matrix_coefficients": 1}
    pillow_heif.encode("RGB;16", SIZE, deep(colour).tobytes(), path, quality=100, chroma=444, **codes)


def animation(path: Path) -> None:
    flat((9, 99, 199)).save(path, save_all=True, append_images=[flat((255, 0, 0))], duration=100, lossless=True)


def palette(path: Path, **options: object) -> None:
    picture = flat((0,), "P")
    picture.putpalette([10, 120, 230, 255, 0, 0])
    picture.save(path, **options)


HLG_WHITE = 49151
"""75 % of the signal is 203 cd/m²."""

# The kind of file, the function that writes it, the expected colour.
KINDS: list[tuple[str, Callable[[Path], object], tuple[int, ...]]] = [
    ("grey16.png", lambda p: png(p, deep(30000), 0), (117,) * 3),
    ("grey16_clear.png", lambda p: png(p, deep(30000), 0, (b"tRNS", struct.pack(">H", 30000))), (255,) * 3),
    ("grey_alpha16.png", lambda p: png(p, deep((0, 32896)), 4), (127,) * 3),
    ("rgb16.png", lambda p: png(p, deep((2570, 30840, 59110)), 2), (10, 120, 230)),
    ("grey16.tif", lambda p: Image.fromarray(deep(30000)).save(p), (117,) * 3),
    ("grey16_big_endian.tif", lambda p: flat((30000,), "I;16B").save(p), (117,) * 3),
    ("rgb16.tiff", lambda p: cv2.imwrite(str(p), deep((59110, 30840, 2570))), (10, 120, 230)),
    ("cmyk.jpg", lambda p: flat((255, 0, 0, 0), "CMYK").save(p, quality=100), (0, 255, 255)),
    ("cmyk.tif", lambda p: flat((0, 0, 255, 0), "CMYK").save(p), (255, 255, 0)),
    ("cmyk_profile.jpg", lambda p: flat((255, 0, 0, 0), "CMYK").save(p, icc_profile=inks()), (0, 101, 205)),
    ("cmyk_paper.jpg", lambda p: flat((0, 99, 0, 0), "CMYK").save(p, icc_profile=inks()), (255,) * 3),
    ("palette.png", palette, (10, 120, 230)),
    ("palette_clear.png", lambda p: palette(p, transparency=0), (255,) * 3),
    ("palette_half_clear.png", lambda p: palette(p, transparency=b"\x80\xff"), (132, 187, 242)),
    ("palette.gif", lambda p: palette(p, transparency=0), (255,) * 3),
    ("one_bit.bmp", lambda p: flat((1,), "1").save(p), (255,) * 3),
    ("grey_alpha.png", lambda p: flat((0, 128), "LA").save(p), (127,) * 3),
    ("p3.jpg", lambda p: flat(P3_RED).save(p, quality=100, icc_profile=display_p3()), RED),
    ("p3_alpha.webp", lambda p: flat((*P3_RED, 255), "RGBA").save(p, lossless=True, icc_profile=display_p3()), RED),
    ("p3.tif", lambda p: flat(P3_RED).save(p, icc_profile=display_p3()), RED),
    ("p3.avif", lambda p: flat(P3_RED).save(p, quality=100, subsampling="4:4:4", icc_profile=display_p3()), RED),
    ("p3.heic", lambda p: flat(P3_RED).save(p, quality=100, chroma=444, icc_profile=display_p3()), RED),
    ("grey_in_p3.jpg", lambda p: flat((99,), "L").save(p, quality=100, icc_profile=display_p3()), (99,) * 3),
    ("linear_grey.png", lambda p: flat((55,), "L").save(p, icc_profile=linear_grey()), (128,) * 3),
    ("broken_profile.png", lambda p: flat((9, 99, 199)).save(p, icc_profile=b"\0" * 200), (9, 99, 199)),
    ("other_profile.png", lambda p: flat((9, 99, 199)).save(p, icc_profile=inks()), (9, 99, 199)),
    ("cicp_p3.png", lambda p: png(p, deep((54227, 19532, 14392)), 2, (b"cICP", b"\x0c\x0d\0\1")), RED),
    ("cicp_pq.png", lambda p: png(p, deep((PQ_WHITE,) * 3), 2, (b"cICP", b"\x09\x10\0\1")), (223,) * 3),
    ("profile_pq.png", lambda p: flat((148,) * 3).save(p, icc_profile=display_p3(cicp=PQ)), (223,) * 3),
    ("linear_gama.png", lambda p: png(p, deep(55 * 257), 0, (b"gAMA", struct.pack(">I", 100000))), (128,) * 3),
    ("nclx_p3.heic", lambda p: heic(p, (54227, 19532, 14392), 12, 13), RED),
    ("nclx_pq.heic", lambda p: heic(p, (PQ_WHITE,) * 3, 9, 16), (223,) * 3),
    ("nclx_hlg.heic", lambda p: heic(p, (HLG_WHITE,) * 3, 9, 18), (223,) * 3),
    ("nclx_p3.avif", lambda p: avif(p, P3_RED, "smpte432", "iec61966-2-1"), RED),
    ("nclx_pq.avif", lambda p: avif(p, (148,) * 3, "bt2020", "smpte2084"), (223,) * 3),
    ("animation.gif", lambda p: animation(p), (9, 99, 199)),
    ("animation.webp", lambda p: animation(p), (9, 99, 199)),
    ("animation.png", lambda p: animation(p), (9, 99, 199)),
    ("pages.tiff", lambda p: animation(p), (9, 99, 199)),
]


@pytest.mark.parametrize(("name", "write", "expected"), KINDS, ids=[kind[0] for kind in KINDS])
def test_colours(tmp_path: Path, name: str, write: Callable[[Path], object], expected: tuple[int, ...]) -> None:
    write(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (SIZE[1], SIZE[0], 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 2, image[0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif", "heic"])
def test_pictures_are_turned_once(tmp_path: Path, suffix: str) -> None:
    """HEIC and AVIF files give the orientation twice: in the container and in EXIF data."""
    corner = np.zeros((96, 64, 3), np.uint8)
    corner[:32, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(corner).save(path, exif=exif.tobytes())
    if suffix == "heic":
        assert b"irot" in path.read_bytes()
    image = read_image(path)
    assert image.shape == (64, 96, 3)
    assert [image[y, x, 0] > 128 for y in (5, -5) for x in (5, -5)] == [False, True, False, False]


def test_data_beside_the_picture(tmp_path: Path) -> None:
    flat((9, 99, 199)).save(tmp_path / "exif.jpg", quality=100, exif=b"Exif\0\0rubbish")
    assert np.abs(read_image(tmp_path / "exif.jpg") - np.array([9, 99, 199])).max() <= 2
    # A gain map follows the picture for standard displays, as the second picture of an MPO.
    gain = flat((255,), "L").resize((32, 24))
    flat((9, 99, 199)).save(tmp_path / "gain.jpg", "MPO", save_all=True, append_images=[gain], quality=100)
    assert np.abs(read_image(tmp_path / "gain.jpg") - np.array([9, 99, 199])).max() <= 2
    flat((9, 99, 199)).save(tmp_path / "really_a_jpeg.png", "JPEG")
    assert read_image(tmp_path / "really_a_jpeg.png").shape == (48, 64, 3)
    # A profile that equals sRGB under another name changes nothing.
    picture = moving_frames(1, *SIZE)[0]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert (read_image(tmp_path / "srgb.png") == picture).all()


def test_real_pictures(shared: Path) -> None:
    grey = read_image(shared / "field" / "picture_16_bit_grey" / "reference.png")
    assert (grey[3, 3] == 224).all() and 0 < (grey == 255).mean() < 0.1
    p3 = read_image(shared / "field" / "picture_display_p3" / "reference.png")
    assert np.abs(p3[3, 3] - np.array([230, 60, 39])).max() <= 2


def test_bad_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_image(tmp_path / "none.png")
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"cut\.png: found a PNG picture that is damaged or .* \(image file is"):
        read_image(path)
    path.write_text("hello")
    with pytest.raises(BadInput, match=r"cut\.png: found a text, expected a picture \(png, jpg, "):
        read_image(path)
    Image.new("1", (20000, 6000)).save(path, compress_level=1)
    with pytest.raises(BadInput, match="20000x6000 pixels; at most 100 million"):
        read_image(path)
    Image.new("1", (20000, 9000)).save(path, compress_level=1)
    with pytest.raises(BadInput):
        read_image(path)
    flat((9,), "F").save(tmp_path / "light.tif")
    with pytest.raises(BadInput, match=r"light\.tif: found 32 bits per sample"):
        read_image(tmp_path / "light.tif")
    for suffix in ("heic", "avif", "jpg"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(moving_frames(1, 480, 640)[0]).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BadInput, match=rf"cut\.{suffix}: found an? \w+ picture that is damaged"):
            read_image(path)


def test_poster(tmp_path: Path) -> None:
    frame = moving_frames(1, 48, 64)[0]
    write_poster(tmp_path / "poster.jpg", frame)
    assert np.abs(read_image(tmp_path / "poster.jpg").astype(int) - frame).mean() < 3
