"""The films that a command has finished, written down as they come: after a kill, a crash or Ctrl-C the same command goes on there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .files import naming, write_bytes


_KEYS = ("film", "name", "stamp", "outputs", "found")  # of a line


class Journal:
    """A text file of a line a film, in JSON, below one that holds the settings; other settings start it afresh.

    Args:
        path: the file; its folder is that of the results.
        settings: whatever decides what the results are, JSON-able.

    Raises:
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, settings: dict[str, object]):
        self.path = path
        self._known = {line["film"]: line for line in self._lines(json.loads(json.dumps(settings)))}
        # Written anew: a kill may have cut the last line, and the next one would be appended to the stump.
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in [settings, *self._known.values()]).encode())

    def find(self, film: Path, name: str) -> dict[str, object] | None:
        """What :meth:`add` was told of a film; None where it has to be done (again), as its file or its results have changed."""
        line = self._known.get(str(film))
        if not line or line["name"] != name or line["stamp"] != _stamp(film):
            return None
        return line["found"] if all((self.path.parent / output).exists() for output in line["outputs"]) else None

    def add(self, film: Path, name: str, found: dict[str, object], outputs: Iterable[str]) -> None:
        """Writes down a finished film.

        Args:
            film: its file.
            name: of its results.
            found: what the tables will say of it, JSON-able.
            outputs: files that its results may be in, from the journal's folder; those that are there will have to be there still.
        """
        there = [output for output in outputs if (self.path.parent / output).exists()]
        line = dict(zip(_KEYS, (str(film), name, _stamp(film), there, found)))
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self, settings: dict[str, object]) -> list[dict[str, object]]:
        known = []
        with suppress(OSError, ValueError, TypeError):  # there is none, it is another file, or a kill has cut its last line
            first, *lines = self.path.read_text().splitlines()
            if json.loads(first) == settings:
                for line in map(json.loads, lines):
                    if set(line) == set(_KEYS):
                        known.append(line)
        return known


def _stamp(film: Path) -> list[int]:
    try:
        stat = film.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
