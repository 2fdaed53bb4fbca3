"""Where a notebook finds its films, and what the notebooks before it wrote: on Kaggle, in a clone, or with nothing at all.

    UNET_LUNG_INPUT=DIR    a folder with the raw sets, wherever it is
    /kaggle/input          what is attached to a kernel, in Kaggle's old and nested layouts
    neither                built-in films, drawn in seconds
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .prep import find_films, prepare
from .synthetic import write_raw

KAGGLE = Path("/kaggle")
CLONE = Path(__file__).parents[1]
DEPTH = 5  # levels below /kaggle/input: notebooks/OWNER/KERNEL/NAME has four


@dataclass(frozen=True)
class Workspace:
    """A notebook's folders.

    Attributes:
        raw: with the raw sets, in any nesting.
        work: where notebooks write, and look for what earlier ones wrote.
        built_in: the films are drawn ones, few enough for a laptop's minute.
        kaggle: Kaggle's root, in which the outputs of attached kernels lie.
    """

    raw: Path
    work: Path
    built_in: bool
    kaggle: Path = KAGGLE

    def __str__(self) -> str:
        return "built-in films, which show nobody" if self.built_in else f"films in {self.raw}"

    def find(self, name: str, made_by: str) -> Path:
        """What an earlier notebook wrote: here, or as the output of a kernel that is attached to this one.

        Args:
            name: of a file or a folder.
            made_by: the notebook that writes it.

        Raises:
            FileNotFoundError: it is nowhere; the message names that notebook.
        """
        here = self.work / name
        attached = (path for depth in range(1, DEPTH) for path in sorted(self.kaggle.glob("input/" + "*/" * depth + name)))
        found = here if here.exists() else next(attached, None)
        if found is None:
            raise FileNotFoundError(f"{name} is neither in {self.work} nor attached: run {made_by} first, on Kaggle attach its output")
        return found

    def prepared(self) -> Path:
        """The prepared set that the first notebook wrote; prepared here where there is none."""
        try:
            return self.find("segmentation", made_by="01_prep")
        except FileNotFoundError:
            prepare(self.raw, self.work / "segmentation")
            return self.work / "segmentation"


def open_workspace(*, films: int = 60, kaggle: str | Path = KAGGLE) -> Workspace:
    """Decides once what a notebook works on.

    Args:
        films: how many built-in films are drawn where there is nothing else, 256 px a side.
        kaggle: Kaggle's root.

    Raises:
        FileNotFoundError: UNET_LUNG_INPUT is set and no film of a known set lies below it.
    """
    kaggle = Path(kaggle)
    work = kaggle / "working" if (kaggle / "working").is_dir() else _writable(CLONE / "runs" / "notebooks")
    named = os.environ.get("UNET_LUNG_INPUT")
    if named:
        find_films(named)
    raw = Path(named).absolute() if named else _attached(kaggle / "input")
    if raw is None:
        raw, work = work / "built_in" / "raw", work / "built_in"
        if not (work / "drawn").exists():  # a kill in the middle leaves no mark
            write_raw(raw, films, seed=0, size=256)
            (work / "drawn").touch()
        return Workspace(raw, work, True, kaggle)
    if work != kaggle / "working":
        work = work / raw.name
    work.mkdir(parents=True, exist_ok=True)
    return Workspace(raw, work, False, kaggle)


def _attached(folder: Path) -> Path | None:
    """Kaggle's input folder, if a film of a known set is in it."""
    try:
        return folder if find_films(folder) else None
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
