"""The one door for encoded pictures: which formats, how large, and what becomes of other depths.

`runtime/cpp` holds the same limits; a test compares them. The first frame or page is the picture.
EXIF orientation, colour profiles and transparency are ignored, as in the usual ImageNet evaluation.
"""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from atm_export.errors import DataError, ImageSizeError
from atm_export.imagefiles import open_regular
from atm_export.inputs import GREY, PICTURED

# Pillow's names. Phones' multi-picture files (MPO) are JPEG files and open as such.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MOST_PIXELS = 67_108_864  # 2^26: a full-frame camera's picture; 256 MB once decoded
MOST_ASPECT = 32  # panoramas are 10 to 1
MOST_RESIZED = 67_108_864
MOST_BYTES = 536_870_912
MOST_SCANS = 500  # a progressive JPEG file of a few kB can ask for hours of work

Source: TypeAlias = "Path | bytes | IO[bytes]"
_START_OF_SCAN = b"\xff\xda"
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_header = threading.Lock()


def read_rgb(source: Source) -> Image.Image:
    """Decode a file, its bytes or a stream to 8-bit RGB.

    Raises ImageSizeError beyond the limits, and DataError for all else that cannot be read.
    """
    data = _bytes_of(source)
    try:
        with _opened(data) as image:
            check_size(*image.size)
            if image.format in ("JPEG", "MPO") and data.count(_START_OF_SCAN) > MOST_SCANS:
                raise DataError(f"the image cannot be read: more than {MOST_SCANS} scans")
            return as_rgb(image)
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise DataError(f"the image cannot be read: damaged, or none of {known}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageSizeError(f"the image has more than {MOST_PIXELS} pixels") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged data
        raise _unreadable(error) from error


def check_size(width: int, height: int) -> None:
    """ImageSizeError where a picture has no pixels, too many, or is too long and thin."""
    shape = f"the image is {width} x {height} pixels"
    if min(width, height) < 1:
        raise ImageSizeError(f"{shape}: it is empty")
    if width * height > MOST_PIXELS:
        raise ImageSizeError(f"{shape}: {MOST_PIXELS} in all at most; make it smaller")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise ImageSizeError(f"{shape}: too long and thin, {MOST_ASPECT} to 1 at most; crop it")


def check_resized(width: int, height: int) -> None:
    """ImageSizeError where a picture would have too many pixels once resized."""
    if width * height > MOST_RESIZED:
        raise ImageSizeError(
            f"the image would be resized to {width} x {height} pixels: "
            f"{MOST_RESIZED} in all at most; crop it"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a picture of any mode that has one meaning; DataError for others.

    16-bit values go by their upper byte, grey ones too, which Pillow itself clips to white. 32-bit
    integers and floats state no range, and signed values no black: they are refused.
    """
    if image.mode == "RGB" and type(image) is Image.Image:
        return image  # in memory already
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise DataError(f"the image holds {kind} values, which state no range; save it as 8-bit")
    try:
        _check_samples(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a file that was opened elsewhere is decoded here
        raise _unreadable(error) from error


def of_channels(image: Image.Image, channels: int) -> Image.Image:
    """8-bit grey or RGB of a picture, as a model of so many channels sees it; DataError where a
    model takes no pictures.

    Grey is the weighted sum of RGB (ITU-R 601-2), whatever the file holds: one rule for all modes.
    """
    require_pictures(channels)
    image = as_rgb(image)
    return image.convert("L") if channels == GREY else image


def require_pictures(channels: int) -> None:
    """DataError for a model of another number of channels than pictures have."""
    if channels not in PICTURED:
        raise DataError(
            f"the model takes {channels} channels, and a picture becomes 1 (grey) or 3 (RGB): "
            "give arrays"
        )


def _check_samples(image: Image.Image) -> None:
    """TIFF samples that Pillow reads without their meaning: signed, 12 bits, 16 bits inverted."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return
    if set(tags.get(_SAMPLE_FORMAT, (1,))) - {1, 4}:
        raise DataError("the image holds signed values; save it as 8-bit")
    wide = image.mode.startswith("I;16")
    if wide and (tags.get(_PHOTOMETRIC) != 1 or set(tags.get(_BITS, (1,))) != {16}):
        raise DataError("the image is a TIFF file of 12 bits or with white as zero; save it 8-bit")


def _opened(data: bytes) -> Image.Image:
    """The header alone is read here. The lock: filters of warnings belong to the process."""
    with _header, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _bytes_of(source: Source) -> bytes:
    """DataError for what is no regular file, such as a pipe, which would never end."""
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, Path):
        try:
            with open_regular(source) as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError as error:
            raise DataError("there is no such file") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise DataError(f"the file cannot be read: {_words(error)}") from error
    else:
        data = source.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ImageSizeError(f"the image file has more than {MOST_BYTES} bytes")
    return data


def _unreadable(error: Exception) -> DataError:
    return DataError(f"the image cannot be read: {_words(error)}")


def _words(error: Exception) -> str:
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(text.split()) or type(error).__name__
