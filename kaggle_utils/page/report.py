"""A radiograph's report as HTML, and the choice between its masks.

Where the network has heads of both conventions, a report carries the masks of both, and the style sheet shows the one
that is chosen: there is no second request, and no radiograph is kept for one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ..image import encode_image, resize_image, resize_mask
from ..infer import LungSegmenter, Result, Segmented, Unsegmented, read_checked, segment
from ..pictures.overlay import LEFT, RIGHT, draw_outlines
from ..quality import MEASUREMENTS, SIDES, measure, split_lungs
from ..tables import to_csv
from ..tb import CLEAR, NO_FIELDS, PRESUMPTIVE, TBScreener, draw_heat, why_not
from .words import FLAGS, plain

SHOWN = 1024  # px, the longer side of the picture in a report; the mask has the film's own size
CHOICES = {"lung-field": "Lung fields", "with-heart": "With the heart"}
OUTLINED = {  # what masks are of, by convention; nobody knows that of a set of one's own
    "lung-field": "The lung fields, without what the heart hides.",
    "with-heart": "The lungs, with what the heart hides.",
    "": "The lungs.",
}
_FOR_RESEARCH = "Tuberculosis, for research"
SCREENED = {"lung-field": _FOR_RESEARCH, "with-heart": f"{_FOR_RESEARCH}, by the lung fields", "": _FOR_RESEARCH}
# What a report shows of a measured mask: of each lung, with a spacing and without one, and of both.
IN_MM = {"Area, cm²": "{area_cm2:,.0f}", "Height, mm": "{height_mm:,.0f}", "Width, mm": "{width_mm:,.0f}"}
IN_PX = {"Area, px": "{area_px:,.0f}", "Height, px": "{height_px:,.0f}", "Width, px": "{width_px:,.0f}"}
POINTS = {
    "Apex at row, column": "{apex_row:.0f}, {apex_column:.0f}",
    "Costophrenic angle at": "{costophrenic_row:.0f}, {costophrenic_column:.0f}",
}
BOTH = {
    "Lungs found": "{lungs}",
    "Share of the film": "{lung_share:.1%}",
    "Left over right area": "{left_right_ratio:.2f}",
    "Symmetry": "{symmetry:.2f}",
    "Tilt, clockwise": "{tilt_deg:.1f}°",
}

_KEY = f"<b style='color:{RIGHT}'>■</b> right, <b style='color:{LEFT}'>■</b> left"


def choice(segmenter: LungSegmenter) -> str:
    """The choice between a report's masks, as HTML; empty where the network has one convention."""
    heads, options = _heads(segmenter), []
    if len(heads) == 1:
        return ""
    for convention, label in CHOICES.items():
        checked = " checked" if heads[convention] == segmenter.head else ""
        button = f"<input type='radio' name='convention' value='{convention}'{checked}>"
        options.append(f"<label>{button} {label}</label>")
    return f"<fieldset><legend>Outline</legend>{''.join(options)}</fieldset>"


def report(name: str, data: bytes, screener: TBScreener, age: float | None = None) -> str:
    """A film's report: picture, tables, notes, and mask and measurements to download, or why there are none. All of it
    for each convention that the network has.

    Args:
        name: of the film's file.
        data: what is in the file.
        screener: finds the lungs, with its own segmenter, and gives the probability of tuberculosis.
        age: of the patient, years, where it is known and not in the file.
    """
    film, segmenter = read_checked(data, name), screener.segmenter
    if isinstance(film, Unsegmented):
        return _refusal(film)
    if age is not None:
        film = replace(film, age=age)
    heads = _heads(segmenter)
    probs = segmenter.probabilities([film.checked.image] * len(heads), list(heads.values()))
    found = {head: segment(film, prob, segmenter.with_head(head)) for head, prob in zip(heads.values(), probs)}
    screened = (NO_FIELDS, "") if screener.head is None else _screened(found[screener.head], screener)
    return "".join(_report(found[head], convention, screened, len(heads)) for convention, head in heads.items())


def _heads(segmenter: LungSegmenter) -> dict[str, str]:
    """The heads of a report's masks, by convention; the segmenter's own alone where nobody knows its convention."""
    conventions = segmenter.conventions
    return conventions if segmenter.head in conventions.values() else {"": segmenter.head}


