"""The films that a command has finished, written down as they come: after a kill, a crash or Ctrl-C the same command goes on there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from .files import name_key, naming, printable, write_bytes

_KEYS = ("film", "name", "settings", "stamp", "outputs", "found")  # of a line


class Journal:
    """A text file of a line a film, in JSON, each with the settings that it was done with.

    Args:
        path: the file; its folder is that of the results.
        settings: whatever decides what the results are, JSON-able.
        films: each film's file by the name of its results.

    Raises:
        ValueError: what is there under a name is of another film.
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, settings: dict[str, object], films: Mapping[str, Path]):
        self.path, self._settings = path, hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        self._lines = _read(path)
        for name, film in films.items():
            line = self._lines.get(name_key(name))
            if line and line["film"] != os.path.abspath(film) and line["stamp"] != _stamp(film):  # nor was it moved
                raise ValueError(f"{printable(path.parent)}: results of {printable(line['film'])} are there, which those of "
                                 f"{printable(film)} would replace: choose another folder to write")
        # Written anew: a kill may have cut the last line, and the next one would be appended to the stump.
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in self._lines.values()).encode())

    def find(self, film: Path, name: str) -> dict[str, object] | None:
        """What :meth:`add` was told of a film; None where it has to be done (again), as its file, its results or the settings have changed."""
        line = self._lines.get(name_key(name))
        if not line or [line[key] for key in _KEYS[:4]] != [os.path.abspath(film), name, self._settings, _stamp(film)]:
            return None
        return line["found"] if all((self.path.parent / output).exists() for output in line["outputs"]) else None

    def remove(self, name: str, outputs: Iterable[str]) -> None:
        """Removes those of the outputs that an earlier run wrote for a film, which is done again: it may get none now."""
        written = self._lines.get(name_key(name), {}).get("outputs", ())
        for output in outputs:
            if output in written:
                (self.path.parent / output).unlink(missing_ok=True)

    def add(self, film: Path, name: str, found: dict[str, object], outputs: Iterable[str]) -> None:
        """Writes down a finished film.

        Args:
            film: its file.
            name: of its results.
            found: what the tables will say of it, JSON-able.
            outputs: files that this run may have written for it, from the journal's folder; those that are there will have to be
                there still.
        """
        there = [output for output in outputs if (self.path.parent / output).exists()]
        line = dict(zip(_KEYS, (os.path.abspath(film), name, self._settings, _stamp(film), there, found)))
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read(path: Path) -> dict[str, dict[str, object]]:
    """The last line of each name, by its key; none that was cut, damaged or written by another version."""
    lines = {}
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, AttributeError):
            line = json.loads(text)
            if line.keys() == set(_KEYS):
                lines[name_key(line["name"])] = line
    return lines


def _stamp(film: Path) -> list[int]:
    try:
        stat = film.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
