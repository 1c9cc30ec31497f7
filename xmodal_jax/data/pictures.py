"""Pictures: how every part reads them, so that a size, a box and a feature speak of the same pixels.

What counts is what a viewer shows: turned as EXIF says, transparent parts on white, 16 bits a channel scaled to 8, the
first picture of an animation. The format is told from the content, never from the name.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.errors import DataError, require

PIXELS = 20_000_000  # at most, by the header, of a picture that is given with a question: it may be a stranger's
LARGE = 120_000_000  # of a picture of a data set
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
ORIENTATION = 0x0112  # the EXIF tag: 1 is upright
TURNS = {  # EXIF 2.3, section 4.6.4 A, the way back from each value
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Facts(NamedTuple):
    """Of a picture that could be read to its end."""

    size: tuple[int, int]  # height, width as shown
    animated: bool  # of more pictures than the first, which is the one that is read


def read_picture(source: Any, side: int | None = None, most: int = PIXELS) -> np.ndarray:
    """Pixels [H, W, 3] uint8 of a file, its bytes, a PIL image or an array; made smaller where a side exceeds ``side``.

    Arrays are taken as they are.

    Raises:
        DataError: not a picture of a known format, a broken one, or more than ``most`` pixels.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise DataError(f"A picture is uint8 [height, width, 3], not {source.dtype} {list(source.shape)}.")
        return source
    with opened(source, most) as picture:
        if side is not None:
            picture.draft(None, (2 * side, 2 * side))  # a JPEG need not be unfolded in full to be made small
        picture.load()
        shown = _colours(picture)
        if side is not None:
            shown.thumbnail((side, side))
        return np.asarray(_upright(shown, _orientation(picture)))


def examine(path: str | Path) -> Facts:
    """Read a picture of a data set to its end, for a truncated file has a sound header.

    Raises:
        DataError: as :func:`read_picture`, of more than 120 million pixels.
    """
    with opened(path, LARGE) as picture:
        width, height = picture.size
        picture.draft(None, (max(width // 8, 1), max(height // 8, 1)))
        picture.load()
        turned = _orientation(picture) >= 5
        # A TIFF of several pages and the second view or the brightness map in a phone's JPEG (MPO) are no animation.
        animated = picture.format in ("GIF", "WEBP", "PNG") and getattr(picture, "is_animated", False)
        return Facts((width, height) if turned else (height, width), animated)


def shown(picture: Any) -> Any:
    """An opened picture as a viewer shows it, a PIL image in RGB; it is decoded now."""
    picture.load()
    return _upright(_colours(picture), _orientation(picture))


def shown_size(picture: Any) -> tuple[int, int]:
    """Width and height of an opened JPEG as a viewer shows it; its header is enough."""
    width, height = picture.size
    return (height, width) if _orientation(picture) >= 5 else (width, height)


@contextmanager
def opened(source: Any, most: int) -> Iterator[Any]:
    """A PIL image, its header read and its size looked at: a few kilobytes may unfold to gigabytes.

    Raises:
        DataError: as :func:`read_picture`, also for what goes wrong while the picture is used.
    """
    require("PIL", "image")
    from PIL import Image

    name = source if isinstance(source, str | os.PathLike) else "the picture"
    given = isinstance(source, Image.Image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are looked at here, of EXIF that is cut short
            file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
            picture: Any = source if given else Image.open(file, formats=FORMATS)
            try:
                width, height = picture.size
                if width * height > most:
                    raise DataError(f"{name} has {width:,} x {height:,} pixels; at most {most:,} are read.")
                yield picture
            finally:
                if not given:
                    picture.close()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: no such picture.") from None
    except Image.DecompressionBombError as error:  # PIL's own bound, before anybody can ask for the two sides
        pixels = int(next(iter(re.findall(r"\d+", str(error))), 0))
        raise DataError(f"{name} has {pixels:,} pixels; at most {most:,} are read.") from None
    except Exception as error:  # decoders raise of everything on broken files
        # What decoders say of bytes speaks of Python's objects.
        reason = f" ({error})".splitlines()[0] if str(error) and not isinstance(source, bytes) else ""
        raise DataError(f"{name} is not a readable {', '.join(FORMATS)} picture{reason}.") from None


def _orientation(picture: Any) -> int:
    """The EXIF orientation 1 to 8 of a loaded picture; a TIFF has been turned by then, and says 1."""
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken note beside sound pixels
        return 1
    return value if value in TURNS else 1


def _upright(picture: Any, orientation: int) -> Any:
    from PIL import Image

    return picture.transpose(Image.Transpose[TURNS[orientation]]) if orientation in TURNS else picture


def _colours(picture: Any) -> Any:
    """A loaded picture in RGB."""
    from PIL import Image

    if picture.mode in ("I", "F"):
        raise DataError("A picture of 32 bits a channel has no fixed white; save it with 8 or 16 bits.")
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        if isinstance(clear, int):
            picture.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    if picture.mode == "RGB" and clear is None:
        return picture.copy()
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return picture.convert("RGB")
