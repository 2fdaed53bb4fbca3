"""Films and results in S3, or in any store that speaks its protocol: copied both ways, and zip archives unpacked there.

boto3 does the talking, by its own settings: credentials from the usual chain (environment, ``~/.aws``, a role), the
server from ``AWS_ENDPOINT_URL``. Every command can be stopped, killed and given again: it then moves what is missing.
What is there is identified by its size and a checksum: the CRC-32 that this module stores with each object (zip
archives hold the same one for each member), or, for objects of other programs, the ETag where that is an MD5.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any

from ..files import FULL, LOCK, locked, printable, write_bytes
from ..pictures.find import without_outputs
from .s3_client import (
    ATTEMPTS,
    CRC,
    SCHEME,
    Moved,
    abort_leftovers,
    connect,
    crc32,
    explained,
    find_objects,
    has_size,
    is_address,
    is_same,
    leads_out,
    list_objects,
    parse,
    run,
    settings,
)
from .s3_zip import unzip

__all__ = [
    "Moved",
    "as_addresses",
    "connect",
    "download",
    "explained",
    "fetch",
    "is_address",
    "parse",
    "results",
    "unzip",
    "upload",
]
log = logging.getLogger(__name__)
# Of a key between two slashes, if it is to be a file's name: 255 less the 6 that its unfinished copy's name adds.
PART_BYTES = 249
# What this package calls a file that isn't whole, and a lock.
UNFINISHED = re.compile(rf"\..+\.part|.*{re.escape(LOCK)}", re.DOTALL)


def upload(source: str | Path, address: str) -> Moved:
    """Copies a folder with all below it, or one file, to S3.

    Args:
        source: the folder; its own name is not part of the objects' keys.
        address: ``s3://bucket/prefix``; a file's name is added where the address doesn't end in it.

    Raises:
        FileNotFoundError: no such folder, nothing in it, or no such bucket.
        OSError: no credentials, no permission, or a network that stays broken.
        ImportError: boto3 is not installed.
    """
    source = Path(source)
    if source.is_file() and str(address).endswith(f"/{source.name}"):
        address = str(address).removesuffix(source.name)
    bucket, prefix = parse(address, folder=True)
    files = {prefix + name: path for name, path in _to_upload(source).items()}
    if not files:
        raise FileNotFoundError(f"{source}: no such folder, or no file in it")
    with explained(address):
        s3 = connect()
        there = list_objects(s3, bucket, prefix)
        abort_leftovers(s3, bucket, prefix, files)

        def put(key: str, progress: Callable[[int], None]) -> bool:
            path = files[key]
            if there.get(key) == path.stat().st_size and is_same(s3, bucket, key, path):
                return False
            s3.upload_file(str(path), bucket, key, {"Metadata": {CRC: crc32(path)}}, progress, settings())
            return True

        return run(put, {key: path.stat().st_size for key, path in files.items()}, "upload")


def _to_upload(source: Path) -> dict[str, Path]:
    """A file, or all whole ones of a folder, by their names below it."""
    if source.is_file():
        return {source.name: source}
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    whole = [path for path in paths if not UNFINISHED.fullmatch(path.name)]
    left_out = len(paths) - len(whole)
    if left_out:
        said = "%s: %d left out, as a command that was killed left them: .NAME.part"
        log.warning(said, printable(source), left_out)
    return {path.relative_to(source).as_posix(): path for path in whole}


def download(address: str, folder: str | Path) -> Moved:
    """Copies an object, or all below a prefix, into a folder. A file has its name when it is whole, and not before.

    Args:
        address: ``s3://bucket/prefix``, or that of one object.
        folder: made if it is not there.

    Raises:
        FileNotFoundError: no such bucket, or nothing there.
        ValueError: a key that would lead out of the folder.
        OSError: no credentials, no permission, a network that stays broken, no space on the disk, a damaged object.
        ImportError: boto3 is not installed.
    """
    with explained(address):
        s3 = connect()
        return _download(s3, parse(address)[0], _find(s3, address), Path(folder))


def fetch(path: str | Path | None, out: str | Path | None = None) -> Any:
    """The local copy of what an ``s3://`` address names, a file or a folder; any other path, or none, as it is.

    Copies are kept below ``~/.cache/unet-lung/s3`` (``XDG_CACHE_HOME``): what is there is not fetched again, and what
    is no longer in S3 is removed. Pictures that this package wrote there, perhaps to ``out``, are left out. Errors are
    those of :func:`download`.
    """
    if path is None or not is_address(path):
        return path
    bucket, prefix = parse(path)
    if leads_out(prefix):
        raise ValueError(f"{path}: not a key that can be a file's path")
    home = _cache() / bucket / prefix
    with explained(str(path)), locked(_cache() / f".{bucket}{LOCK}", path, wait=True):
        s3 = connect()
        found = _find(s3, str(path))
        there = None if out is None or not is_address(out) else str(out).removeprefix(SCHEME)
        films = set(without_outputs([f"{bucket}/{key}" for key in found], there))
        found = {key: value for key, value in found.items() if f"{bucket}/{key}" in films}
        if not found:
            raise FileNotFoundError(f"{path}: nothing there but what this package wrote")
        if list(found) == [prefix]:  # one object
            _make_way(_cache(), [home])
            _download(s3, bucket, found, home.parent)
            return home
        kept = {home / name for name, _ in found.values()}
        _make_way(_cache(), [home / "any", *kept])
        _download(s3, bucket, found, home)
        for old in [path for path in home.rglob("*") if path.is_file() and path not in kept]:
            old.unlink()
    return home


@contextmanager
def results(out: str | Path) -> Iterator[Path]:
    """A folder to write results to, whose tables name films by their addresses; uploaded at the end to an address."""
    if not is_address(out):
        yield Path(out)
        _name_films(Path(out))
        return
    address = str(out).rstrip("/")
    _try_to_write(address)
    # By the address, so that the same command finds what one that was stopped has done.
    folder = _cache().with_name("results") / hashlib.sha256(address.encode()).hexdigest()[:16]
    with locked(folder.with_name(f".{folder.name}{LOCK}"), address):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
            _name_films(folder, address)
            upload(folder, address)
        except BaseException:
            if any(folder.iterdir()):
                log.warning(
                    "what was done is kept in %s: the same command resumes, or: python -m kaggle_utils s3 upload %s %s",
                    folder,
                    folder,
                    address,
                )
            raise
        shutil.rmtree(folder)


def _try_to_write(address: str) -> None:
    """Writes a small object and removes it: who may not write is told before the work, not after it."""
    bucket, prefix = parse(address, folder=True)
    key = f"{prefix}.unet-lung-{token_hex(4)}"
    with explained(address):
        s3 = connect()
        from botocore.exceptions import ClientError

        s3.put_object(Bucket=bucket, Key=key, Body=b"")
        with suppress(ClientError):  # who may write may not always delete
            s3.delete_object(Bucket=bucket, Key=key)


def as_addresses(text: str) -> str:
    """A text with the addresses of the films whose copies of :func:`fetch` it names."""
    return text.replace(f"{_cache().as_posix()}/", SCHEME)


def _name_films(folder: Path, address: str | None = None) -> None:
    """Puts addresses in place of paths into the tables of predict and screen; ``address`` is the folder's, if any."""
    for table in (folder / "predictions.csv", folder / "screening.csv"):
        if not table.exists():
            continue
        old = table.read_text(encoding="utf-8")
        new = as_addresses(old).replace(str(folder), address or str(folder))
        if new != old:
            write_bytes(table, new.encode())
    if (folder / "coco.parquet").exists():
        _name_lungs(folder / "coco.parquet")


