"""Where a notebook finds its films, and what earlier notebooks wrote: on Kaggle, in a clone, or with nothing at all.

UNET_LUNG_INPUT=DIR    a folder with the raw sets, wherever it is
/kaggle/input          what is attached to a kernel, in Kaggle's old and nested layouts
neither                synthetic radiographs, drawn in seconds
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..prep import prepare
from ..sets import find_films
from ..splits import SYNTHETIC
from ..synthetic import write_raw

KAGGLE = Path("/kaggle")
CLONE = Path(__file__).parents[2]
DEPTH = 4  # most levels between /kaggle/input and what a kernel wrote: notebooks/OWNER/KERNEL/built_in


@dataclass(frozen=True)
class Workspace:
    """A notebook's folders.

    Attributes:
        raw: with the raw sets, in any nesting.
        work: where notebooks write, and look for what earlier ones wrote.
        synthetic: they are synthetic radiographs, few enough for a laptop's minute.
    """

    raw: Path
    work: Path
    synthetic: bool

    def __str__(self) -> str:
        return "synthetic radiographs, which show nobody" if self.synthetic else f"films in {self.raw}"

    def find(self, name: str, made_by: str) -> Path:
        """What an earlier notebook wrote: here, or as the output of a kernel that is attached to this one.

        Args:
            name: of a file or a folder.
            made_by: the notebook that writes it.

        Raises:
            FileNotFoundError: it is nowhere; the message names that notebook.
        """
        here = self.work / name
        found = here if here.exists() else _find_attached(name)
        if found is None:
            raise FileNotFoundError(
                f"{name} is neither in {self.work} nor attached: run {made_by} first, on Kaggle attach its output"
            )
        return found

    def prepared(self) -> Path:
        """The prepared set that the first notebook wrote; prepared here where there is none."""
        try:
            return self.find("segmentation/manifest.csv", made_by="01_prep").parent
        except FileNotFoundError:
            prepare(self.raw, self.work / "segmentation")
            return self.work / "segmentation"

    def restore(self, folder: str) -> None:
        """Brings back what an earlier session of this notebook wrote, if its output is attached, so that it resumes."""
        found = _find_attached(folder)
        if found and not (self.work / folder).exists():
            shutil.copytree(found, self.work / folder)


def open_workspace(*, films: int = 60) -> Workspace:
    """Decides once what a notebook works on.

    Args:
        films: how many synthetic radiographs are drawn where there is nothing else, 256 px a side.

    Raises:
        FileNotFoundError: UNET_LUNG_INPUT is set and no film of a known set lies below it.
    """
    on_kaggle = (KAGGLE / "working").is_dir()
    work = KAGGLE / "working" if on_kaggle else _writable(CLONE / "runs" / "notebooks")
    named = os.environ.get("UNET_LUNG_INPUT")
    if named:
        find_films(named)
    raw = Path(named).resolve() if named else _attached_sets()
    if raw is None:
        raw, work = work / "built_in" / "raw", work / "built_in"
        if not (work / "drawn").exists():  # a kill in the middle leaves no mark
            write_raw(raw, films, seed=0, size=256)
            (work / "drawn").touch()
        return Workspace(raw, work, True)
    if not on_kaggle:
        digest = hashlib.sha256(str(raw).encode()).hexdigest()[:6]  # other sets may lie in a folder of that name
        work = work / f"{raw.name}-{digest}"
    work.mkdir(parents=True, exist_ok=True)
    return Workspace(raw, work, False)


def _find_attached(name: str) -> Path | None:
    """What a kernel wrote by that name, if its output is attached."""
    for depth in range(1, DEPTH + 1):
        found = sorted(KAGGLE.glob("input/" + "*/" * depth + name))
        if found:
            return found[0]
    return None


def _attached_sets() -> Path | None:
    """Kaggle's input folder, if it has films of known sets, raw or prepared, and not only synthetic ones."""
    manifest = _find_attached("segmentation/manifest.csv")
    if manifest and not pd.read_csv(manifest)["name"].str.fullmatch(SYNTHETIC).all():
        return KAGGLE / "input"
    try:
        return KAGGLE / "input" if find_films(KAGGLE / "input") else None
    except FileNotFoundError:
        return None


def _writable(folder: Path) -> Path:
    """The folder, or, where the library lies in a place that can't be written, one beside the notebook."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path.cwd() / "runs"
