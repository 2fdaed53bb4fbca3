"""Writes and reads tables as CSV, safely: names may come from anywhere, and spreadsheets and pandas act on some.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, so such a text is written with
an apostrophe before it, which spreadsheets take for "text"; of what already looks like that (``'=a``) too, so that
:func:`read_csv` gives every text back by taking one away. Any other name stands as it is, and joins with other tools'
tables.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA, _GUARDED = re.compile(r"'*[=+\-@\t\r]"), re.compile(r"'+[=+\-@\t\r]")
# Texts whatever they look like: 007 is no 7, and NA no missing one.
_TEXTS = ("name", "path", "source", "reason", "error")
_CODES = ("split", "pixels", "sha256", "shard")  # the project's own: missing where a cell says NaN, but no number


def to_csv(table: pd.DataFrame, *, header: bool = True) -> bytes:
    """A table as a CSV file's bytes, in which no text is a formula."""
    texts = table.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    guarded = table.assign(**{column: table[column].map(_guard) for column in texts})
    return guarded.to_csv(index=False, header=header).encode()


def read_csv(file: str | Path | IO[bytes]) -> pd.DataFrame:
    """A table that :func:`to_csv` wrote: names and other texts as they were, an empty cell as missing.

    Raises:
        OSError: there is no such file.
        ValueError: it is no table.
    """
    import pandas as pd  # here alone: the command line asks for files before anything heavy is loaded

    # Words such as NA or null are missing in columns of numbers only: behind a letter they are no such words.
    table = pd.read_csv(file, dtype=dict.fromkeys(_CODES, str), converters=dict.fromkeys(_TEXTS, "t{}".format))
    texts = {column: table[column].str[1:].map(_unguard).astype(object) for column in _TEXTS if column in table}
    return table.assign(**{column: text.where(text != "") for column, text in texts.items()})


def _guard(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _unguard(cell: str) -> str:
    return cell[1:] if _GUARDED.match(cell) else cell
