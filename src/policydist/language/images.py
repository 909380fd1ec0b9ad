"""Images in a task's rows: where they stand, what they may be, and how they are read.

A row's column ``image`` holds one image and ``images`` a list: a path, the bytes of an encoded file, the Hugging Face form
``{"bytes": …, "path": …}``, or a `PIL.Image.Image`. In the prompt `MARK` says where each one goes; without marks they stand in
front of the text.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policydist.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from PIL import Image

MARK = "<image>"
COLUMNS = ("image", "images")
WEB = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that a chat endpoint reads as they are."""


def images_of(row: Mapping[str, Any], where: str) -> list[Any]:
    """The row's images, not yet opened.

    Raises:
        UsageError: naming ``where``, if both columns are filled or ``images`` is no list.
    """
    filled = [name for name in COLUMNS if row.get(name) is not None]
    if not filled:
        return []
    if len(filled) == 2:
        raise UsageError(f"{where}: both image and images are filled; keep one of the columns")
    held = row[filled[0]]
    if filled[0] == "image":
        return [held]
    if isinstance(held, str | bytes | Mapping) or not isinstance(held, Sequence):
        raise UsageError(f"{where}: column images holds a {type(held).__name__}; it must be a list of images")
    return list(held)


def located(row: Mapping[str, Any], folder: Path | None, where: str) -> Mapping[str, Any]:
    """The row with its images' paths, which are relative to ``folder``, made whole; every file must be there.

    Raises:
        UsageError: naming ``where`` for a file that is missing, or an image of a type that cannot be read.
    """
    found = [_located(image, folder, where) for image in images_of(row, where)]
    if not found:
        return row
    return {**row, "image": found[0]} if row.get("image") is not None else {**row, "images": found}


def _located(image: Any, folder: Path | None, where: str) -> Any:
    held = _held(image, where)
    if not isinstance(held, str):
        return held
    path = Path(held).expanduser() if folder is None else folder / Path(held).expanduser()
    if not path.is_file():
        beside = "" if folder is None else f" (paths are relative to {folder})"
        raise UsageError(f"{where}: no image file {path}{beside}; mend the path or drop the row")
    return str(path)


def _held(image: Any, where: str) -> Any:
    """What an image really is: a path, bytes, or a picture in memory."""
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if (isinstance(image, str | bytes) and image) or _is_picture(image):
        return image
    kind = "nothing" if image is None or image in ("", b"") else f"a {type(image).__name__}"
    raise UsageError(
        f"{where}: an image is {kind}; it must be a path, the bytes of an image file, "
        '{"bytes": …, "path": …}, or a PIL image'
    )


def _is_picture(image: Any) -> bool:
    return hasattr(image, "convert") and hasattr(image, "tobytes")


def fingerprint(image: Any, where: str) -> Hashable:
    """The same for the same image: its path, or a digest of its bytes."""
    held = _held(image, where)
    if isinstance(held, str):
        return held
    if isinstance(held, bytes):
        return hashlib.sha256(held).digest()
    return held.mode, held.size, hashlib.sha256(held.tobytes()).digest()


def opened(image: Any, where: str) -> Image.Image:
    """The image in memory, three colours, upright as its camera held it.

    Raises:
        UsageError: naming ``where`` (and the file), if it is missing or no whole image.
        MissingExtraError: without Pillow.
    """
    held = _held(image, where)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtraError("Pillow", "vision") from None
    named = f"image file {held}" if isinstance(held, str) else "its image"
    try:
        source = io.BytesIO(held) if isinstance(held, bytes) else held
        with contextlib.nullcontext(held) if _is_picture(held) else Image.open(source) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise UsageError(f"{where}: no {named}; mend the path or drop the row") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(f"{where}: {named} cannot be read ({reason}); replace it or drop the row") from error


def pieces(text: str, count: int, where: str) -> list[str]:
    """The text in ``count`` + 1 pieces, an image between every two of them.

    Raises:
        UsageError: naming ``where``, if the text has marks but not ``count`` of them.
    """
    found = text.split(MARK)
    if len(found) == 1:
        return [*[""] * count, text]
    if len(found) != count + 1:
        has = f"{count} image{'' if count == 1 else 's'}"
        raise UsageError(
            f"{where}: the prompt marks {len(found) - 1} places with {MARK}, but the row has {has}; give one mark an image, "
            "or none to have them in front"
        )
    return found


def unmarked(text: str) -> str:
    """The text with its marks in round brackets: in another row's prompt, or said by a model, they mark no place."""
    return text.replace(MARK, "(image)")


def data_url(image: Any, where: str) -> str:
    """The image as a ``data:`` URL, as chat endpoints take it: its own bytes where these are of a common format, else PNG.

    Raises:
        UsageError: see `opened`.
    """
    picture, held = opened(image, where), _held(image, where)
    if not _is_picture(held):
        from PIL import Image

        data = Path(held).read_bytes() if isinstance(held, str) else held
        with Image.open(io.BytesIO(data)) as original:
            if original.format in WEB:
                return _url(data, original.format)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _url(buffer.getvalue(), "PNG")


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
