"""Opening one picture file of any format, without trusting it."""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.inputs import open_plain
from pipeline.pictures.wholeness import lacks_pixels

# Formats that Pillow decodes itself or with well-kept C libraries: none that starts a program (EPS) or is rare.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

# File names that a person takes for pictures, whether or not they can be read here (HEIC cannot).
_SUFFIXES = """
.jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .jp2 .j2k .jpx .jpc .jpf
.ppm .pgm .pbm .pnm .heic .heif
"""
SUFFIXES = frozenset(_SUFFIXES.split())

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_REPLACE = "Replace it with a whole picture, or remove it and its row."


class UnreadablePicture(Exception):
    """A file that is not a whole picture of reasonable size. found: what it is instead; fix: how to fix it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found, fix)
        self.found = found
        self.fix = fix


@dataclass(frozen=True)
class Picture:
    """One decoded picture: image is its first frame, upright, in the mode of the file; format and mode are the
    file's; orientation is that of EXIF, 1 to 8 (1: upright as stored); frames counts animation frames or pages. None
    for either: that part of the file is damaged, and the picture can be used all the same."""

    image: Image.Image
    format: str
    mode: str
    orientation: int | None
    frames: int | None


def load_picture(path: Path, max_megapixels: float) -> Picture:
    """Decode the first frame of a picture file and turn it upright.

    Raises:
        UnreadablePicture: whatever is wrong with the file. One with more than `max_megapixels` is refused by its
            header, before anything is decoded.
    """
    with _pixel_limit(max_megapixels), _as_unreadable_picture(path, max_megapixels), open_plain(path) as file:
        if not file.read(1):
            raise UnreadablePicture("the file is empty", "Replace it with the picture, or remove it and its row.")
        with _open(file) as image:
            width, height = image.size
            if not 1 <= width * height <= max_megapixels * 1e6:
                raise _too_large(width * height, max_megapixels)
            stored, mode = _orientation(image), image.mode
            image.load()
            remaining = _orientation(image)  # Pillow itself turns a TIFF while it decodes
            upright = image.transpose(_ORIENTATIONS[remaining]) if remaining in _ORIENTATIONS else image.copy()
            if lacks_pixels(file, image):
                raise UnreadablePicture(f"it holds only a part of its {width}x{height} pixels", _REPLACE)
            return Picture(upright, image.format or "", mode, stored, _count_frames(file))


def size_of(path: Path, max_megapixels: float) -> tuple[int, int]:
    """Width and height of the upright picture. Raises UnreadablePicture as `load_picture` does."""
    return load_picture(path, max_megapixels).image.size


def _open(file: BinaryIO) -> Image.Image:
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _orientation(image: Image.Image) -> int | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parsers raise many kinds; the ledger notes that EXIF could not be read
        return None
    return orientation if isinstance(orientation, int) and orientation in _ORIENTATIONS else 1


def _count_frames(file: BinaryIO) -> int | None:
    """The file is opened a second time: counting moves through an animation."""
    file.seek(0)
    try:
        with _open(file) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # later frames may be damaged in many ways; the first one is whole
        return None


@contextmanager
def _pixel_limit(megapixels: float) -> Iterator[None]:
    """Set Pillow's own limit, which its decoders check before they allocate memory. They refuse above twice as many."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, math.ceil(megapixels * 1e6 / 2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _as_unreadable_picture(path: Path, max_megapixels: float) -> Iterator[None]:
    try:
        yield
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(int(pixels[0]) if pixels else None, max_megapixels) from None
    except UnidentifiedImageError:
        if path.suffix.lower() in (".heic", ".heif"):
            raise UnreadablePicture("HEIC pictures cannot be read", "Convert it to JPEG or PNG.") from None
        found = f"corrupt, or not a picture of a known format ({', '.join(FORMATS)})"
        raise UnreadablePicture(found, _REPLACE) from None
    except OSError as error:
        if error.errno is not None:
            raise UnreadablePicture(f"the file cannot be opened ({error.strerror})", "Make it readable.") from None
        raise UnreadablePicture(f"corrupt or truncated picture ({_summary(error)})", _REPLACE) from None
    except Exception as error:
        raise UnreadablePicture(f"corrupt picture ({_summary(error)})", _REPLACE) from None


def _too_large(pixels: int | None, max_megapixels: float) -> UnreadablePicture:
    if pixels is not None and pixels < 1:
        return UnreadablePicture("a picture without pixels", "Replace it, or remove it and its row.")
    size = f"{pixels / 1e6:.4g} megapixels" if pixels else "too many pixels"
    return UnreadablePicture(
        f"{size}, more than the {max_megapixels:g} allowed",
        "Shrink the picture, or raise prepare.max_megapixels in params.yaml if you trust it.",
    )


def _summary(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ascii(text)[1:-1][:120]
