"""Gray levels to a mask of the lungs: which of them are lung, where the file may be soft, JPEG, or a map of labels."""

from __future__ import annotations

import cv2
import numpy as np

_MOST_LABELS = 16  # a mask of more grays has soft edges, or was JPEG
_MOST_EDGE = 0.2  # of a mask's pixels: a soft edge has fewer, a radiograph more
_LABEL = 0.005  # share of such a mask: a gray that fills less in one piece is no label


def to_mask(gray: np.ndarray) -> np.ndarray:
    """Gray levels ``(H, W)`` of any real type as a mask in {0, 1}: the lungs are of one gray, or of two, a label each.

    The lowest gray is the background. A label is a gray that fills an area; grays along an edge, or of JPEG's ringing,
    fill none: from half-way between the background and the lowest label on they are lung.

    Raises:
        ValueError: it has more than two labels, or is no mask but a picture.
    """
    bottom, top = float(gray.min()), float(gray.max())
    if bottom == top:
        return np.full(gray.shape, top > 0, np.uint8)
    place = (gray.astype(np.float32) - bottom) / (top - bottom)
    labels = [*_labels_between(gray, bottom, top), top]
    edges = (place > 1 / 4) & (place < 3 / 4)
    if len(labels) == 1 and edges.mean() > _MOST_EDGE:
        raise ValueError(f"a picture in shades of gray ({edges.mean():.0%} of it), no mask")
    if len(labels) > 2:
        names = ", ".join(f"{label:g}" for label in labels)
        raise ValueError(f"a label map of {len(labels)} labels ({names}): which are lungs? Name them (prep --labels)")
    return (gray > (bottom + labels[0]) / 2).astype(np.uint8)


def _labels_between(gray: np.ndarray, bottom: float, top: float) -> list[float]:
    """Grays between the lowest and the highest that fill an area."""

    def area(level: float) -> np.ndarray:
        return (gray == level).astype(np.uint8)

    levels, counts = _histogram(gray)
    place = (levels - bottom) / (top - bottom)
    if len(levels) <= _MOST_LABELS:
        near = 1 / 32 if len(levels) > 3 else 0  # what JPEG leaves of 0 and 255 may fill areas too
        between = levels[(place > near) & (place < 1 - near)].tolist()
        # An edge is thin; a small lung isn't.
        return [level for level in between if cv2.erode(area(level), np.ones((5, 5), np.uint8)).any()]
    # Edges, or JPEG: the background may be a little higher, and a label is several neighbouring grays.
    labels: list[float] = []
    least, apart = _LABEL * gray.size, (top - bottom) / 16
    for level in levels[(counts >= least) & (place > 1 / 8) & (place < 15 / 16)].tolist():
        if labels and level - labels[-1] < apart:
            continue
        pieces = cv2.connectedComponentsWithStats(area(level), connectivity=4)[2][1:, cv2.CC_STAT_AREA]
        if pieces.max() >= least:
            labels.append(level)
    return labels


def _histogram(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The levels of an image, rising, and how many pixels have each."""
    if gray.dtype not in (np.uint8, np.uint16):
        return np.unique(gray, return_counts=True)
    bins = 1 << 8 * gray.itemsize
    counts = cv2.calcHist([gray], [0], None, [bins], [0, bins]).ravel()  # many times faster
    levels = np.flatnonzero(counts)
    return levels, counts[levels]
