"""What the header of weights may say: checked once, where it is read. Without PyTorch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from .quality import check_fit

FORMAT = "unet-lung/2"
NORMALISATION = "zero mean, unit deviation of each film (data.normalise)"
UNSEALED = "0" * 64  # where the checksum will be
SIDES = (16, 4096)  # px, the square that a network sees


def seal(data: bytes) -> bytes:
    """A file's bytes, whose header holds ``"checksum": UNSEALED``, with the checksum of all of them in its place."""
    return data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def parse_header(text: str, path: str | Path, *, data: bytes | None = None, members: bool = False) -> dict[str, object]:
    """A header from its JSON, by :func:`check_header`, without its checksum.

    Args:
        text: the JSON.
        path: of the weights, for messages.
        data: the whole file, which the checksum is compared with; weights of older versions have none.
        members: as for :func:`check_header`.

    Raises:
        ValueError: it is no JSON, the file's bytes have another checksum, or see there.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is no JSON ({error})") from None
    if isinstance(header, dict) and "checksum" in header:
        checksum = str(header.pop("checksum"))
        if data is not None and hashlib.sha256(data.replace(checksum.encode(errors="replace"), UNSEALED.encode(), 1)).hexdigest() != checksum:
            raise ValueError(f"{path}: damaged or edited, as its checksum doesn't fit: train, or fetch the weights, again")
    return check_header(header, path, members=members)


def check_header(header: object, path: str | Path, *, members: bool = False) -> dict[str, object]:
    """Checks every key that this project knows; others may hold anything.

    Args:
        header: as read from JSON.
        path: of the weights, for messages.
        members: whether they are the classifier's, whose architecture is of :class:`tb_net.TBNet`.

    Returns:
        The header.

    Raises:
        ValueError: a key has another type, or a value that no network has; one line that names the file.
    """
    if not isinstance(header, dict):
        raise ValueError(f"{path}: {FORMAT!r} in its header is no JSON object")
    architecture = header.get("architecture")
    if not isinstance(architecture, dict):
        raise ValueError(f"{path}: no architecture in the header")
    if not members and "members" in architecture:
        raise ValueError(f"{path}: weights of the tuberculosis classifier, not of a segmenter")
    if members and "members" not in architecture:
        raise ValueError(f"{path}: no tuberculosis classifier: its header names no members, so it is a segmenter's?")
    known = _CLASSIFIER if members else _UNET
    unknown = set(architecture) - set(known)
    if unknown:
        raise ValueError(f"{path}: the header's architecture has {', '.join(map(repr, sorted(unknown)))}, which this version doesn't know")
    for rules, values in ((known, architecture), (_SCREENER if members else _SEGMENTER, header)):
        for name in rules.keys() & values.keys():
            kind, holds = rules[name]
            if not holds(values[name]):
                raise ValueError(f"{path}: {name} in the header is {kind}, not {values[name]!r:.60}: damaged or edited; train, or fetch the weights, again")
    heads, classes = header.get("heads") or [], architecture.get("classes", 1)
    if heads and len(heads) != classes:
        raise ValueError(f"{path}: the header names {len(heads)} heads, the network has {classes}")
    try:
        check_fit(header.get("quality", {"why_not": ""}))
    except ValueError as error:
        raise ValueError(f"{path}: in the header, {error}") from None
    return header


Rule = tuple[str, Callable[[object], bool]]  # in words, and whether a value keeps it


def _whole(least: int, most: int) -> Rule:
    return f"a whole number from {least} to {most}", lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most


def _number(least: float, most: float) -> Rule:
    return f"a number from {least:g} to {most:g}", lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and least <= v <= most


def _one_of(*choices: object) -> Rule:
    return f"one of {', '.join(map(repr, choices))}", lambda v: type(v) in set(map(type, choices)) and v in choices


def _names(least: int) -> Rule:
    return (f"a list of {'one name or more' if least else 'names'}, each there once", lambda v: isinstance(v, list) and len(v) >= least
            and all(isinstance(name, str) and name for name in v) and len(set(v)) == len(v))


def _a(kind: type, name: str) -> Rule:
    return name, lambda v: isinstance(v, kind) and not isinstance(v, bool)


_ENCODER = {"width": _whole(1, 1024), "depth": _whole(1, 8), "patch": _whole(1, 16)}
_UNET = {**_ENCODER, "in_channels": _whole(1, 64), "classes": _whole(1, 64), "dims": _one_of(2, 3), "norm": _one_of("batch", "group", "instance"),
         "up": _one_of("bilinear", "transposed"), "conv": _one_of("plain", "separable")}
_CLASSIFIER = {**_ENCODER, "members": _whole(1, 64), "dropout": _number(0, 1)}
_SEGMENTER = {"size": _whole(*SIDES), "sources": _names(1), "heads": _names(0), "normalisation": _one_of(NORMALISATION),
           "parameters": _whole(1, 10**12), "validation": _a(dict, "an object"), "config": _a(dict, "an object"), "films": _a(dict, "an object"),
           "licence": ("a text, or a list of texts", lambda v: isinstance(v, str) or (isinstance(v, list) and all(isinstance(t, str) for t in v))),
           "command": _a(str, "a text"), "commit": _a(str, "a text"), "fingerprint": _a(str, "a text"), "built_in": _whole(0, 10**12)}
_SCREENER = {"size": _whole(*SIDES), "arm": _one_of("whole", "crop", "masked", "blanked"), "temperature": _number(1e-3, 1e3), "threshold": _number(0, 1)}
