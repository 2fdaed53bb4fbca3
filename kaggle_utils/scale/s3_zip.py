"""Zip archives unpacked within S3: read by ranges, written in parts; no member may lead out of the target."""

from __future__ import annotations

import math
import posixpath
import stat
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, RawIOBase
from types import SimpleNamespace

from .s3_client import (
    CRC,
    PART,
    WORKERS,
    Moved,
    abort_leftovers,
    connect,
    explained,
    leads_out,
    list_objects,
    parse,
    read_object,
    run,
    settings,
)

MAX_PARTS = 10_000  # of an object, S3's limit
TAIL = 70_000  # bytes in which an archive's end record and its comment lie
# What an archive may unpack to, in its own sizes; in any case so many bytes.
MOST_RATIO, MOST_FREELY = 100, 1_000_000_000
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def unzip(archive: str, address: str) -> Moved:
    """Unpacks a zip archive within S3, read in blocks and written in parts: nothing is ever held whole.

    Memory grows with the number of members (the archive's directory is held) and with members of more than 80 GB.

    Args:
        archive: ``s3://bucket/set.zip``; left as it is.
        address: ``s3://bucket/prefix``.

    Raises:
        FileNotFoundError: no such archive, or no such bucket.
        ValueError: no whole zip archive, or one with a member that is encrypted, a link, there twice, or leads out of
            the prefix: nothing was unpacked then; or a damaged member, which is not written.
        OSError: no credentials, no permission, or a network that stays broken.
        ImportError: boto3 is not installed.
    """
    (bucket, key), (target, prefix) = parse(archive), parse(address, folder=True)
    try:
        with explained(archive):
            s3 = connect()
            file = RangedFile(s3, archive)
        # Read here first, since zipfile takes an error there for an archive that ends too early.
        for position in (file.size - TAIL, file.size - 1):
            file.seek(max(0, position))
            file.read(1)
        zipped = zipfile.ZipFile(BufferedReader(file))
        members = {prefix + name: info for name, info in _members(zipped, file.size).items()}
        if bucket == target and key in members:
            raise ValueError("a member would take the archive's own place: choose another prefix")
        with explained(address):
            there = list_objects(s3, target, prefix)
            abort_leftovers(s3, target, prefix, members)

            def extract(key: str, progress: Callable[[int], None]) -> bool:
                info = members[key]
                if there.get(key) == info.file_size:
                    head = s3.head_object(Bucket=target, Key=key)
                    if head["Metadata"].get(CRC) == _crc(info):
                        return False
                _put_member(s3, zipped, info, target, key, progress)
                return True

            return run(extract, {key: info.file_size for key, info in members.items()}, "unzip")
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{archive}: {error}") from None


class RangedFile(RawIOBase):
    """An object as a seekable file: ranged reads of ``PART`` bytes, of which the last few are kept for all threads.

    An object that is replaced meanwhile is an error, not a mixture of both.
    """

    def __init__(self, s3, address: str):
        bucket, key = parse(address)
        head = s3.head_object(Bucket=bucket, Key=key)
        self.size, self.position = head["ContentLength"], 0

        @lru_cache(maxsize=WORKERS + 1)
        def block(number: int) -> bytes:
            wanted = f"bytes={number * PART}-{(number + 1) * PART - 1}"
            with explained(address):
                return read_object(s3, bucket, key, IfMatch=head["ETag"], Range=wanted)

        self._block = block

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        position = offset + {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError("a position before the file's beginning")
        self.position = position
        return position

    def readinto(self, buffer) -> int:
        if self.position >= self.size:
            return 0
        start = self.position % PART
        piece = memoryview(self._block(self.position // PART))[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


def _put_member(
    s3, zipped: zipfile.ZipFile, info: zipfile.ZipInfo, bucket: str, key: str, progress: Callable[[int], None]
) -> None:
    """Streams a member into an object; zipfile checks it before the last part is sent: a damaged one never appears."""
    config = settings(max(PART, math.ceil(info.file_size / MAX_PARTS)), threads=False)
    try:
        with zipped.open(info) as member:
            # boto3 would seek to the end of what it can seek in, decompressing all of it.
            stream = SimpleNamespace(read=member.read)
            s3.upload_fileobj(stream, bucket, key, {"Metadata": {CRC: _crc(info)}}, progress, config)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{info.filename}: damaged ({error})") from None


def _crc(info: zipfile.ZipInfo) -> str:
    return f"{info.CRC:08x}"


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name, with slashes where an archive was made on Windows with backslashes alone.

    Info-ZIP's unzip does the same; .NET before 4.6.1 made such archives.
    """
    dos = info.create_system == 0 and "/" not in info.filename
    return info.filename.replace("\\", "/") if dos else info.filename


def _members(zipped: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by their names, without folders, once there is nothing to object to in any."""
    members: dict[str, zipfile.ZipInfo] = {}
    infos = [info for info in zipped.infolist() if not _name(info).endswith("/")]
    for info in infos:
        name = posixpath.normpath(_name(info))
        objection = "is in it twice" if name in members else _objection(info)
        if objection:
            raise ValueError(f"{info.filename!r} {objection}; nothing was unpacked")
        members[name] = info
    unpacked = sum(info.file_size for info in infos)
    if unpacked > max(MOST_FREELY, MOST_RATIO * size):
        raise ValueError(
            f"{unpacked / 1e9:,.0f} GB in an archive of {size / 1e6:,.1f} MB, as in one made to explode; "
            "nothing was unpacked"
        )
    if sum(info.compress_size for info in infos) > size:
        raise ValueError("its members overlap, as in an archive made to explode; nothing was unpacked")
    return members


def _objection(info: zipfile.ZipInfo) -> str | None:
    """Why a member can't be unpacked, if so."""
    if leads_out(info.orig_filename) or posixpath.normpath(_name(info)) == ".":
        return "its name leads out of the target"
    if info.flag_bits & 1:
        return "is encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    if info.compress_type not in METHODS:
        return "is compressed in a way that Python's zipfile can't read"
    return None
