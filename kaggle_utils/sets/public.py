"""The public sets, recognised by their file names wherever they lie: Montgomery, Shenzhen, JSRT/SCR, Kermany.

What a file is (radiograph, whole mask, left or right mask) is told by the folder that it lies in, so any nesting works:
``/kaggle/input/<slug>``, ``/kaggle/input/datasets/<owner>/<slug>`` or a folder of your own. Kermany's masks, which
V7 Labs published by numbers of their own, come with this package.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..files import check_input, printable
from ..pictures.find import claims_film, may_hide_films, walk, without_suffix
from ..splits import LISTS
from .film import RawFilm, RunLengths

_NAMES = re.compile(  # of radiographs; those of the tuberculosis sets end with their label
    r"(?P<montgomery>MCUCXR_\d{4,6}_[01])|(?P<shenzhen>CHNCXR_\d{4,6}_[01])|(?P<jsrt>JPC(LN|NN)\d{3})", re.I
)
KERMANY_MASKS = Path(__file__).with_name("kermany_masks.npz")
_KERMANY_FOLDERS = {"normal", "pneumonia"}  # a name alone won't do: scanners number films IM-0001-0001, too
# Folders of masks, of one lung or of both.
_MASKS = re.compile(r"(?P<side>left|right)(mask| lung)|(manual)?mask|masks", re.I)
# SCR ships these beside the lungs.
_OTHER_ORGANS = {"heart", "left clavicle", "right clavicle"}


def find_films(root: str | Path) -> list[RawFilm]:
    """Finds the radiographs of the public sets anywhere under a folder.

    Files are paired by stem. Of several copies of one file (the public sets overlap) the first in path order counts.

    Args:
        root: the input folder.

    Returns:
        Films in the order of their names; one may lack its image or its masks. After them, folders and links that
        can't be searched, as films without a source: they can't be read either.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it belongs to a known set.
    """
    check_input(root)
    root = Path(root)
    films: dict[str, RawFilm] = {}
    hidden = []
    for path in _files(root):
        stem = re.sub(r"(_mask)?(\.txt)?$", "", without_suffix(path.name), flags=re.I)
        found, role = _NAMES.fullmatch(stem), _role(path.relative_to(root))
        if found and role:
            name, source = stem.upper(), found.lastgroup or ""
            tb = None if source == "jsrt" else int(name[-1])
            fit = "aspect" if source == "jsrt" else "size"
            films.setdefault(name, RawFilm(name, source, tb, fit=fit)).files.setdefault(role, path)
        elif path.parent.name.lower() in _KERMANY_FOLDERS and stem in _kermany():
            films.setdefault(stem, _kermany_film(stem)).files.setdefault("image", path)
        elif not found and may_hide_films(path):
            hidden.append(RawFilm(printable(path.relative_to(root)), "", files={"image": path}))
    films = {name: film for name, film in films.items() if set(film.files) != {"text"}}
    if not films:
        sets = (
            "Montgomery (MCUCXR_0001_0.png), Shenzhen (CHNCXR_0001_0.png), JSRT (JPCLN001.png) or Kermany "
            "(NORMAL/IM-0117-0001.jpeg)"
        )
        unseen = f"; {hidden[0].files['image']} can't be searched" if hidden else ""
        raise FileNotFoundError(f"{root}: no film of {sets} in it{unseen}; --images and --masks take any names")
    return [films[name] for name in sorted(films)] + hidden


def kermany_list() -> pd.DataFrame:
    """Kermany's radiographs that have a mask: name, split, label (normal, bacteria, virus) and V7's number."""
    return pd.read_csv(LISTS / "segmentation_kermany.csv")


@cache
def _kermany() -> dict[str, RunLengths]:
    """The mask of each radiograph by its name."""
    with np.load(KERMANY_MASKS) as packed:
        runs, n, shapes = packed["runs"], packed["n"], packed["shapes"]
    names = kermany_list()["name"]
    pieces = np.split(runs, np.cumsum(n)[:-1])
    return {
        name: RunLengths(piece, (int(height), int(width)), where=f"{KERMANY_MASKS.name}, {name}")
        for name, piece, (height, width) in zip(names, pieces, shapes, strict=True)
    }


def _kermany_film(name: str) -> RawFilm:
    patient = re.match(r"person\d+|(NORMAL2-)?IM-\d+", name)
    return RawFilm(name, "kermany", runs=[_kermany()[name]], fit="any", patient=patient and patient[0])


def _files(root: Path) -> list[Path]:
    """Radiographs and texts in the order of their paths; neither prepared sets nor synthetic radiographs, which are
    nobody's raw films."""
    paths = walk(root, unless=("prep.json", "drawn"))
    return sorted(
        path for path in paths if path.suffix.lower() == ".txt" or claims_film(path.name) or may_hide_films(path)
    )


def _role(path: Path) -> str | None:
    folders = path.parts[:-1]
    if path.suffix.lower() == ".txt":
        return "text"
    if _OTHER_ORGANS & {name.lower() for name in folders}:
        return None
    for name in reversed(folders):
        found = _MASKS.fullmatch(name)
        if found:
            return (found["side"] or "mask").lower()
    return "mask" if without_suffix(path.name).lower().endswith("_mask") else "image"


def read_clinical(path: str | Path) -> tuple[str | None, float | None]:
    """Reads sex ("M", "F", "O" or None) and age (years or None) from a set's clinical text, however it is spelt.

    Montgomery writes ``Patient's Sex: F`` and ``Patient's Age: 027Y``, Shenzhen ``male 45yrs``, ``femal 32yrs``,
    ``female24yrs``, ``male 16month``, ``64days`` or ``male 42``. The TB label comes from the file name, not from here.
    """
    text = Path(path).read_text(errors="replace").lower()
    sex = re.search(r"sex:\s*([mfo])", text) or re.search(r"\b(m|f)(?:emal|al)", text)
    age = re.search(r"(\d+)\s*(day|mon|y|$)|age:\s*(\d+)", text, re.M)
    if not age:
        return sex and sex[1].upper(), None
    years = int(age[1] or age[3]) / {"day": 365.25, "mon": 12}.get(age[2], 1)
    return sex and sex[1].upper(), round(years, 2)
