"""Figures on disk: written whole, and marked, so that the next run recognises its own."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import write_bytes

MARK = "python -m kaggle_utils plots"


def saved(figure: Figure, path: str | Path | None, **options: Any) -> Figure:
    """The figure without a frame above and on the right, written to ``path`` if any; options are ``savefig``'s."""
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        png = BytesIO()
        figure.savefig(png, format="png", dpi=130, metadata={"Source": MARK}, **options)
        write_bytes(path, png.getvalue())
    return figure


def check_replaceable(path: str | Path) -> None:
    """Raises ValueError where there is a file that :func:`saved` didn't write."""
    if Path(path).exists() and MARK.encode() not in Path(path).read_bytes()[:4096]:
        raise ValueError(f"{path}: it is there, and no figure that this command drew: choose another folder to write")
