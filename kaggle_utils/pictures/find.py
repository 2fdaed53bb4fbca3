"""Finds the films in folders and globs, and names their results. Imports nothing heavy: the command line asks before
it loads anything."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from glob import glob, has_magic
from pathlib import Path, PurePath, PurePosixPath

from ..files import name_key, printable
from .header import HEAD, is_dicom, looks_like_image

log = logging.getLogger(__name__)

# Names that claim to be films: where one is damaged, or of a kind that is not read here, that is said of it.
_FILM = re.compile(
    r"(?<=.)\.(png|jpe?g|jpe|jfif|tiff?|bmp|dib|gif|webp|jp2|j2k|jp[fx]|hei[cf]|avif|jxl"
    r"|dcm|dicom|dic|ima|nii|img|mha|nrrd)(\.gz)?\Z",
    re.I | re.DOTALL,
)
# What lies beside films without being taken for one; other files that are left out are named.
_BESIDE = re.compile(
    r"\A(\..*|dicomdir)\Z|\.(txt|csv|tsv|jsonl?|xml|ya?ml|toml|md|html?|pdf|docx?|xlsx?|parquet|py|ipynb|log|db|ini|inf"
    r"|exe|dll|safetensors|onnx)\Z",
    re.I | re.DOTALL,
)
SHEET = "contact.png"
# The pictures that this package writes and their folders, by the file that lies beside: none of them is a film.
OUTPUTS = {
    "predictions.csv": ("masks", "overlays", "dicom-seg", SHEET),
    "screening.csv": ("overlays",),
    "prep.json": ("train/mask", "val/mask", "test/mask"),
}
_PICTURES = OUTPUTS["predictions.csv"]
# Of the 255 that a file's name may have; the rest is for a suffix, a number and what a temporary file adds.
NAME_BYTES = 220
_RESERVED = re.compile(r"\.*|(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)  # no names of files, on Windows or anywhere


def find_files(patterns: Iterable[str | Path], *, out: str | Path | None = None) -> list[Path]:
    """The films that files, folders (searched below, through links, not in hidden ones) and globs name, sorted, each
    once.

    In folders, films are recognised by their content, or by a suffix that claims so; what may hide films (see
    :func:`may_hide_films`) is among them, to be reported as unreadable. Other files are left out; a warning in the log
    names them, unless they are texts, tables and the like. What this package wrote there itself is no film. A file that
    is named is taken as it is.

    Args:
        patterns: files, folders and globs.
        out: the folder that the caller writes ``masks``, ``overlays``, ``dicom-seg`` and ``contact.png`` to.

    Raises:
        FileNotFoundError: a pattern names nothing.
        ValueError: a film lies where the caller would write its own pictures.
    """
    found: dict[tuple[str, str], Path] = {}
    real = cache(os.path.realpath)
    for pattern in patterns:
        films = _find(_as_path(pattern))
        if not films:
            raise FileNotFoundError(_nothing(pattern))
        for path in films:  # a folder that is reached in two ways is one; two links to one file are two names
            folder, name = os.path.split(path)
            found.setdefault((real(folder), name), path)
    written = [Path(real(out), below) for below in _PICTURES] if out is not None else []
    for (folder, name), path in found.items():
        if any(Path(folder, name).is_relative_to(place) for place in written):
            raise ValueError(
                f"{printable(path)}: results would be written where it lies: choose another folder to write"
            )
    return list(found.values())


def check_patterns(patterns: Iterable[str | Path]) -> None:
    """Raises FileNotFoundError for a pattern in which :func:`find_files` would find nothing; looks no further than the
    first film."""
    for pattern in map(_as_path, patterns):
        paths = [pattern] if os.path.lexists(pattern) else _expand(pattern)
        if not any(not path.is_dir() or any(map(is_film, walk(path))) for path in paths):
            raise FileNotFoundError(_nothing(pattern))


def walk(root: str | Path, *, unless: Collection[str] = ()) -> Iterator[Path]:
    """The files in a folder and below it, through links, each folder once; no hidden ones, and no pictures that this
    package wrote.

    A folder that can't be searched is given like a file: reading it says so.

    Args:
        root: the folder.
        unless: a folder that has a file of one of these names is left out with all below it.
    """
    folders, seen = [Path(root)], set()
    links: list[Path] = []
    ours: set[PurePath] = set()
    while folders or links:  # links last: a folder goes by its own place where it has one
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen or folder in ours:
            continue
        seen.add(real)
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError:
            yield folder
            continue
        if set(unless) & set(names):
            continue
        paths = [folder / name for name in names]
        ours |= _ours(paths)
        for path in paths:
            if os.path.isdir(path):  # unlike Path's, False where that may not be known
                (links if path.is_symlink() else folders).append(path)
            elif path not in ours:
                yield path


def without_outputs(paths: Iterable[str], out: str | None = None) -> list[str]:
    """Of all files' paths, with slashes, in some place those that aren't pictures which this package wrote there, by
    the tables beside.

    Args:
        paths: the files.
        out: the folder that the caller writes results to: what a stopped run has left there has no table yet.
    """
    found = [(path, PurePosixPath(path)) for path in paths]
    ours = _ours(pure for _, pure in found)
    ours |= {PurePosixPath(out) / below for below in _PICTURES} if out is not None else set()
    return [path for path, pure in found if ours.isdisjoint((pure, *pure.parents))]


def is_film(path: Path) -> bool:
    """Says whether what :func:`walk` gives looks like a film by its first bytes, claims to be one by its name, or may
    hide some."""
    if may_hide_films(path) or claims_film(path.name):
        return True
    return path.name.lower() != "dicomdir" and _looks_like_film(path)


def may_hide_films(path: Path) -> bool:
    """Says whether what :func:`walk` gives is a folder that can't be searched, or a link to what isn't there, perhaps
    a folder."""
    return os.path.isdir(path) or not os.path.exists(path) and claims_film(path.name) is not False


def claims_film(name: str) -> bool | None:
    """What a file's name says of it: a film, or none (a text, a table, an index); None where only its content can."""
    if _FILM.search(name):
        return True
    return False if _BESIDE.search(name) else None