def _name_lungs(table: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from ..dicom.coco import to_parquet

    rows = parquet.read_table(pa.BufferReader(table.read_bytes()))  # pyarrow takes no path that is not UTF-8
    paths = rows["path"].to_pylist()
    named = [as_addresses(path) for path in paths]
    if named != paths:
        column = rows.schema.get_field_index("path")
        write_bytes(table, to_parquet(rows.set_column(column, "path", pa.array(named, pa.string()))))


def _find(s3, address: str) -> dict[str, tuple[str, int]]:
    """Name below the address, and size, of the object there or of all below it, by key."""
    found = find_objects(s3, address)
    if list(found) == [parse(address)[1]]:
        return {key: (PurePosixPath(key).name, size) for key, size in found.items()}
    below = len(parse(address, folder=True)[1])
    named = {key: (key[below:], size) for key, size in found.items()}
    named = _possible(address, named)
    paths = Counter(os.path.normpath(name) for name, _ in named.values())
    for key, (name, _) in named.items():
        if leads_out(name) or paths[os.path.normpath(name)] > 1:
            raise ValueError(f"{address}: {key!r} is not a key that can be a file's path; nothing was fetched")
    return named


def _possible(address: str, named: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """The objects of which each can be a file beside the others; a warning in the log names the rest.

    Raises:
        ValueError: there is none.
    """
    folders = {str(parent) for name, _ in named.values() for parent in PurePosixPath(name).parents}
    possible = {
        key: (name, size)
        for key, (name, size) in named.items()
        if name not in folders and all(len(part.encode()) <= PART_BYTES for part in name.split("/"))
    }
    bad = [key for key in named if key not in possible]
    if not bad:
        return possible
    some = ", ".join(key[:100] for key in bad[:3])
    said = (
        f"{address}: {len(bad)} of {len(named)} objects can't be files, as their keys are other objects' folders "
        f"or have parts of over {PART_BYTES} bytes: {some}"
    )
    if not possible:
        raise ValueError(said)
    log.warning("%s", printable(said))
    return possible


def _make_way(home: Path, paths: Iterable[Path]) -> None:
    """Removes copies that are in the way: what was an object is a folder now, or the reverse."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        for above in path.parents:
            if above.is_file() and home in above.parents:
                above.unlink()


def _download(s3, bucket: str, found: dict[str, tuple[str, int]], folder: Path) -> Moved:
    from s3transfer.exceptions import S3DownloadFailedError  # comes with boto3

    paths = {key: folder / name for key, (name, _) in found.items()}
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(size for key, (_, size) in found.items() if not has_size(paths[key], size))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(ENOSPC, f"{needed / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free", str(folder))

    def get(key: str, progress: Callable[[int], None]) -> bool:
        path = paths[key]
        if has_size(path, found[key][1]) and is_same(s3, bucket, key, path):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")  # always the same: what a kill leaves is replaced by the next run
        try:
            for _ in range(ATTEMPTS):
                # That error says that it was replaced meanwhile: the new one is fetched, as after a wrong checksum.
                with suppress(S3DownloadFailedError):
                    part.unlink(missing_ok=True)
                    with part.open("xb") as file:  # a link of that name isn't followed
                        s3.download_fileobj(bucket, key, file, None, progress, settings())
                    if is_same(s3, bucket, key, part) is not False:
                        os.replace(part, path)
                        return True
            raise OSError(f"s3://{bucket}/{key}: what came is not what its checksum says; it was not kept")
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL:
                error.filename = str(path)
            raise

    return run(get, {key: size for key, (_, size) in found.items()}, "download")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unet-lung" / "s3"
