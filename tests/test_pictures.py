"""The door for pictures: what it opens, what it refuses, and that there is no other."""

from __future__ import annotations

import ast
import io
import os
import re
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atm_export import pictures
from atm_export.bounds import MAX_THREADS
from atm_export.errors import DataError, ImageSizeError
from atm_export.inputs import InputSpec, Preprocessing
from atm_export.measure.data.decode import decode
from atm_export.measure.data.readers import FileReader
from atm_export.pictures import as_rgb, check_size, read_rgb
from atm_export.preprocess import crop, read_image
from atm_export.runtime.pictures import batch_of, decoded

ROOT = Path(__file__).resolve().parents[1]
HOW = Preprocessing((48, 48), 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3)
SPEC = InputSpec(HOW)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A small file of any size: all its pixels are black, and the last ones are left out."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"\0" * min(10**5, (1 + (width * depth + 7) // 8) * height))
    body = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def grey(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 80), dtype=np.uint8)


def colours() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels // 64 * 64)  # 64 colours: a palette holds them


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16000, 1), "too long and thin"),
        ((65000, 1), "too long and thin"),
        ((1, 65000), "too long and thin"),
        ((33, 1), "too long and thin"),
        ((8193, 8192), "67108864 in all at most"),
        ((12000, 12000), "more than 67108864 pixels"),
        ((65000, 65000), "more than 67108864 pixels"),
        ((2**31 - 1, 2**31 - 1), "more than 67108864 pixels"),
    ],
)
def test_pictures_beyond_the_limits_are_refused_from_their_headers(
    size: tuple[int, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = png(*size), tmp_path / "long.png"
    path.write_bytes(data)
    assert len(data) < 400

    def load(*_: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageSizeError, match=message):
        decoded(data, HOW)
    with pytest.raises(ImageSizeError, match=rf"long\.png.*{message}"):
        batch_of(path, SPEC)
    found = decode(FileReader(path.parent, (path,)), HOW, [0])
    assert not found.kept and re.search(message, found.unreadable[0][1])


def test_the_limits_themselves_are_allowed() -> None:
    check_size(8192, 8192)
    check_size(32, 1)
    check_size(1000, 32000)
    assert decoded(encoded(Image.new("RGB", (320, 10)), "PNG"), HOW).shape == (48, 48, 3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_picture_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageSizeError, match="empty"):
        crop(Image.new("RGB", shape), HOW)


def test_pictures_in_memory_are_held_to_the_same_limits() -> None:
    with pytest.raises(ImageSizeError, match="too long and thin"):
        batch_of(Image.new("RGB", (16000, 1)), SPEC)
    with pytest.raises(ImageSizeError, match="too long and thin"):
        batch_of(np.zeros((16000, 1, 3), np.uint8), SPEC)


def test_the_size_after_resizing_is_capped() -> None:
    wide = Preprocessing((2000, 2000), 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ImageSizeError, match="would be resized to 71104 x 2222"):
        crop(Image.new("RGB", (3200, 100)), wide)
    squashed = Preprocessing((9000, 9000), 1.0, "nearest", (0.5,) * 3, (0.5,) * 3, "squash")
    with pytest.raises(ImageSizeError, match="9000 x 9000"):
        crop(Image.new("RGB", (8, 8)), squashed)


def test_a_bomb_is_refused_whatever_pillows_own_limit_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (None, 10**12, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings(record=True) as seen, pytest.raises(ImageSizeError):
            warnings.simplefilter("always")
            read_rgb(png(10000, 9000))
        assert not seen


def test_filters_of_warnings_are_left_as_they_were() -> None:
    before = list(warnings.filters)

    def ask() -> None:
        for _ in range(50):
            read_rgb(encoded(colours(), "PNG"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"P6 2 2 255 " + b"\0" * 12,
        encoded(Image.new("RGB", (8, 8)), "TGA"),
        encoded(Image.new("RGB", (8, 8)), "PCX"),
        encoded(Image.new("RGB", (16, 16)), "ICO"),
        encoded(Image.new("RGB", (8, 8)), "PDF"),
        b"",
        b"\xff\xd8\xff",
    ],
    ids=["PostScript", "PPM", "TGA", "PCX", "ICO", "PDF", "nothing", "a JPEG's start"],
)
def test_other_formats_never_reach_their_decoder(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ghostscript(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    with pytest.raises(DataError, match="none of JPEG, PNG, WEBP, BMP, TIFF, GIF"):
        read_rgb(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "MPO"])
def test_the_listed_formats_are_read_from_bytes_files_and_streams(
    kind: str, tmp_path: Path
) -> None:
    options = {"WEBP": {"lossless": True}, "MPO": {"save_all": True, "append_images": [colours()]}}
    data = encoded(colours(), kind, **options.get(kind, {}))
    path = tmp_path / "picture"
    path.write_bytes(data)
    read = [np.asarray(read_rgb(source)) for source in (data, path, io.BytesIO(data))]
    assert np.array_equal(read[0], read[1]) and np.array_equal(read[0], read[2])
    if kind not in ("JPEG", "MPO"):
        assert np.array_equal(read[0], np.asarray(colours()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_the_picture(kind: str) -> None:
    frames = [Image.new("RGB", (60, 50), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    assert read_rgb(data).getpixel((30, 25)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_file_that_was_cut_off_is_refused_or_whole(kind: str) -> None:
    data = encoded(colours(), kind)
    whole, refused = np.asarray(read_rgb(data)), 0
    for at in range(0, len(data), 7):
        try:
            assert np.array_equal(np.asarray(read_rgb(data[:at])), whole), at
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.9 * len(data) / 7


def test_16_bit_greys_go_by_their_upper_byte() -> None:
    eight = np.asarray(Image.fromarray(grey()).convert("RGB"))
    wide = grey().astype(np.uint16) << 8 | 0x7F
    little = Image.fromarray(wide)
    big = Image.fromarray(wide.astype(">u2"))
    for data in (encoded(little, "PNG"), encoded(little, "TIFF"), encoded(big, "TIFF")):
        assert np.array_equal(np.asarray(read_rgb(data)), eight)
    assert np.array_equal(np.asarray(as_rgb(little)), eight)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (grey().astype(np.int32), "32-bit"),
        (grey().astype(np.int32) << 16, "32-bit"),
        (grey().astype(np.float32), "floating-point"),
        (grey().astype(np.float32) / 255, "floating-point"),
    ],
)
def test_32_bit_integers_and_floats_are_refused(values: np.ndarray, what: str) -> None:
    image = Image.fromarray(values)
    for picture in (encoded(image, "TIFF"), image):
        with pytest.raises(DataError, match=f"{what}.*save it as 8-bit"):
            batch_of(picture, SPEC)


@pytest.mark.parametrize(
    ("tag", "value", "kind"),
    [(339, 2, np.uint8), (339, 2, np.uint16), (262, 0, np.uint16), (258, 12, np.uint16)],
    ids=["signed 8", "signed 16", "white is zero", "12 bits"],
)
def test_tiff_samples_that_pillow_misreads_are_refused(tag: int, value: int, kind: type) -> None:
    data = bytearray(encoded(Image.fromarray(grey().astype(kind)), "TIFF", tiffinfo={339: 1}))
    entry = re.search(struct.pack("<HHI", tag, 3, 1), data)
    assert entry is not None
    data[entry.end() : entry.end() + 2] = struct.pack("<H", value)
    with pytest.raises(DataError, match="save it"):
        read_rgb(bytes(data))


def test_modes_with_one_meaning_are_converted() -> None:
    picture, levels = colours(), Image.fromarray(grey())
    palette = picture.quantize(64)
    exact = np.asarray(palette.convert("RGB"))
    for kind, options in (("PNG", {}), ("PNG", {"transparency": 3}), ("GIF", {}), ("TIFF", {})):
        assert np.array_equal(np.asarray(read_rgb(encoded(palette, kind, **options))), exact)
    black_or_white = levels.point(lambda v: 255 * (v > 99))
    for kind in ("PNG", "TIFF"):
        alpha = Image.merge("LA", (levels, levels))
        assert np.array_equal(read_rgb(encoded(alpha, kind)), levels.convert("RGB"))
        one = encoded(black_or_white.convert("1"), kind)
        assert np.array_equal(read_rgb(one), black_or_white.convert("RGB"))
        opaque = np.dstack([np.asarray(picture), grey()])
        assert np.array_equal(read_rgb(encoded(Image.fromarray(opaque), kind)), picture)
    inks = np.asarray(read_rgb(encoded(picture.convert("CMYK"), "TIFF"))).astype(int)
    assert np.abs(inks - np.asarray(picture)).max() <= 1


def test_exif_orientation_is_left_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_rgb(encoded(colours(), "JPEG", exif=exif)).size == (80, 60)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(colours(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(DataError, match="more than 500 scans"):
        read_rgb(data[:scan] + data[scan:-2] * 600 + b"\xff\xd9")


def test_what_is_no_file_is_said_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    says = {
        "pipe.png": "no regular file",
        "folder.png": "no regular file",
        "loop.png": "symbolic links",
        "absent.png": "no such file",
        "": "no regular file",
        ".": "no regular file",
        "nul\0.png": "null",
        "x" * 5000: "name too long",
    }
    for name, words in says.items():
        with pytest.raises(DataError, match=f"(?i)cannot read image .*{words}"):
            read_image(tmp_path / name, HOW)


def test_a_file_beyond_the_limit_of_bytes_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    data = encoded(colours(), "BMP")
    (tmp_path / "a.bmp").write_bytes(data)
    for source in (data, tmp_path / "a.bmp", io.BytesIO(data)):
        with pytest.raises(ImageSizeError, match="more than 1000 bytes"):
            read_rgb(source)


def test_images_are_opened_in_one_place() -> None:
    """No other module opens one, nor decodes by a plugin of its own."""
    found = {}
    for path in [*ROOT.glob("atm_export/**/*.py"), *ROOT.glob("tools/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            opens = isinstance(node, ast.Attribute) and node.attr == "open"
            if opens and ast.unparse(node).endswith("Image.open"):  # type: ignore[arg-type]
                found[str(path.relative_to(ROOT))] = node.lineno  # type: ignore[attr-defined]
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL"):
                assert not {"open"} & {alias.name for alias in node.names}, path
    assert list(found) == ["atm_export/pictures.py"]


def test_cpp_has_the_same_limits() -> None:
    header = (ROOT / "runtime/cpp/include/atm_runtime/atm_runtime.hpp").read_text()
    theirs = dict(re.findall(r"constexpr (?:std::size_t|int) (kMost\w+) = (\d+);", header))
    ours = {
        "kMostPixels": pictures.MOST_PIXELS,
        "kMostAspect": pictures.MOST_ASPECT,
        "kMostResized": pictures.MOST_RESIZED,
        "kMostBytes": pictures.MOST_BYTES,
        "kMostScans": pictures.MOST_SCANS,
        "kMostThreads": MAX_THREADS,
    }
    assert {name: int(theirs[name]) for name in ours} == ours
