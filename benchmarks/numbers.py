"""Numbers in the text of README, docs, cards, notebooks and talk, each tied to results/ by a row of readme_numbers.csv.

A row has the page, the words around the number with the number in braces, and where it is from: a file of results/, the
row there and the column. Without a file the number is no measurement, and ``row`` says what it is.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from benchmarks.common import RESULTS, ROOT
from kaggle_utils.tuning.studies import summarise_runs

PATH = ROOT / "tests/readme_numbers.csv"
DOCS, NOTEBOOKS = sorted((ROOT / "docs").glob("*.md")), sorted((ROOT / "notebooks").glob("*.ipynb"))
CARDS, TALK = ROOT / "kaggle_utils/weights/README.md", ROOT / "slides/talk.md"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *DOCS, CARDS, *NOTEBOOKS, TALK)}
CUT = "\n\f\n"  # between the texts of a notebook
Row = dict[str, str]  # page, text, file, row, column

_read = cache(pd.read_csv)


def read_page(path: Path) -> str:
    """The text of a page; of a notebook that of its Markdown cells."""
    return CUT.join(cell.source for cell in _texts(nbformat.read(path, 4))) if _is_notebook(path) else path.read_text()


def write_page(path: Path, text: str) -> None:
    """Writes a text of :func:`read_page` where it has changed; a notebook keeps the rest."""
    if text == read_page(path):
        return
    if not _is_notebook(path):
        path.write_text(text)
        return
    notebook = nbformat.read(path, 4)
    for cell, source in zip(_texts(notebook), text.split(CUT), strict=True):
        cell.source = source
    nbformat.write(notebook, path)


def _is_notebook(path: Path) -> bool:
    return path.suffix == ".ipynb"


def _texts(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def read_rows() -> list[Row]:
    return pd.read_csv(PATH, keep_default_na=False, dtype=str).to_dict("records")


def write_rows(rows: list[Row]) -> None:
    pd.DataFrame(rows).to_csv(PATH, index=False)


@cache
def measured(file: str, row: str, column: str) -> float:
    """One number of results/.

    Args:
        file: a CSV or JSON file there; of ``tuning/`` the mean over the seeds after the last epoch.
        row: ``column=value; …`` of the only row that has them; or two such, ``A minus B``, for their difference. Empty
            for JSON.
        column: of that row; ``max column`` and ``min column`` are those of all epochs. In JSON the keys, ``a/b``.
    """
    if file.endswith(".json"):
        value = json.loads((RESULTS / file).read_text())
        for key in column.split("/"):
            value = value[key]
        return value
    if " minus " in row:
        one, other = row.split(" minus ")
        return measured(file, one, column) - measured(file, other, column)
    table, (*extreme, column) = _read(RESULTS / file), column.split()
    if file.startswith("tuning/") and not extreme:
        table = summarise_runs(table)
    for name, _, wanted in (condition.partition("=") for condition in row.split("; ")):
        table = table[table[name].map(str).isin({wanted, f"{wanted}.0"})]
    if extreme:
        return getattr(table[column], extreme[0])()
    assert len(table) == 1, f"{file}: {len(table)} rows with {row}"
    return float(table[column].iloc[0])


def split(text: str) -> tuple[str, str, str]:
    """What stands before a number, the number, and what stands after it."""
    before, number, after = re.fullmatch(r"(.*)\{([\d.]+)\}(.*)", text).groups()
    return before, number, after


def unit(after: str) -> float:
    """What a measured number is multiplied with where percent or millions follow."""
    return 100 if after.startswith(" %") else 1e-6 if after.startswith("M") else 1


def says(number: str, after: str, value: float) -> bool:
    """Whether a number as written is the measured one without its sign, rounded to its digits."""
    return abs(abs(value) * unit(after) - float(number)) <= 0.5 * 10 ** -_decimals(number) * (1 + 1e-6)


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def rewritten(number: str, after: str, value: float) -> str:
    """The measured number, written as the one that stands there: as many digits, with or without a zero before."""
    if says(number, after, value):
        return number
    new = f"{abs(value) * unit(after):.{_decimals(number)}f}"
    return new.removeprefix("0") if number.startswith(".") else new


def refresh(page: str, text: str, rows: list[Row]) -> tuple[str, list[Row]]:
    """A page and its rows with each number as it is measured now.

    Raises:
        ValueError: words of a row are not in the page, or more than once.
    """
    spans, edits = [], {}
    for row in rows:
        before, number, after = split(row["text"])
        places = [match.span(1) + match.span() for match in re.finditer(_spaced(before, number, after), text)]
        if len(places) != 1:
            raise ValueError(f"{page}: it has {row['text']!r} {len(places)} times; mend {PATH.name}")
        (start, end, *around) = places[0]
        value = measured(row["file"], row["row"], row["column"]) if row["file"] else None
        edits[start, end] = number if value is None else rewritten(number, after, value)
        spans.append(((start, end), around))
    new_rows = [row | {"text": _edited(text, edits, *around, own)} for row, (own, around) in zip(rows, spans)]
    return _edited(text, edits, 0, len(text)), new_rows


def _spaced(before: str, number: str, after: str) -> str:
    """A pattern of words that may be broken into lines anywhere; its group is the number."""
    escaped = (re.escape(part).replace(r"\ ", r"\s+") for part in (before, number, after))
    return "{}({}){}".format(*escaped)


def _edited(text: str, edits: dict, first: int, last: int, own: tuple[int, int] | None = None) -> str:
    """A part of a text with its numbers replaced, and where ``own`` is one of them, that one in braces on one line."""
    pieces, at = [], first
    for (start, end), new in sorted(edits.items()):
        if first <= start and end <= last:
            pieces += [text[at:start], f"{{{new}}}" if own == (start, end) else new]
            at = end
    whole = "".join([*pieces, text[at:last]])
    return whole if own is None else re.sub(r"\s+", " ", whole)
