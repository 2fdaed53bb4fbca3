"""Is this a frontal chest X-ray, which way up, and do the lungs found in it look like lungs?

A tiny network scores a thumbnail of the film in 16 views: 4 quarter turns, mirrored or not, negative or not. The view
that looks like an upright chest says how the film lies; if none does, it is no frontal chest film. After segmentation,
the lungs' outlines are compared with those of the training masks: of adults, without what the heart hides, and of as
many children, with it.

``python -m benchmarks.fit_checks`` fits both models on training films; ``python -m benchmarks.checks`` shows the
validation films by which the limits below were chosen, and measures them on films that nothing was fitted on or chosen
by. Lateral views and radiographs of other parts were not among them, as the public sets have none: how many of those
pass is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..image import Lie, check_mask, resize_mask
from .outline import landmarks

ASSET = Path(__file__).parents[1] / "assets" / "checks.npz"
THUMB = 64  # px a side of what the network sees
STRIDES = {"0": 4, "2": 2, "4": 2}  # of the convolutions of benchmarks.fit_checks.make_network; layer 7 is linear
OUTLINE = 256  # px a side of the mask whose outline is compared
LEAST_SIDE = 64  # px of the film's shorter side: validation films shrunk so far lose 0.003 Dice, at 48 px 0.006
LEAST_CONTRAST = 8  # gray levels between the 1st and the 99th percentile
NEAR = 8  # gray levels: pixels so close to the lowest or the highest level count as that level
TWO_LEVELS = 0.95  # of a mask's pixels, or more, have one of the two levels; of a real film's .68 and less
COLOURED = 0.1  # share of pixels; a coloured mark or a letter on a film has less
# Log odds, in nats. The lowest of 70 adults' validation films had 9.0, of 215 children's 3.6; of the same taken
# otherwise, one in 100 had 0.8 or less, and -0.6.
CHEST, DOUBTFUL = 0.0, 4.0
SURE = 4.0  # of another position over the upright one; upright films had -4.8 and less, taken otherwise 2.6 and less
MIRRORED = 5.0  # of the mirrored film over the film; all validation films but one had 4.2 and less
CUT = 0.05  # of a side of the frame that lungs lie on; adults' validation masks lie on none
UNUSUAL = 2.2  # shape_distance; masks found in adults' validation films had 1.9 and less, children's true ones 2.2
NO_CHEST = "no frontal chest film: a lateral view, another body part, a small part of a film, a photograph?"
MASK = "a mask or a drawing, not a radiograph: nearly all of it has one of two or three gray levels"
NO_PHOTO = "a colour photograph, no chest film"
OBEYED = "put right as its file says"
TURNED = {  # by quarters of np.rot90
    1: "lay on its side: turned by 90° counter-clockwise",
    2: "upside down: turned by 180°",
    3: "lay on its side: turned by 90° clockwise",
}


@dataclass(frozen=True)
class Checked:
    """A film that stands upright with dark lungs, and what there is to say about it.

    Attributes:
        image: ``uint8 (H, W)``, corrected; H and W change places where the film lay on its side.
        lie: how the film lay.
        inverted: the film was a negative.
        problems: reasons not to segment it.
        notes: what was corrected, and what is worth a look.
        doubtful: hardly like a frontal chest film; it is none if :func:`check_lungs` has something to say too.
        sides: False where the patient's right may not be on the image's left: the film looks mirrored or may be turned.
    """

    image: np.ndarray
    lie: Lie = Lie()
    inverted: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    doubtful: bool = False
    sides: bool = True

    @property
    def turned(self) -> int:
        """Degrees counter-clockwise that the film was turned by: 0, 90, 180 or 270."""
        return 90 * self.lie.quarters

    def undo(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the corrected film, ``(H, W)``, as the film lay originally: no pixel changes, they only move."""
        return self.lie.undo(mask)


def check_film(image: np.ndarray, colour: np.ndarray | None = None, lie: Lie | None = None) -> Checked:
    """Says what is wrong with a film before it is segmented, and turns and inverts it where that is certain.

    What the file says of its lie is obeyed first. Where the film then surely lies on its side or upside down, the file
    is wrong, and what is seen counts alone. Which side is which can't be seen for sure: a film that only looks mirrored
    is left as it is and noted, as the heart may really be on the right.

    Args:
        image: ``uint8 (H, W)``, as read, negatives not inverted.
        colour: ``(H, W, 3)`` or ``(H, W, 4)``, what the film was before it became gray, if that was in colour.
        lie: how it lies by its file, None where that says nothing.
    """
    said = lie or Lie()
    image = said.put_right(image)
    problem = no_radiograph(image)
    if problem:
        return Checked(image, said, problems=(problem,))
    coloured = _colour_notes(colour)
    odds = view_odds(image)
    if _chest_odds(odds) < CHEST:
        return Checked(image, said, problems=(NO_PHOTO if coloured else NO_CHEST,), notes=coloured)
    if said != Lie() and _position(odds).quarters:
        seen = check_film(said.undo(image), colour)
        notes = ("doesn't lie as its file says: put right by what is seen alone", *seen.notes)
        return replace(seen, notes=notes, sides=seen.sides and not said.mirrored)
    return _put_right(image, said, odds, coloured)