def without_suffix(name: str) -> str:
    """A file's name without what says that it is a film: ``.png``, ``.dcm.gz``; the end of a UID, ``.2``, stays."""
    return _FILM.sub("", name)


def unique_names(files: list[Path]) -> list[str]:
    """Names for the files' results, no two alike on any system: those of the files, without their suffix.

    Films that share one are named by their whole path below the folder common to all. What can't be in a file's name
    everywhere (a line's end, bytes that are not UTF-8, more than ``NAME_BYTES``) is replaced, and a long name's end by
    a hash of the whole.
    """
    stems = [without_suffix(path.name) for path in files]
    count = Counter(map(name_key, stems))
    common = os.path.commonpath([path.absolute().parent for path in files]) if files else ""
    names: dict[str, str] = {}
    for path, stem in zip(files, stems):
        first = _file_name(re.sub(r"[/\\.]", "_", os.path.relpath(path, common)) if count[name_key(stem)] > 1 else stem)
        name, n = first, 1
        while name_key(name) in names:
            n += 1
            name = f"{first}_{n}"
        names[name_key(name)] = name
    return list(names.values())


def _find(pattern: Path) -> list[Path]:
    if pattern.is_dir():
        return _search(pattern)
    if os.path.lexists(pattern):
        return [pattern]
    ours = cache(_is_ours)
    films: set[Path] = set()
    for path in _expand(pattern):
        if path.is_dir() and not ours(path):
            films.update(_search(path))
        elif path.is_file() and claims_film(path.name) is not False and not ours(_whose(path)):
            films.add(path)
    return sorted(films)


