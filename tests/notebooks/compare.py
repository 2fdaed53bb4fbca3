"""Whether a notebook that is run again says what was saved: its text to the letter, each number within a limit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

from nbformat import NotebookNode

# What float32 may differ by between two processors: a unit of the second decimal, and a pixel in 200.
ABSOLUTE, RELATIVE = 0.01, 0.005
FIGURE = re.compile(r"Figure size [\d.]+x[\d.]+")  # as wide as its legend's letters
# One that stands alone: the digits of a film's name are text.
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w|\.\d)")


def differences(saved: NotebookNode, again: NotebookNode) -> list[str]:
    """What differs between the outputs of two runs of one notebook, a line each.

    Cells tagged ``timing`` are left out; of those tagged ``varies`` the text is compared without its numbers. So are
    pictures.
    """
    found = []
    for k, (old, new) in enumerate(zip(saved.cells, again.cells, strict=True)):
        tags = old.metadata.get("tags", ())
        if old.cell_type == "code" and "timing" not in tags:
            pairs = zip_longest(_texts(old), _texts(new), fillvalue="nothing")
            found += [
                f"cell {k}: {line}" for pair in pairs for line in text_differences(*pair, numbers="varies" not in tags)
            ]
    return found


def text_differences(old: str, new: str, *, numbers: bool = True) -> Iterator[str]:
    """What differs between two texts: their words, or else each number that is off by more than the limit.

    Args:
        numbers: compare them too.
    """
    if _words(old) != _words(new):
        yield f"saved was\n{old}\nand now it is\n{new}"
    elif numbers:
        pairs = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
        yield from (f"{a} was saved and now it is {b}, in\n{new}" for a, b in pairs if not _near(a, b))


def _texts(cell: NotebookNode) -> list[str]:
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts += [output.text] if output.name == "stdout" else []  # progress bars are stderr's
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        else:
            texts += [output.data[kind] for kind in ("text/plain", "text/html") if kind in output.data]
    return [FIGURE.sub("Figure", text) for text in texts]


def _words(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())  # columns are as wide as their numbers


def _near(old: str, new: str) -> bool:
    a, b = (float(number.replace(",", "")) for number in (old, new))
    return abs(a - b) <= ABSOLUTE + RELATIVE * max(abs(a), abs(b))
