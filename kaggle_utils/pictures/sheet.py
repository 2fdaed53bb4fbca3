"""A contact sheet: many pictures in one, small, each with a caption below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .overlay import COLOUR

SIDE = 256  # px, of each picture
COLUMNS = 6
_LINE = 22  # px, a line of text with its space
_PAPER, _INK = "#111111", "#EEEEEE"


class Tile(NamedTuple):
    """A picture of a contact sheet.

    Attributes:
        picture: its file.
        lines: of its caption.
        stands_out: whether the caption is orange.
    """

    picture: Path
    lines: Sequence[str]
    stands_out: bool = False


def draw_sheet(title: str, tiles: Sequence[Tile]) -> np.ndarray:
    """Pictures in rows of ``COLUMNS``, below a title.

    Returns:
        ``uint8 (H, W, 3)``, BGR.
    """
    columns = min(COLUMNS, max(1, len(tiles)))
    high = SIDE + _LINE * (max((len(tile.lines) for tile in tiles), default=0) + 1)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + 8) + 8, 2 * _LINE + rows * high), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((8, _LINE // 2), title, _INK, font_size=16)
    for n, tile in enumerate(tiles):
        left, top = 8 + n % columns * (SIDE + 8), 2 * _LINE + n // columns * high
        with Image.open(tile.picture) as picture:
            small = ImageOps.contain(picture.convert("RGB"), (SIDE, SIDE))
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + SIDE - small.height))  # on its caption
        for line, text in enumerate(tile.lines):
            place = (left, top + SIDE + 3 + line * _LINE)
            pen.text(place, _shortened(text, pen), COLOUR if tile.stands_out else _INK, font_size=15)
    return np.asarray(sheet)[..., ::-1]


def _shortened(text: str, pen: ImageDraw.ImageDraw) -> str:
    """A text as wide as a picture at most, its middle left out."""
    whole, kept = text, len(text)
    while pen.textlength(text, font_size=15) > SIDE and kept > 2:
        kept -= 1
        text = f"{whole[: kept // 2]}…{whole[len(whole) - kept + kept // 2 :]}"
    return text