def _expand(pattern: Path) -> list[Path]:
    """The files and folders that a glob names; ``**`` goes through links, into each folder once: those to themselves
    have no end."""
    if not has_magic(str(pattern)):
        return []
    if "**" not in pattern.parts:
        return [Path(path) for path in glob(str(pattern))]
    at = pattern.parts.index("**")
    start, below = Path(*pattern.parts[:at]), pattern.parts[at:]
    found = {}  # in order
    for root in filter(Path.is_dir, _expand(start) or [start]):
        for path in walk(root):
            names = path.relative_to(root).parts
            end = next((end for end in range(1, len(names) + 1) if _fits(names[:end], below)), None)
            if end:
                found[Path(root, *names[:end])] = True
    return list(found)


def _fits(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether a path's names are those of a pattern's parts, of which ``**`` stands for any number."""
    if not parts:
        return not names
    if parts[0] == "**":
        return _fits(names, parts[1:]) or bool(names) and _fits(names[1:], parts)
    return bool(names) and fnmatch(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _search(folder: Path) -> list[Path]:
    films: list[Path] = []
    others: list[str] = []
    for path in walk(folder):
        if is_film(path):
            films.append(path)
        elif claims_film(path.name) is None:
            others.append(printable(path.relative_to(folder)))
    if others:
        named = ", ".join(sorted(others)[:3]) + (", …" if len(others) > 3 else "")
        files = "file" if len(others) == 1 else "files"
        log.warning("%s: %d %s left out, as no film: %s", printable(folder), len(others), files, named)
    return sorted(films)


def _whose(path: Path) -> Path:
    """What says of a picture whose it is: its folder, but for the one that has a place of its own."""
    return path if path.name == SHEET else path.parent


def _is_ours(place: Path) -> bool:
    """Whether a picture, or those in a folder, are what this package wrote."""
    lineage = {place, *place.parents}
    tables = [above / table for above in lineage for table in OUTPUTS if (above / table).is_file()]
    return not lineage.isdisjoint(_ours(tables))


def _ours(paths: Iterable[PurePath]) -> set[PurePath]:
    """The pictures that this package wrote, and the folders of such, by the tables among some paths."""
    return {path.parent / below for path in paths for below in OUTPUTS.get(path.name, ())}


def _as_path(pattern: str | Path) -> Path:
    """Raises FileNotFoundError for an empty name, which would be the current folder, and for an address of the web."""
    if str(pattern) == "":
        raise FileNotFoundError("an empty name, where a radiograph or a folder was expected")
    if re.match(r"https?://", str(pattern)):
        raise FileNotFoundError(f"{printable(pattern)}: addresses of the web aren't read: download it first")
    return Path(pattern)


def _nothing(pattern: str | Path) -> str:
    path = Path(pattern)
    if any((path / marker).is_file() for marker in OUTPUTS):
        what = "no film in it but an earlier run's own results"
    elif path.is_dir():
        what = "no film in it"
    elif _expand(path):
        what = "no film among what it names"
    else:
        what = "no such file"
    return f"{printable(pattern)}: {what}; films are PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, NIfTI and DICOM files"


def _looks_like_film(path: Path) -> bool:
    if not os.path.isfile(path):  # a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            head = file.read(4 * HEAD)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(wbits=31).decompress(head, HEAD)
    except (OSError, zlib.error):  # not ours to read, or not really compressed
        return False
    return is_dicom(head) or looks_like_image(head)


def _file_name(text: str) -> str:
    """The text as a file's name on any system, NAME_BYTES long at most."""
    name = re.sub(r'[\\/:*?"<>|]', "_", printable(text))
    if _RESERVED.fullmatch(name):
        name = f"_{name}"
    data = name.encode()
    if len(data) <= NAME_BYTES:
        return name
    return f"{data[: NAME_BYTES - 9].decode(errors='ignore')}_{hashlib.sha256(data).hexdigest()[:8]}"
