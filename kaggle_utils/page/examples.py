"""Radiographs to try: synthetic ones, which show nobody, and children's, which may be shown."""

from __future__ import annotations

from typing import NamedTuple

from ..image import encode_image, resize_image
from ..sets import EXAMPLES
from ..synthetic import AppearanceModel

SOURCE = "Synthetic radiographs show nobody. The children's: Kermany et al. 2018, CC BY 4.0, resampled."
SYNTHETIC = {  # by caption: seed, index and tuberculosis of AppearanceModel.film
    "Synthetic": (2, 5, 0),
    "Synthetic, collimated": (1, 4, 0),
    "Synthetic, tuberculosis": (4, 1, 1),
}
CHILDREN = {  # by file of assets/examples; all of that set are one to five years old
    "IM-0553-0001.jpg": "Child, healthy",
    "person628_virus_1206.jpg": "Child, viral pneumonia",
    "person423_bacteria_1854.jpg": "Child, gas in the stomach",
    "person605_bacteria_2468.jpg": "Child, electrode",
}
_AGE = 5.0  # years, of the eldest of them
_THUMBNAIL = 224  # px a side, as high as the files of children


class Example(NamedTuple):
    """A radiograph to try.

    Attributes:
        name: of its file.
        caption: what to see in it.
        data: what is in the file.
        thumbnail: a small JPEG of it.
        age: of the patient, years.
    """

    name: str
    caption: str
    data: bytes
    thumbnail: bytes
    age: float | None = None


def make_examples() -> list[Example]:
    """Draws the synthetic ones, and reads the children's."""
    model, examples = AppearanceModel.load(), []
    for n, (caption, (seed, index, tb)) in enumerate(SYNTHETIC.items(), 1):
        image = model.film(seed, index, size=512, tb=tb).image
        thumbnail = encode_image(resize_image(image, _THUMBNAIL), ".jpg")
        examples.append(Example(f"nobody_{n}.png", caption, encode_image(image, ".png"), thumbnail))
    for name, caption in CHILDREN.items():
        data = (EXAMPLES / name).read_bytes()
        examples.append(Example(name, caption, data, data, _AGE))
    return examples
