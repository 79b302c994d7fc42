"""Pictures that tests draw: classes that differ in shape and hue, each picture a little different."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "cross", "triangle", "ring", "bar")


def draw(shape: int, size: int, random: np.random.Generator) -> Image.Image:
    """Draw one picture of a class by its number: a shape in its hue, somewhere on a noisy ground."""
    ground = random.integers(90, 140, size=(size, size, 3)).astype(np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    hue = (shape * 97) % 360 + int(random.integers(-12, 13))
    colour = f"hsl({hue % 360}, 85%, {int(random.integers(40, 60))}%)"
    side = size * random.uniform(0.45, 0.7)
    left, top = random.uniform(0, size - side, size=2)
    right, bottom = left + side, top + side
    kind = SHAPES[shape % len(SHAPES)]
    if kind == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif kind == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif kind == "cross":
        pen.line((left, top, right, bottom), fill=colour, width=max(2, size // 6))
        pen.line((left, bottom, right, top), fill=colour, width=max(2, size // 6))
    elif kind == "triangle":
        pen.polygon(((left + right) / 2, top, right, bottom, left, bottom), fill=colour)
    elif kind == "ring":
        pen.ellipse((left, top, right, bottom), outline=colour, width=max(2, size // 8))
    else:
        pen.rectangle((left, (top + bottom) / 2, right, (top + bottom) / 2 + size / 6), fill=colour)
    return image


def draw_classes(root: Path, classes: Sequence[str], *, each: int, size: int, seed: int) -> None:
    """Write `each` pictures a class as root/<class>/<number>.png; all contents differ."""
    random = np.random.default_rng(seed)
    for shape, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            draw(shape, size, random).save(root / name / f"{number:04}.png")
