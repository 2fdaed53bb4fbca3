"""Writes files whole or not at all, by one run per folder, never over somebody else's; and keeps a journal of what is
finished, from which a run resumes.

Imports nothing heavy: the command line asks before it loads anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, EDEADLK, EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from secrets import token_hex
from typing import Any

if os.name == "nt":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

# How the name of a lock's file ends. Each is hidden: none is taken for a film, or makes a folder somebody's.
LOCK = ".unet-lung.lock"
WEIGHTS = Path(__file__).with_name("weights")  # that ship with the package
DEFAULT_WEIGHTS = WEIGHTS / "lungs.safetensors"
FULL = (ENOSPC, EDQUOT, EFBIG)  # errors that writing raises where there is no room, without a file's name
DEAD_SECONDS = 600  # a file is written from memory, in seconds
_PART = f".*.{'[0-9a-f]' * 8}.part"  # as write_bytes names what isn't whole
# Controls, ends of lines, bytes that are not UTF-8.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_KEYS = {"film", "name", "settings", "stamp", "outputs", "found"}  # of a line


def manifest_path(root: str | Path) -> Path:
    """The manifest of a prepared folder.

    Raises:
        OSError: there is none; the message says how it is made.
    """
    path, folder = Path(root) / "manifest.csv", printable(root)
    if Path(root).is_file():
        raise NotADirectoryError(f"{folder}: a file; expected the folder that `python -m kaggle_utils prep` wrote")
    if not path.is_file():
        how = f"make it with `python -m kaggle_utils prep --input DIR --out {folder}`"
        raise FileNotFoundError(f"{printable(path)} is not there: {how}")
    return path


def find_weights(wanted: str | Path | None = None) -> Path:
    """The file of weights: of a path, or of the name of weights that ship with the package; ``lungs`` if None."""
    shipped = WEIGHTS / f"{wanted}.safetensors"
    return shipped if shipped.exists() else Path(wanted or DEFAULT_WEIGHTS)


def check_weights(wanted: str | Path) -> None:
    """Raises FileNotFoundError where there is no weights file of that path or name."""
    path = find_weights(wanted)
    if not path.is_file():
        what = "a folder, not a weights file" if path.is_dir() else "no such weights file"
        raise FileNotFoundError(f"{printable(path)}: {what}")


def check_input(folder: str | Path) -> None:
    """Raises FileNotFoundError where there is no folder to read."""
    if not Path(folder).is_dir():
        what = "a file; expected a folder" if Path(folder).exists() else "no such folder"
        raise FileNotFoundError(f"{printable(folder)}: {what}")


def check_out(folder: str | Path) -> None:
    """Raises OSError where a folder can't be made, as a file is there or above."""
    there = next((path for path in (Path(folder), *Path(folder).parents) if path.exists()), None)
    if there and not there.is_dir():
        raise NotADirectoryError(f"{printable(there)}: a file, where a folder is to be written: choose another one")


def check_out_file(path: str | Path) -> None:
    """Raises OSError where a file can't be written, as a folder is there, or none above."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{printable(path)}: a folder, where a file is to be written: add a name")
    check_input(Path(path).parent)


def start_results(
    out: Path, table: str, columns: Collection[str], folders: Collection[str], *, others: Collection[str] = ()
) -> None:
    """Makes the folders that results go to, and, if it is not there, the table that says whose they are, without a row.

    Args:
        out: the folder of all.
        table: the name of the table in it.
        columns: of the table.
        folders: below ``out``.
        others: further files that will be written there.

    Raises:
        ValueError: there is a file or a folder that somebody else wrote.
        OSError: ``out`` can't be written.
    """
    ours = (out / table).exists() and _is_table(out / table, list(columns)[:2])
    foreign = next(
        (out / name for name in (table, *folders, *others) if not ours and _holds_something(out / name)), None
    )
    if foreign:
        raise ValueError(
            f"{printable(foreign)}: not of an earlier run, and results would replace it: choose another folder to write"
        )
    for name in ("", *folders):
        (out / name).mkdir(parents=True, exist_ok=True)
    if not ours:
        (out / table).write_text(",".join(columns) + "\n")


def check_table(path: str | Path, columns: Collection[str]) -> None:
    """Raises ValueError where there is a file that doesn't begin with these columns: a command would replace what it
    didn't write."""
    if Path(path).exists() and not _is_table(Path(path), columns):
        raise ValueError(
            f"{printable(path)}: it is there, and no table that begins with {', '.join(columns)}: choose another file "
            "to write"
        )


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file by renaming a finished temporary one, so that a kill leaves the old file or the new one.

    Raises:
        OSError: the folder is missing, read-only or full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with naming(path), temporary.open("xb") as file:  # readable by whom the umask says, which mkstemp's wouldn't be
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of writing a file have its name, also where the system gives none (a full disk) or a temporary file's."""
    try:
        yield
    except OSError as error:
        if error.errno:
            error.filename = str(path)
        raise


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Says whether a path is a folder or lies in it or below, whatever links and dots lead there."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_ours(folder: str | Path, marker: str) -> None:
    """Raises ValueError where a folder holds something, but not the file that its command would have written there."""
    if _holds_something(Path(folder)) and not (Path(folder) / marker).exists():
        raise ValueError(
            f"{printable(folder)}: it holds something else, as there is no {marker}: choose another folder to write"
        )