def no_radiograph(image: np.ndarray) -> str:
    """Why an image is no radiograph at all; empty where it may be one."""
    height, width = image.shape
    if min(height, width) < LEAST_SIDE:
        return f"too small: {width}×{height} px, lungs need {LEAST_SIDE} px and more"
    if is_mask(image):
        return MASK
    if contrast(image) < LEAST_CONTRAST:
        return f"blank: nearly all of it within {LEAST_CONTRAST} gray levels"
    return ""


def _colour_notes(colour: np.ndarray | None) -> tuple[str, ...]:
    if colour is None:
        return ()
    share = coloured_share(colour)
    return (f"a picture in colour ({share:.0%} of it)",) if share > COLOURED else ()


def _put_right(image: np.ndarray, said: Lie, odds: np.ndarray, coloured: tuple[str, ...]) -> Checked:
    """A chest film turned upright and, if it is a negative, inverted; with notes that say so, the corrections first."""
    found = _position(odds)
    mirrored = bool(odds[found.negative, 1, found.quarters] - odds[found.negative, 0, found.quarters] > MIRRORED)
    doubtful = bool(_chest_odds(odds) < DOUBTFUL)
    upright = Lie(quarters=found.quarters).put_right(image)
    notes: list[str] = []
    if found.negative:
        upright = 255 - upright
        notes.append("a negative: inverted")
    if found.quarters:
        notes.append(TURNED[found.quarters])
    if said != Lie():
        notes.append(OBEYED)
    notes += coloured
    if doubtful:
        notes.append("hardly like a frontal chest film")
    if not found.sure:
        notes.append("perhaps turned or a negative: left as it is")
    elif mirrored:
        notes.append("mirrored, or the heart is on the right: left as it is")
    return Checked(
        upright,
        Lie(said.mirrored, (said.quarters + found.quarters) % 4),
        inverted=bool(found.negative),
        notes=tuple(notes),
        doubtful=doubtful,
        sides=found.sure and not mirrored,
    )


def is_negative(image: np.ndarray) -> bool:
    """Says whether a frontal chest film ``uint8 (H, W)`` surely has bright lungs, whichever way it lies."""
    odds = view_odds(image)
    return bool(_chest_odds(odds) >= CHEST and _position(odds).negative)


def is_mask(image: np.ndarray) -> bool:
    """Says whether an image ``uint8 (H, W)`` is a mask and no film: of two or three gray levels, or nearly of two."""
    counts = _histogram(image)
    levels = np.flatnonzero(counts)
    if len(levels) <= 3:
        return len(np.unique(image)) in (2, 3)
    near = np.minimum(levels - levels[0], levels[-1] - levels) <= NEAR
    return bool(counts[levels[near]].sum() > TWO_LEVELS * counts.sum() and contrast(image) >= LEAST_CONTRAST)


def check_lungs(mask: np.ndarray) -> tuple[str, ...]:
    """Says what is strange about the lungs found in a film: none, cut by the frame, not two, or of an unusual shape.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}, of an upright film.
    """
    if not mask.any():
        return ("no lung found",)
    notes = []
    cut = [side for side, share in frame_contact(mask).items() if share > CUT]
    if cut:
        notes.append(f"lungs cut by the frame ({', '.join(cut)})")
    distance = shape_distance(mask)
    if np.isinf(distance):
        notes.append("the lungs are not two, or have no corners")
    elif distance > UNUSUAL:
        notes.append(f"lungs of an unusual shape or place ({distance:.1f} sd)")
    return tuple(notes)


def contrast(image: np.ndarray) -> float:
    """Gray levels between the 1st and the 99th percentile of a film ``uint8 (H, W)``."""
    below = _histogram(image).cumsum()
    low, high = np.searchsorted(below, (0.01 * below[-1], 0.99 * below[-1]))
    return float(high - low)


def _histogram(image: np.ndarray) -> np.ndarray:
    """How many pixels of a film ``uint8 (H, W)`` have each of the 256 gray levels, faster than sorting."""
    return cv2.calcHist([_sampled(image)], [0], None, [256], [0, 256]).ravel().astype(int)


