"""Writes the numbers in README, docs, cards, notebooks and talk again from results/: ``python -m benchmarks.readme``.

A table stands below ``<!-- table NAME: python -m benchmarks.readme -->``, which a page doesn't show. Numbers in the
text are tied to file, row and column by tests/readme_numbers.csv. What has changed is printed: read the sentences
around it, they may no longer be true. The address of the repository is pyproject.toml's. The tests compare: who
measures anew runs this.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from benchmarks.common import ROOT, make_parser
from benchmarks.numbers import PAGES, Row, read_page, read_rows, refresh, write_page, write_rows
from benchmarks.tables import TABLES

MARK = re.compile(r"(<!-- table (\w+): python -m benchmarks\.readme -->\n)((?:\|.*\n)*)")
ADDRESS = re.compile(r"<!-- address of the repository: (\S+) -->")


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table, its first row the heading; nothing for no rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(map(str, row))} |".replace("  ", " ") for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def fill(text: str) -> str:
    """A page with each marked table made anew, and with the repository's address of today."""
    for old in set(ADDRESS.findall(text)):
        text = text.replace(site_of(old), site_of(repository())).replace(old, repository())
    return MARK.sub(lambda found: found[1] + markdown(TABLES[found[2]]()), text)


def site_of(address: str) -> str:
    """Where GitHub shows what a repository publishes: the page in the browser."""
    *_, owner, name = address.split("/")
    return f"https://{owner}.github.io/{name}/"


def repository() -> str:
    """The address in pyproject.toml; a line, as Python 3.10 has no reader of TOML."""
    return re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]


def renew(pages: dict[str, str], rows: list[Row]) -> tuple[dict[str, str], list[Row]]:
    """Pages, by name, and the rows of their numbers, as results/ says today."""
    new_pages, new_rows = {}, []
    for name, text in pages.items():
        new_pages[name], some = refresh(name, fill(text), [row for row in rows if row["page"] == name])
        new_rows += some
    return new_pages, new_rows


def main() -> None:
    make_parser(__doc__).parse_args()
    pages, rows = {name: read_page(path) for name, path in PAGES.items()}, read_rows()
    new_pages, new_rows = renew(pages, rows)
    for name, text in new_pages.items():
        lines = difflib.unified_diff(pages[name].splitlines(), text.splitlines(), name, name, n=0, lineterm="")
        print("\n".join(lines), end="\n" if text != pages[name] else "")
        write_page(PAGES[name], text)
    write_rows(new_rows)


if __name__ == "__main__":
    main()