@contextmanager
def locked(lock: Path, what: object, *, wait: bool = False) -> Iterator[None]:
    """Keeps other runs from the same files while the block runs; when a process is killed, the system ends its locks.

    Where nothing can be locked (some network disks) the block runs all the same, and a warning in the log says so.

    Args:
        lock: a file that stands for what the block writes, its name ending in ``LOCK``; it goes when the block ends.
        what: that is, for the message.
        wait: for the other run, which a warning in the log then names.

    Raises:
        BlockingIOError: another run has the lock, and ``wait`` is False.
    """
    made = not lock.parent.exists()
    file = _take(lock, printable(what), wait)
    try:
        _remove_unfinished(lock.parent, ("", "*/", "*/*/") if lock.name == LOCK else ("",))
        yield
    finally:
        if file in _LOCKS:  # not so in a process that was forked from this one
            _LOCKS.remove(file)
            with suppress(OSError):  # Windows keeps a file that is open
                if os.path.samestat(os.fstat(file), lock.stat()):
                    lock.unlink()
            os.close(file)
        if made:
            with suppress(OSError):  # no longer empty
                lock.parent.rmdir()


def name_key(name: str) -> str:
    """A key that is the same for two names only where some file system takes them for one."""
    return unicodedata.normalize("NFC", printable(name)).casefold()


def printable(text: object) -> str:
    r"""A path or a message in one line of valid text: a control character is ``\n``, a byte that is not UTF-8 is
    ``\xf6``."""

    def escape(found: re.Match) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()

    return _UNSEEN.sub(escape, str(text))


_LOCKS: set[int] = set()  # open files of the locks that this process has


def _take(lock: Path, what: str, wait: bool) -> int | None:
    """The open file of a lock that is this process's now; None where there can be none. See :func:`locked`."""
    waits = False
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError:  # read-only or full: whoever writes there says so
            return None
        try:
            _try_lock(file)
            if os.path.samestat(os.fstat(file), lock.stat()):
                _LOCKS.add(file)
                return file
        except FileNotFoundError:  # its last holder has just removed it
            continue
        except BlockingIOError as holder:
            said = f"{what} is being written by another run"
            if str(holder):  # it may not have written yet who it is
                said += f" ({holder})"
            if not wait:
                raise BlockingIOError(f"{said}; wait for it or choose another folder") from None
            if not waits:
                log.warning("%s: waiting for it", said)
                waits = True
            time.sleep(0.2)
        except OSError as error:
            log.warning("%s: can't be locked (%s): let no other run write there", lock.parent, error.strerror)
            return None
        finally:
            if file not in _LOCKS:
                os.close(file)


def _try_lock(file: int) -> None:
    """Locks an open file and writes down by whom; BlockingIOError has what another process wrote there."""
    here = f" on {socket.gethostname()}"
    try:
        if os.name == "nt":
            os.lseek(file, 1 << 30, os.SEEK_SET)  # far from the text, which others read
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:  # not lockf, which ends with any file of that name that the process closes
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (EAGAIN, EACCES, EDEADLK):
            raise
        os.lseek(file, 0, os.SEEK_SET)
        raise BlockingIOError(os.read(file, 999).decode(errors="replace").removesuffix(here)) from None
    with suppress(OSError):  # a full disk
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, f"process {os.getpid()}{here}".encode())


