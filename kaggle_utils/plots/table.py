"""A table as a notebook shows it: digits that count, the best value of a column bold."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from numbers import Integral

import pandas as pd


class ShownTable:
    """What :func:`show_table` gives to a notebook; elsewhere it is printed as text."""

    def __init__(self, table: pd.DataFrame, best: Mapping[str, str], digits: int):
        self.table = table.rename_axis(index=[None] * table.index.nlevels)  # names would be a row of the heading
        self.best, self.digits = best, digits

    def __repr__(self) -> str:
        return self.table.to_string(float_format=f"{{:.{self.digits}f}}".format, na_rep="")

    def _repr_html_(self) -> str:
        words = self.table.map(self._word)
        for column, extreme in self.best.items():
            wanted = getattr(self.table[column], extreme)()
            words[column] = words[column].mask(self.table[column] == wanted, "<b>" + words[column] + "</b>")
        names = {"index": lambda name: escape(str(name)), "columns": lambda name: escape(str(name))}
        return words.rename(**names).to_html(escape=False)

    def _word(self, value: object) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.{self.digits}f}"
        return f"{value:,}" if isinstance(value, Integral) else escape(str(value))


def show_table(table: pd.DataFrame, *, best: Mapping[str, str] | None = None, digits: int = 3) -> ShownTable:
    """A table for a notebook's reader.

    Args:
        table: its names say the units.
        best: by column, ``max`` or ``min``: which of its values is bold.
        digits: after the decimal point.
    """
    return ShownTable(table, best or {}, digits)
