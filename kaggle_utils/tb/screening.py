"""Step two: presumptive tuberculosis. A probability from the lung region, where it comes from, or why there is none.

A research demonstration, no medical device. :mod:`tb.data` cuts the lungs out, :mod:`tb.net` is the network and its
heat map, :mod:`tb.fit` fits its head; this module puts them behind the segmenter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from ..files import printable, write_bytes
from ..hardware import choose_device
from ..image import resize_mask, write_image
from ..infer import LungSegmenter, Segmented, Unsegmented, segment_films
from ..model import read_header
from ..pictures.find import find_files
from ..pictures.overlay import draw_overlay
from ..predictions import segment_into
from ..tables import to_csv
from .data import BOXED, FILM, from_letter_box, lung_box, lung_fields, view
from .fit import as_input, describe_films, levels
from .net import load_tb

SCREENING_COLUMNS = ("name", "path", "probability", "label", "quality", "flag", "reason", "notes", "overlay")
TB_WEIGHTS = Path(__file__).parents[1] / "weights" / "tb.safetensors"
PRESUMPTIVE, CLEAR = "presumptive", "not presumptive"  # tuberculosis, in the label column
ADULT = 15  # years, from which on there is a probability, as WHO has it for computer-aided detection (2021)
NO_FIELDS = "screening looks at lung fields, and these weights outline the lungs with the heart alone"
LEAST = 20  # films of a hospital, by whose own levels it may be standardised
_STRIP = 512  # rows that are coloured at once: of fractions, a film of 64 megapixels would take 4 GB


class TBScreener:
    """A segmenter and the classifier that looks at the lungs it finds.

    Args:
        weights: of the classifier, a file of ``model.save_weights``; None is the one that ships with the package.
        segmenter: finds the lungs; None is a :class:`infer.LungSegmenter` with its own defaults.
        device: auto, cpu, cuda, cuda:N or mps (a Mac's GPU).

    Attributes:
        threshold: the probability from which on tuberculosis is presumed, fixed on validation films.
        head: the segmenter's, whose masks the classifier looks at: that of lung fields, which it learned from, whatever
            head the segmenter follows otherwise; None where all masks take the heart in. A set of one's own, whose
            convention nobody knows, keeps its head.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: damaged weights, or weights of another network.
    """

    def __init__(
        self, weights: str | Path | None = None, *, segmenter: LungSegmenter | None = None, device: str = "auto"
    ):
        path = Path(weights or TB_WEIGHTS)
        self.header = read_header(path, members=True)
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:16]  # weights are told apart by their content
        missing = {"variant", "size", "temperature", "threshold"} - set(self.header)
        if missing:
            lacks = " and no ".join(sorted(missing))
            reason = f"not weights of the tuberculosis classifier, perhaps a segmenter's (no {lacks} in the header)"
            raise ValueError(f"{path}: {reason}")
        self.variant, self.size = self.header["variant"], self.header["size"]
        self.temperature, self.threshold = self.header["temperature"], self.header["threshold"]
        net = load_tb(path).requires_grad_(False)
        self.net = net.to(choose_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.segmenter = segmenter or LungSegmenter(device=device)
        conventions, own = self.segmenter.conventions, self.segmenter.head
        self.head = conventions.get("lung-field") if own in conventions.values() else own

    def fields(self) -> LungSegmenter:
        """The segmenter, following the head whose masks the classifier looks at.

        Raises:
            ValueError: it knows no lung fields.
        """
        if self.head is None:
            raise ValueError(NO_FIELDS)
        return self.segmenter.with_head(self.head)

    def calibrate(self, patterns: Iterable[str | Path]) -> int:
        """Standardises by a hospital's own films from now on: its machines' levels stop counting as disease.

        Films need no labels, but should be as they come: about as many sick among them as where the classifier learned,
        a half, or its probabilities are off.

        Args:
            patterns: files, folders and globs; films that would get no probability are left out.

        Returns:
            How many films it took.

        Raises:
            FileNotFoundError: a pattern names nothing.
            ValueError: there are fewer than :data:`LEAST` of use, or the segmenter knows no lung fields.
        """
        described = [
            self._describe([found.film.checked.image], [found.upright])[0]
            for found in segment_films(find_files(patterns), self.fields())
            if isinstance(found, Segmented) and not why_not(found)
        ]
        if len(described) < LEAST:
            said = f"{len(described)} radiographs to calibrate on get a probability"
            raise ValueError(f"{said}: give {LEAST} or more of the same hospital")
        for ours, theirs in zip((self.net.mean, self.net.deviation), levels(np.stack(described)), strict=True):
            ours.copy_(torch.from_numpy(theirs))
        self.version += hashlib.sha256(self.net.mean.cpu().numpy().tobytes()).hexdigest()[:16]
        return len(described)

    def _describe(self, films: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        return describe_films(self.net, films, masks, self.variant, self.size)

    def probabilities(self, films: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """Calibrated probability of tuberculosis of films with lungs.

        Args:
            films: each ``uint8 (H, W)``, upright, of any size.
            masks: their lungs, ``uint8 (H, W)`` in {0, 1}.

        Returns:
            ``float32 (N,)``.

        Raises:
            ValueError: a film has no lungs.
        """
        described = torch.from_numpy(self._describe(films, masks)).to(self.net.mean.device)
        return expit(self.net.classify(described).cpu().numpy() / self.temperature)

    def heat(self, film: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """What raised the probability, place by place, by :meth:`tb.net.TBNet.heat`; 0 outside each lung's convex hull.

        Args:
            film, mask: as for :meth:`probabilities`.

        Returns:
            ``float32 (H, W)`` in [0, 1], 1 at the film's hottest place; all 0 where nothing spoke for tuberculosis.
        """
        warm = self.net.heat(*as_input(*view(film, mask, self.variant, self.size), self.net))[0].cpu().numpy()
        small = resize_mask(mask, FILM)
        box = lung_box(lung_fields(small)) if self.variant in BOXED else np.s_[:FILM, :FILM]
        warm = from_letter_box(warm, box, small.shape) * lung_fields(small, margin=0)
        warm = cv2.resize(warm, film.shape[::-1])
        return warm / max(float(warm.max()), 1e-6)


def why_not(found: Segmented | Unsegmented) -> str:
    """Why a film gets no probability: there is no mask, or one of no use, or it is a child's; empty where it gets
    one."""
    if isinstance(found, Unsegmented):
        return found.error.removeprefix(f"{found.path}: ")
    if found.film.age is not None and found.film.age < ADULT:
        return f"not for children under {ADULT}, of whom the classifier saw few"
    if found.quality and found.quality.flag == "reject":
        return "; ".join(found.quality.reasons)
    return ""


def screen(patterns: Iterable[str | Path], out: str | Path, screener: TBScreener, *, batch: int = 8) -> pd.DataFrame:
    """Screens files; one that can't be read, is no chest film or has no lungs to look at is a row with the reason.

    Rows are in ``screening.jsonl`` as they come, and a run that was stopped resumes, as in :func:`predictions.predict`.

    Args:
        patterns: files, folders and globs, as for :func:`predictions.predict`.
        out: gets ``screening.csv`` and ``overlays/NAME.png``: the film, upright, with its lungs' outline and, inside
            it, what raised the probability, the stronger the more probable.
        screener: with which weights.
        batch: films at once.

    Returns:
        The table: name, path, probability (missing where none is given), label (``presumptive`` tuberculosis from
        the operating point on, else ``not presumptive``; empty without a probability), quality and flag of the mask
        (see :mod:`quality.flags`; what it rejects gets no probability), reason why there is none, notes (what
        reading and the checks found and did), overlay.

    Raises:
        FileNotFoundError: a pattern names nothing.
        ValueError: the segmenter knows no lung fields, or results would replace what is not of an earlier run.
        OSError: ``out`` can't be written.
    """
    segmenter, out = screener.fields(), Path(out)
    return segment_into(
        out / "screening.csv",
        patterns,
        segmenter,
        columns=SCREENING_COLUMNS,
        outputs=["overlays/{}.png"],
        removed=["overlays/{}.png"],
        settings={"screener": screener.version, "from_age": ADULT},
        finish=lambda results, _: _screen(results, out, screener),
        write_tables=lambda rows: _write_table(rows, out),
        batch=batch,
    )


def _write_table(rows: list[dict[str, Any]], out: Path) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=SCREENING_COLUMNS)
    write_bytes(out / "screening.csv", to_csv(table))
    return table


def draw_heat(image: np.ndarray, mask: np.ndarray, heat: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """The film with the outline of its lungs (orange) and, in reds and yellows, a heat map.

    Args:
        image: ``uint8 (H, W)``.
        mask: ``uint8 (H, W)`` in {0, 1}.
        heat: ``float32 (H, W)`` in [0, 1].
        strength: how much of the film the hottest place hides, in [0, 1].

    Returns:
        ``uint8 (H, W, 3)``, BGR.
    """
    drawn = draw_overlay(image, mask)
    for top in range(0, len(image), _STRIP):
        rows = slice(top, top + _STRIP)
        gray, hot, outlined = image[rows, :, None], heat[rows], drawn[rows]
        colour = cv2.applyColorMap((255 * hot).astype(np.uint8), cv2.COLORMAP_INFERNO)
        share = (0.7 * strength * hot)[..., None]
        mixed = ((1 - share) * gray + share * colour).round().astype(np.uint8)
        film = (outlined == gray).all(-1)  # and no line
        outlined[film] = mixed[film]
    return drawn


def _screen(results: list[Segmented | Unsegmented], out: Path, screener: TBScreener) -> list[dict[str, Any]]:
    """Rows of one batch, in order; writes the overlays."""
    rows, films = [], []  # the films are those that get a probability, with their rows
    for result in results:
        reason = why_not(result)
        row = {**result.row, "label": "", "reason": printable(reason)}
        rows.append(row)
        if isinstance(result, Segmented) and not reason:
            films.append((result, row))
    if films:
        images = [film.film.checked.image for film, _ in films]
        probabilities = screener.probabilities(images, [film.upright for film, _ in films])
        for (film, row), probability in zip(films, probabilities):
            row |= _label(film, float(probability), out, screener)
    return rows


def _label(found: Segmented, probability: float, out: Path, screener: TBScreener) -> dict[str, Any]:
    """Writes a film's overlay; what its probability adds to its row."""
    image, mask = found.film.checked.image, found.upright
    path = out / "overlays" / f"{found.name}.png"
    write_image(path, draw_heat(image, mask, screener.heat(image, mask), probability))
    return {
        "probability": round(probability, 4),
        "overlay": printable(path),
        "label": PRESUMPTIVE if probability >= screener.threshold else CLEAR,
    }
