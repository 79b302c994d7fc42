"""Query: the picture that a search starts from."""

from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from kedge.errors import PictureError
from kedge.picture import read_for_encoder

__all__ = ["Query", "read_query"]

Query = str | Path | bytes | Image.Image


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
