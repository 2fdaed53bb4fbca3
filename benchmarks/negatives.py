"""Pictures that are no frontal chest films: photographs and scans that packages ship, drawn pages, and spoilt films.

There is no lateral view, hand or abdomen among them: no package ships one. What is drawn is new with every draw;
photographs are parted by file, so that none is both fitted on and tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import make_parser

SIDE = 128  # px of what is drawn
Draw = Callable[[np.random.Generator], np.ndarray]
# By file: of skimage.data, of sklearn.datasets.images (china, flower) and of matplotlib's sample data (grace_hopper).
PHOTOGRAPHS = {
    "train": (
        "astronaut",
        "brick",
        "coffee",
        "chelsea",
        "coins",
        "grass",
        "hubble_deep_field",
        "ihc",
        "microaneurysms",
        "motorcycle_left",
        "page",
        "retina",
        "text",
        "china",
        "chessboard_GRAY",
    ),
    "val": ("cell", "clock_motion", "gravel", "flower", "color"),
    "test": ("camera", "moon", "rocket", "horse", "phantom", "logo", "grace_hopper"),
}


@lru_cache(maxsize=64)
def photograph(name: str) -> np.ndarray:
    """A shipped picture by its stem, ``uint8 (H, W)`` or ``(H, W, 3)`` in BGR."""
    import matplotlib
    import skimage
    import sklearn

    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets/images",
        Path(matplotlib.get_data_path()) / "sample_data",
    )
    found = [path for folder in folders for path in sorted(folder.glob(f"{name}.*"))]
    path = next(path for path in found if path.suffix not in (".txt", ".xml"))
    return cv2.imread(str(path), cv2.IMREAD_COLOR)


def scans() -> list[np.ndarray]:
    """Slices and projections of a head's MR volume and pydicom's test images, ``uint8 (H, W)``: other body parts."""
    import nibabel
    import nilearn
    import pydicom
    from pydicom.data import get_testdata_file

    path = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    head = np.asarray(nibabel.load(path).dataobj, np.float32)
    found = []
    for axis in range(3):
        slices = np.moveaxis(head, axis, 0)[:, :, ::-1].transpose(0, 2, 1)
        found += [slices[int(at * len(slices))] for at in np.linspace(0.25, 0.75, 9)]
        found += [slices.mean(0), slices.max(0), np.exp(-slices.sum(0) / slices.sum(0).mean())]
    for name in ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm", "examples_palette.dcm", "examples_jpeg2k.dcm"):
        pixels = pydicom.dcmread(get_testdata_file(name)).pixel_array.astype(np.float32)
        found.append(pixels.mean(-1) if pixels.ndim == 3 else pixels)
    return [_eight_bits(picture) for picture in found]


def crop_of_photograph(rng: np.random.Generator, split: str) -> np.ndarray:
    """A window of a photograph, from 15 % of its side to the whole, mirrored half of the time, gray."""
    picture = photograph(str(rng.choice(PHOTOGRAPHS[split])))
    picture = picture[..., rng.integers(3)] if rng.random() < 0.5 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return _window(picture[:, :: rng.choice((-1, 1))], rng, (0.15, 1.0))


def small_part(rng: np.random.Generator, film: np.ndarray) -> np.ndarray:
    """A window of 10-30 % of a film's side: too little to hold a lung."""
    return _window(film, rng, (0.1, 0.3))


def shuffled(rng: np.random.Generator, film: np.ndarray) -> np.ndarray:
    """A film cut into 2×2 to 5×5 tiles that are laid in another order, each turned."""
    count = int(rng.integers(2, 6))
    side = min(film.shape) // count
    rows = [film[r * side : (r + 1) * side] for r in range(count)]
    tiles = [np.rot90(row[:, c * side : (c + 1) * side], rng.integers(4)) for row in rows for c in range(count)]
    order = np.roll(np.arange(count**2), 1) if count == 2 else rng.permutation(count**2)
    return np.vstack([np.hstack([tiles[order[r * count + c]] for c in range(count)]) for r in range(count)])


