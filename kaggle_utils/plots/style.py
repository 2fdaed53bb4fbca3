"""What all figures share: colours, style, the tables they are drawn from, and how they are saved."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..files import write_bytes

CLONE = Path(__file__).parents[2]
INSTALLED = Path(
    sysconfig.get_path("data"), "share", "unet-lung"
)  # where pip puts a wheel's results, see pyproject.toml
# Where a function is given no other folder.
RESULTS = (CLONE if (CLONE / "results").is_dir() else INSTALLED) / "results"
# Okabe and Ito's colours, which the colour-blind tell apart; orange and sky blue on gray too.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
)
TRUTH = SKY  # outlined on a film; a prediction has pictures.overlay's colour, their orange
_STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "legend.fontsize": 9,
    "legend.frameon": False,
}
_MARK = "python -m kaggle_utils plots"
Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Decorates a function that makes a figure: it has the style, and is closed, or a notebook would show it twice.

    A notebook's picture of it says how large its letters are, so that the talk knows whether they can be read.
    """

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Figure:
        with plt.rc_context(_STYLE):
            figure = draw(*args, **options)
            interactive = plt.isinteractive()  # a notebook's first figure switches it on, for all that follow
        matplotlib.interactive(interactive)
        plt.close(figure)
        _tell_letters(figure)
        return figure

    return drawn  # type: ignore[return-value]


def letters(figure: Figure) -> float:
    """How large the smallest letters of a figure are, once it is drawn, in points."""
    off = {text for ax in figure.axes if not ax.axison for axis in (ax.xaxis, ax.yaxis) for text in axis.findobj(Text)}
    shown = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in off)
    return min((float(text.get_fontsize()) for text in shown), default=0.0)


def _tell_letters(figure: Figure) -> None:
    """Has each PNG of a figure say :func:`letters`; a notebook saves it without asking us."""
    print_figure = figure.canvas.print_figure

    def printed(file: Any, **options: Any) -> None:
        if options.get("format") == "png" and "metadata" not in options:
            figure.draw_without_rendering()  # numbers of an axis are made then
            options["metadata"] = {"Letters": f"{letters(figure):g}"}
        print_figure(file, **options)

    figure.canvas.print_figure = printed  # type: ignore


def read_result(results: str | Path, name: str, command: str) -> pd.DataFrame:
    """A table of the results folder.

    Args:
        results: the folder.
        name: of the table.
        command: of ``python -m``, which writes it.

    Raises:
        FileNotFoundError: it is not there; the message names the command.
    """
    path = Path(results) / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: python -m {command} writes it")
    return pd.read_csv(path)


def note(ax: Axes, text: str, at: tuple[Any, Any], offset: tuple[float, float], **options: Any) -> None:
    """Writes a small text beside a point of the data, ``offset`` points away from it."""
    ax.annotate(text, at, offset, **{"textcoords": "offset points", "fontsize": 9, **options})


def arrow(ax: Axes, start: tuple[Any, Any], end: tuple[Any, Any], colour: str, head: str, **line: Any) -> None:
    """Draws an arrow from a point of the data to another; ``head`` is a style of matplotlib's."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": head, "color": colour, "shrinkA": 0, "shrinkB": 0, **line})


def diagonal(ax: Axes) -> None:
    """Draws the line from (0, 0) to (1, 1), dashed."""
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")


def log_axis(ax: Axes, ticks: Any) -> None:
    """Makes the horizontal axis logarithmic, with these ticks alone."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure whole or not at all, marked, so that the next run recognises its own."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130, bbox_inches="tight", metadata={"Source": _MARK})
    write_bytes(path, png.getvalue())


def check_replaceable(path: str | Path) -> None:
    """Raises ValueError where there is a file that :func:`save` didn't write."""
    if Path(path).exists() and _MARK.encode() not in Path(path).read_bytes()[:4096]:
        raise ValueError(f"{path}: it is there, and no figure that this command drew: choose another folder to write")