def _close_locks() -> None:
    """In a forked process: it outlives a parent that is killed, and would keep the locks."""
    while _LOCKS:
        os.close(_LOCKS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def _remove_unfinished(folder: Path, places: Collection[str]) -> None:
    """Removes what :func:`write_bytes` left where it was killed: what nobody has written to for long."""
    for part in (part for place in places for part in folder.glob(place + _PART)):
        with suppress(OSError):
            if time.time() - part.lstat().st_mtime > DEAD_SECONDS:
                part.unlink()


def _is_table(path: Path, columns: Collection[str]) -> bool:
    with path.open("rb") as file:
        first = file.readline(4096).decode(errors="replace").strip()
    return f"{first},".startswith(f"{','.join(columns)},")


def _holds_something(path: Path) -> bool:
    """A file that isn't hidden, the path itself or anywhere below it."""
    return (
        any(each.is_file() and not each.name.startswith(".") for each in path.rglob("*"))
        if path.is_dir()
        else path.exists()
    )


class Journal:
    """A text file with one line of JSON per finished film, each with the settings that it was done with.

    Args:
        path: the file; its folder is that of the results.
        settings: whatever decides what the results are, JSON-able.
        films: each film's file by the name of its results.

    Raises:
        ValueError: what is there under a name is of another film.
        OSError: the file can't be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any], films: Mapping[str, Path]):
        self.path = path
        self._settings = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        self._lines = _read(path)
        for name, film in films.items():
            line = self._lines.get(name_key(name))
            if line and line["film"] != os.path.abspath(film) and line["stamp"] != _stamp([film]):  # nor was it moved
                raise ValueError(
                    f"{printable(path.parent)}: results of {printable(line['film'])} are there, which those of "
                    f"{printable(film)} would replace: choose another folder to write"
                )
        # Written anew: a kill may have cut the last line, and the next one would be appended to the stump.
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in self._lines.values()).encode())

    def find(self, name: str, *files: Path) -> dict[str, Any] | None:
        """What :meth:`add` kept of a film; None where it is new, or its files, results or settings have changed."""
        line = self._lines.get(name_key(name))
        if not line or line | self._identity(name, files) != line:
            return None
        return line["found"] if all((self.path.parent / output).exists() for output in line["outputs"]) else None

    def remove(self, name: str, outputs: Iterable[str]) -> None:
        """Removes those of the outputs that an earlier run wrote for a film, which is done again: it may get none
        now."""
        written = self._lines.get(name_key(name), {}).get("outputs", ())
        for output in outputs:
            if output in written:
                (self.path.parent / output).unlink(missing_ok=True)

    def add(self, name: str, *files: Path, found: dict[str, Any], outputs: Iterable[str] = ()) -> None:
        """Writes down a finished film.

        Args:
            name: of its results.
            files: its own file first, then others that the results depend on.
            found: what the tables will say of it, JSON-able.
            outputs: files that this run may have written for it, from the journal's folder; those that are there will
                have to be there still.
        """
        there = [output for output in outputs if (self.path.parent / output).exists()]
        line = self._identity(name, files) | {"outputs": there, "found": found}
        with naming(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _identity(self, name: str, files: Sequence[Path]) -> dict[str, Any]:
        film = os.path.abspath(files[0])
        return {"film": film, "name": name, "settings": self._settings, "stamp": _stamp(files)}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each name, by its key; none that was cut, damaged or written by another version."""
    lines = {}
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, AttributeError):
            line = json.loads(text)
            if line.keys() == _KEYS:
                lines[name_key(line["name"])] = line
    return lines


def _stamp(files: Iterable[Path]) -> list[int]:
    """Sizes and times of files; nothing of one that isn't there."""
    stamp = []
    for file in files:
        with suppress(OSError):
            stat = file.stat()
            stamp += [stat.st_size, stat.st_mtime_ns]
    return stamp