def swirled(rng: np.random.Generator, film: np.ndarray) -> np.ndarray:
    """A film wrung around its middle by half a turn or more, or bent by waves as long as a lung is wide."""
    height, width = film.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    if rng.random() < 0.5:
        angle = rng.choice((-1, 1)) * rng.uniform(3.5, 8) * np.exp(-2 * (x**2 + y**2))
        x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    else:
        often, phase = rng.uniform(5, 9, 2), rng.uniform(0, 6, 2)
        x, y = x + 0.3 * np.sin(often[0] * y + phase[0]), y + 0.3 * np.sin(often[1] * x + phase[1])
    at = np.stack([(x + 1) * (width / 2), (y + 1) * (height / 2)], -1).astype(np.float32)
    return cv2.remap(film, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def phases_scrambled(rng: np.random.Generator, film: np.ndarray) -> np.ndarray:
    """A film's own spectrum with phases of noise: its texture without its anatomy."""
    noise = np.fft.rfft2(rng.normal(size=film.shape))
    return _eight_bits(np.fft.irfft2(np.abs(np.fft.rfft2(film)) * noise / np.abs(noise), film.shape))


def clouds(rng: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls with frequency to a power of 0 (white) to 2 (smooth)."""
    distance = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) + 1 / SIDE
    white = np.fft.rfft2(rng.normal(size=(SIDE, SIDE)))
    return _eight_bits(np.fft.irfft2(white * distance ** -rng.uniform(0, 2), (SIDE, SIDE)))


def gradient(rng: np.random.Generator) -> np.ndarray:
    """A linear or a round slope of gray with a little noise."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j] - rng.uniform(-0.7, 0.7, (2, 1, 1))
    slope = np.hypot(x, y) if rng.random() < 0.5 else x * rng.normal() + y * rng.normal()
    return _eight_bits(slope * rng.choice((-1, 1)) + rng.normal(size=(SIDE, SIDE)) * rng.uniform(0, 0.2))


def page(rng: np.random.Generator, size: int = 256) -> np.ndarray:
    """Lines of letters in one or two columns, dark on bright or the other way round."""
    picture = np.full((size, size), 255, np.uint8)
    letters = "".join(chr(c) for c in rng.integers(48, 122, 60))
    height = int(rng.integers(8, 30))
    for row in range(int(rng.integers(10, 50)), size - 10, height):
        for column in range(10, size - 10, size // int(rng.integers(1, 3))):
            text = letters[: int(rng.integers(5, 60))]
            font, thick = int(rng.integers(0, 5)), max(1, height // 14)
            cv2.putText(picture, text, (column, row), font, height / 40, 0, thick)
    return picture if rng.random() < 0.7 else 255 - picture


def shapes(rng: np.random.Generator) -> np.ndarray:
    """One to nine filled ellipses or boxes of any gray, blurred or sharp."""
    picture = np.full((SIDE, SIDE), int(rng.integers(256)), np.uint8)
    for _ in range(int(rng.integers(1, 10))):
        centre, axes = rng.integers(0, SIDE, 2).tolist(), rng.integers(4, SIDE // 2, 2).tolist()
        if rng.random() < 0.6:
            cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(256)), -1)
        else:
            cv2.rectangle(picture, centre, (np.array(centre) + axes).tolist(), int(rng.integers(256)), -1)
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 8))


def chart(rng: np.random.Generator) -> np.ndarray:
    """A line plot, a histogram or a scatter plot with axes, as matplotlib draws it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3), dpi=80)
    canvas, ax = FigureCanvasAgg(figure), figure.add_subplot()
    x, y = rng.normal(size=(int(rng.integers(20, 200)), 2)).cumsum(0).T
    kind = rng.choice(("line", "scatter", "histogram", "hexagons"))
    if kind == "line":
        ax.plot(x, y)
    elif kind == "scatter":
        ax.scatter(x, y)
    elif kind == "histogram":
        ax.hist(x, bins=20)
    else:
        ax.hexbin(x, y, gridsize=12)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba())[..., :3], cv2.COLOR_RGB2GRAY)


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Waves across waves: gratings, chequers, moiré."""
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    angles = rng.uniform(0, np.pi, int(rng.integers(1, 4)))
    waves = [np.sin(rng.uniform(6, 120) * (x * np.cos(a) + y * np.sin(a))) for a in angles]
    return _eight_bits(np.prod(waves, 0) if rng.random() < 0.5 else np.sum(waves, 0))


FITTED: dict[str, Draw] = {"clouds": clouds, "gradient": gradient, "page": page, "shapes": shapes}
UNSEEN: dict[str, Draw] = {"chart": chart, "stripes": stripes}  # never fitted on, nor looked at to choose anything
SPOILT = {"small part": small_part, "shuffled": shuffled, "swirled": swirled, "phases scrambled": phases_scrambled}


def draw(kind: str, rng: np.random.Generator, split: str, films: list[np.ndarray]) -> np.ndarray:
    """One picture of a kind: photograph, or of FITTED, UNSEEN or SPOILT; ``films`` are those of the split."""
    if kind == "photograph":
        return crop_of_photograph(rng, split)
    if kind in SPOILT:
        return SPOILT[kind](rng, films[rng.integers(len(films))])
    return (FITTED | UNSEEN)[kind](rng)


def stream(split: str, films: list[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Pictures without end for fitting and choosing: half photographs and spoilt films, half drawn."""
    rng = np.random.default_rng(seed)
    kinds = ["photograph"] * 4 + list(SPOILT) + list(FITTED)
    while True:
        yield draw(str(rng.choice(kinds)), rng, split, films)


def _window(picture: np.ndarray, rng: np.random.Generator, share: tuple[float, float]) -> np.ndarray:
    height, width = (max(16, int(side * rng.uniform(*share))) for side in picture.shape)
    top, left = rng.integers(0, max(1, picture.shape[0] - height)), rng.integers(0, max(1, picture.shape[1] - width))
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def _eight_bits(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return (np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    make_parser(__doc__).print_help()  # other benchmarks draw them