def _report(found: Result, convention: str, screened: tuple[str, str], masks: int) -> str:
    """What is reported of one mask.

    Args:
        found: the mask, or why there is none.
        convention: that the mask follows, of ``OUTLINED``; the style sheet knows it by this name.
        screened: what step two says of the film, and its heat map.
        masks: how many the report has.
    """
    if isinstance(found, Unsegmented):
        return _refusal(found, convention)
    mask, spacing, quality = found.upright, found.film.spacing_mm, found.quality
    measured = measure(mask, spacing)
    facts = {
        "Film": [f"{mask.shape[1]} × {mask.shape[0]} px"],
        "Dice, estimated": [f"{quality.estimate:.2f} ({FLAGS[quality.flag]})" if quality else "–"],
        **{name: [_fill(form, measured)] for name, form in BOTH.items()},
        SCREENED[convention]: [escape(screened[0])],
    }
    notes = [plain(note) for note in (*(quality.reasons if quality else ()), *found.notes)]
    stem = Path(found.name).stem
    table = pd.DataFrame([{"name": stem, **measured}], columns=["name", *MEASUREMENTS]).round(4).convert_dtypes()
    file = escape(f"{stem}_{convention}" if masks > 1 else stem)
    return f"""<article class='report {convention}'>
      <figure><img alt='The film with its lungs outlined' src='{data_url("image/jpeg", _picture(found))}'>
        <figcaption>{OUTLINED[convention]} The patient's right lung is on the left: {_KEY}.</figcaption>
        {screened[1]}</figure>
      <div><p role='alert'>{escape(found.name)} is outlined.</p><h2>{escape(found.name)}</h2>
        {_lungs(measured, IN_MM if spacing else IN_PX)}
        {_table("Both, and the film", facts)}{_notes(notes)}
        <p class='downloads'>
          <a download='{file}_mask.png' href='{data_url("image/png", _mask(found))}'>Mask (PNG)</a>
          <a download='{file}_overlay.png' href='{data_url("image/png", _overlay(found))}'>Overlay (PNG)</a>
          <a download='{file}_measurements.csv' href='{data_url("text/csv", to_csv(table))}'>Measurements (CSV)</a>
        </p></div></article>"""


def _refusal(film: Unsegmented, convention: str = "") -> str:
    return f"<p class='refusal {convention}' role='alert'>{escape(film.error)}</p>"


def _picture(found: Segmented) -> bytes:
    """The upright film with its lungs outlined, no larger than ``SHOWN``."""
    shape = _shown(found.upright)
    lungs = [resize_mask(lung, shape) for lung in split_lungs(found.upright)]
    return encode_image(_draw(resize_image(found.film.checked.image, shape), lungs), ".jpg")


def _shown(image: np.ndarray) -> tuple[int, int]:
    """Rows and columns of a picture in a report."""
    scale = min(1, SHOWN / max(image.shape))
    return max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))


def _overlay(found: Segmented) -> bytes:
    """The upright film at its own size with its lungs outlined."""
    return encode_image(_draw(found.film.checked.image, split_lungs(found.upright)), ".png")


def _draw(image: np.ndarray, lungs: Sequence[np.ndarray]) -> np.ndarray:
    return draw_outlines(image, dict(zip((RIGHT, LEFT), lungs)))


def _mask(found: Segmented) -> bytes:
    return encode_image(found.mask * np.uint8(255), ".png")


def _screened(fields: Result, screener: TBScreener) -> tuple[str, str]:
    """What step two says of a film by the mask of its lung fields, and its heat map as HTML; empty where it says
    nothing."""
    reason = why_not(fields)
    if reason or isinstance(fields, Unsegmented):
        return reason, ""
    image, mask = fields.film.checked.image, fields.upright
    probability = float(screener.probabilities([image], [mask])[0])
    label = PRESUMPTIVE if probability >= screener.threshold else CLEAR
    shape = _shown(mask)
    heat = cv2.resize(screener.heat(image, mask), shape[::-1])
    drawn = draw_heat(resize_image(image, shape), resize_mask(mask, shape), heat, probability)
    picture = f"<img alt='The film with a heat map' src='{data_url('image/jpeg', encode_image(drawn, '.jpg'))}'>"
    details = f"<details><summary>What raised the probability of tuberculosis</summary>{picture}</details>"
    return f"{probability:.2f} ({label}, from {screener.threshold:.2f} on it is presumptive)", details


def _lungs(measured: dict[str, float], sizes: dict[str, str]) -> str:
    """What was measured of each lung."""
    head = "<thead><tr><td></td><th scope='col'>Right lung</th><th scope='col'>Left lung</th></tr></thead>"
    lungs = []
    for side in SIDES:
        lung = {name.removeprefix(f"{side}_"): value for name, value in measured.items() if name.startswith(side)}
        lungs.append(lung | {"area_cm2": lung["area_mm2"] / 100})
    lines = {name: [_fill(form, lung) for lung in lungs] for name, form in (sizes | POINTS).items()}
    return _table("Each lung", lines, head)


def _fill(form: str, numbers: dict[str, float]) -> str:
    """A text with numbers in it, a dash for each that is undefined."""
    return re.sub("nan[%°]?", "–", form.format(**numbers))


def _table(caption: str, lines: dict[str, list[str]], head: str = "") -> str:
    rows = []
    for name, values in lines.items():
        cells = "".join(f"<td>{value}</td>" for value in values)
        rows.append(f"<tr><th scope='row'>{name}</th>{cells}</tr>")
    return f"<table><caption>{caption}</caption>{head}<tbody>{''.join(rows)}</tbody></table>"


def _notes(notes: list[str]) -> str:
    if not notes:
        return ""
    return f"<h3>Notes</h3><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"


def data_url(kind: str, content: bytes) -> str:
    """A link that holds what it links to, of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
