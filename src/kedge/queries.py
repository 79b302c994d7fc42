"""Query: the picture that a search starts from, and how it is asked to search."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from kedge.errors import InputError, PictureError
from kedge.picture import read_for_encoder

__all__ = ["Order", "Probes", "Query", "check_search", "read_query"]

Probes = int | Literal["exact"]
Order = Literal["distance", "bucket"]
Query = str | Path | bytes | Image.Image


def check_search(k: int, probes: Probes, order: Order, max_distance: float | None = None) -> None:
    """Raise InputError for a search that cannot be done."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k is the number of pictures wanted, 1 or more, not {k!r}")
    if probes != "exact" and (not isinstance(probes, int | np.integer) or isinstance(probes, bool) or probes < 1):
        raise InputError(f"probes is a number of anchors, 1 or more, or 'exact', not {probes!r}")
    if order not in ("distance", "bucket"):
        raise InputError(f"order is 'distance' or 'bucket', not {order!r}")
    if order == "bucket" and probes == "exact":
        raise InputError("exact search ranks by distance: take order 'distance', or a number of probes")
    if max_distance is not None and not max_distance >= 0:
        raise InputError(f"the largest distance is a number from 0, not {max_distance!r}")


def read_query(picture: Query, size: int) -> tuple[str, Image.Image]:
    """Return a query's name, empty if it has none, and its image, read as the gallery's pictures are."""
    if isinstance(picture, Image.Image):
        # Through a file, so that palette and depth are dealt with where they are for every picture.
        buffer = BytesIO()
        try:
            picture = ImageOps.exif_transpose(picture)
            picture.save(buffer, "TIFF" if picture.mode in ("CMYK", "F", "LAB", "YCbCr") else "PNG")
        except (OSError, ValueError) as error:
            raise PictureError("the image given", f"cannot be used ({error})") from error
        picture = buffer.getvalue()
    if isinstance(picture, bytes):
        return "", read_for_encoder(picture, size, name="the picture given").image
    return str(picture), read_for_encoder(str(picture), size).image