def _sampled(image: np.ndarray) -> np.ndarray:
    """Every k-th pixel of a large film, which say the same at a fraction of the time."""
    step = max(1, min(image.shape[:2]) // 256)
    return image[::step, ::step]


def coloured_share(colour: np.ndarray) -> float:
    """Share of pixels whose colour stands out by more than an eighth of the range, after an even tint is taken off.

    Args:
        colour: ``(H, W, 3)`` or ``(H, W, 4)``, of any depth.
    """
    small = _sampled(colour)[..., :3].astype(np.float32)
    small /= small.max() + 1e-6
    chroma = small - small.mean(-1, keepdims=True)
    gray = small.mean(-1, keepdims=True)
    # Sepia or blue film has a tint that grows with brightness: what is left of a line through the origin counts.
    tint = (chroma * gray).sum((0, 1)) / ((gray**2).sum() + 1e-6)
    return float((np.ptp(chroma - tint * gray, axis=-1) > 1 / 8).mean())


def frame_contact(mask: np.ndarray) -> dict[str, float]:
    """Share of each side of the frame that lungs lie on, of a mask ``(H, W)`` in {0, 1}."""
    edges = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    return {side: float(edge.mean()) for side, edge in edges.items()}


def shape_distance(mask: np.ndarray) -> float:
    """How far the lungs' outlines are from those of the training masks, in standard deviations: about 1 is usual.

    Landmarks of both lungs in units of the frame (so size and place count too), as scores of the principal modes of the
    training masks' landmarks: root mean square of each score over its deviation, with all that the modes don't reach as
    one more score.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}, of an upright film.

    Returns:
        The distance; infinite where there are no two lungs with the corners of lungs.

    Source: Cootes, Taylor, Cooper & Graham 1995, Active shape models; Moghaddam & Pentland 1997, Probabilistic visual
    learning for object representation (the term outside the modes).
    """
    check_mask(mask)
    points = landmarks(resize_mask(mask, OUTLINE))
    if points is None:
        return float("inf")
    return float(distances(points.reshape(1, -1), _models())[0])


def distances(points: np.ndarray, model: dict[str, np.ndarray]) -> np.ndarray:
    """:func:`shape_distance` of landmarks ``(N, 4 * POINTS)`` by a model's ``mean``, ``modes``, ``sd`` and ``rest``."""
    off = points - model["mean"]
    scores = off @ model["modes"].T
    rest = ((off - scores @ model["modes"]) ** 2).sum(1) / model["rest"]
    return np.sqrt((((scores / model["sd"]) ** 2).sum(1) + rest) / (len(model["sd"]) + 1))


def view_odds(image: np.ndarray) -> np.ndarray:
    """Log odds that each view of a film is an upright frontal chest film.

    Args:
        image: ``uint8 (H, W)``.

    Returns:
        ``float32 (2, 2, 4)``: as it is or negative, mirrored or not, turned by so many quarters counter-clockwise.
    """
    model = _models()
    films = views(thumbnail(image)).reshape(16, 1, THUMB, THUMB)
    for layer, stride in STRIDES.items():
        films = _conv(films, model[f"{layer}.weight"], model[f"{layer}.bias"], stride)
    return (films.reshape(16, -1) @ model["7.weight"].T + model["7.bias"]).reshape(2, 2, 4)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The film at THUMB×THUMB with zero mean and unit deviation, ``float32``: its negative has the other sign."""
    small = cv2.resize(_sampled(image), (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    return small / (small.std() + 1e-3)


def views(thumb: np.ndarray) -> np.ndarray:
    """The 16 views of a thumbnail, ``float32 (2, 2, 4, THUMB, THUMB)``, in :func:`view_odds`' order."""
    turns = np.stack([np.rot90(thumb, quarters) for quarters in range(4)])
    both = np.stack([turns, turns[..., ::-1]])
    return np.stack([both, -both])


@lru_cache(maxsize=1)
def _models() -> dict[str, np.ndarray]:
    with np.load(ASSET) as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def _chest_odds(odds: np.ndarray) -> float:
    """Log odds that a film is a frontal chest film, whichever way it lies, by its :func:`view_odds`."""
    return float(np.logaddexp.reduce(odds, axis=None))


class _Position(NamedTuple):
    """How a film lies: whether it is a negative (0 or 1), and the quarters that turn it upright; both 0 if not sure."""

    negative: int
    quarters: int
    sure: bool


def _position(odds: np.ndarray) -> _Position:
    """How a film lies by its :func:`view_odds`."""
    positions = np.logaddexp(odds[:, 0], odds[:, 1])  # whether it is mirrored matters to neither
    if 0 < positions.max() - positions[0, 0] < SURE:
        return _Position(0, 0, sure=False)
    negative, quarters = np.unravel_index(positions.argmax(), positions.shape)
    return _Position(int(negative), int(quarters), sure=True)


def _conv(films: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """A convolution, padded as in :func:`quality.benchmarks.fit_checks.make_network`, and ReLU; ``(B, C, H, W)``."""
    edge = weight.shape[-1] // 2
    padded = np.pad(films, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    patches = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    patches = patches.transpose(0, 1, 4, 5, 2, 3)
    batch, rows = len(films), patches.shape[-2]
    # A product for each view: so small that BLAS starts no threads, which would wait for each other on a busy machine.
    found = weight.reshape(len(weight), -1) @ patches.reshape(batch, -1, rows * patches.shape[-1])
    return np.maximum(found + bias[:, None], 0).reshape(batch, len(weight), rows, -1)
