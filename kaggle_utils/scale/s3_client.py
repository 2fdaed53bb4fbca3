"""How this project talks to S3: client, addresses, listings, checksums, threads, boto3's exceptions as single lines."""

from __future__ import annotations

import hashlib
import re
import threading
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

SCHEME = "s3://"
INSTALL = "pip install boto3"
WORKERS = 4  # files at a time; those in many parts have as many parts under way each
PART = 8 << 20  # bytes a part and a block; S3 takes no smaller parts than 5 MiB
BLOCK = 1 << 20  # bytes of a file that are held at a time for its checksum
CONNECTING = threading.Lock()  # boto3 makes one client at a time
ATTEMPTS = 4  # of a request; with boto3's waits in between, a dead server is given up after 7 s at most
CONNECT_S, READ_S = 5, 30  # seconds without an answer, without another byte
CRC = "crc32"  # name of the metadata
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with a profile of `aws configure`"
DENIED = ("AccessDenied", "403", "AllAccessDisabled")


@dataclass(frozen=True)
class Moved:
    """What a command did: files and bytes that it moved, and files that were there already."""

    files: int
    bytes: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 1e6:.1f} MB; {self.skipped} were there already"


def connect(attempts: int = ATTEMPTS):
    """A client of boto3 that gives up in seconds where nothing answers, and tries again where something might."""
    import boto3
    from botocore.config import Config

    with CONNECTING:
        return boto3.client(
            "s3",
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                max_pool_connections=WORKERS**2,
                retries={"mode": "standard", "total_max_attempts": attempts},
            ),
        )


def is_address(path: str | Path | None) -> bool:
    """Says whether a path is an ``s3://`` address."""
    return str(path).startswith(SCHEME)


def parse(address: str | Path, *, folder: bool = False) -> tuple[str, str]:
    """Bucket and key; that of a folder ends in a slash, or is empty."""
    parts = re.fullmatch(r"s3://([\w.-]+)(?:/(.*))?", str(address), re.DOTALL)
    if not parts:
        raise ValueError(f"{address}: not an address in S3, those are s3://bucket/prefix")
    bucket, key = parts[1], parts[2] or ""
    if folder:
        key = key.rstrip("/")
        if key:
            key += "/"
    return bucket, key


def leads_out(name: str) -> bool:
    """Whether a path would lead out of its folder, on any system: absolute, with a drive, or with ``..``."""
    absolute = re.match(r"[/\\]|[A-Za-z]:", name)
    return bool(absolute) or "\0" in name or ".." in re.split(r"[/\\]", name)


def list_objects(s3, bucket: str, prefix: str) -> dict[str, int]:
    """Sizes of the objects whose keys begin so; what stands for a folder is none."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = pages.search("Contents || `[]`")
    return {each["Key"]: each["Size"] for each in found if not each["Key"].endswith("/")}


def find_objects(s3, address: str) -> dict[str, int]:
    """Sizes by key of the object at an address, or of all below it; FileNotFoundError where there is nothing."""
    bucket, prefix = parse(address)
    found = list_objects(s3, bucket, prefix)
    if prefix in found:
        return {prefix: found[prefix]}
    below = parse(address, folder=True)[1]
    found = {key: size for key, size in found.items() if key.startswith(below)}
    if not found:
        hint = "; there are no globs in S3, only prefixes" if "*" in address else ""
        raise FileNotFoundError(f"{address}: no such object, and none below it{hint}")
    return found


def read_object(s3, bucket: str, key: str, *, most: int | None = None, **asked: str) -> bytes:
    """An object's bytes, asked for again where an answer breaks off, which boto3 leaves to its caller.

    Raises:
        ValueError: there are more than ``most``.
    """
    from s3transfer.utils import S3_RETRYABLE_DOWNLOAD_ERRORS  # comes with boto3

    def read() -> bytes:
        answer = s3.get_object(Bucket=bucket, Key=key, **asked)
        if most is not None and answer["ContentLength"] > most:
            raise ValueError(f"{SCHEME}{bucket}/{key}: over {most:,} bytes: too large")
        return answer["Body"].read()

    for _ in range(ATTEMPTS - 1):
        with suppress(S3_RETRYABLE_DOWNLOAD_ERRORS):
            return read()
    return read()


def run(work: Callable[[str, Callable[[int], None]], bool], sizes: dict[str, int], about: str) -> Moved:
    """Does the work on each key, in threads, with a bar of bytes; the first failure, or Ctrl-C, stops all of them."""
    stopped = threading.Event()
    moved: list[int] = []
    bar = tqdm(total=sum(sizes.values()), desc=about, unit="B", unit_scale=True, disable=None)
    with ThreadPoolExecutor(WORKERS) as pool, bar:

        def progress(count: int) -> None:
            if stopped.is_set():  # in the middle of a file
                raise InterruptedError("stopped")
            bar.update(count)

        jobs = {pool.submit(work, key, progress): key for key in sizes}
        try:
            for job in as_completed(jobs):
                if job.result():
                    moved.append(sizes[jobs[job]])
                else:
                    bar.update(sizes[jobs[job]])
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return Moved(len(moved), sum(moved), len(sizes) - len(moved))


def is_same(s3, bucket: str, key: str, path: Path) -> bool | None:
    """Whether a file is what the object holds, by size and checksum; None where it has no checksum that tells."""
    head = s3.head_object(Bucket=bucket, Key=key)
    if not has_size(path, head["ContentLength"]):
        return False
    if CRC in head["Metadata"]:
        return crc32(path) == head["Metadata"][CRC]
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    if encrypted:
        return None  # the ETag is no MD5 then
    etag = head["ETag"].strip('"')
    if "-" not in etag:
        return _md5s(path, max(1, head["ContentLength"]))[0].hex() == etag
    first = s3.head_object(Bucket=bucket, Key=key, PartNumber=1)
    digests = _md5s(path, first["ContentLength"])
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    if f"{whole}-{len(digests)}" == etag:
        return True
    return None  # the parts may have had other sizes: a miss says nothing


def _md5s(path: Path, part: int) -> list[bytes]:
    """MD5 of each part of a file."""
    digests = []
    with path.open("rb") as file:
        for start in range(0, max(1, path.stat().st_size), part):
            digest = hashlib.md5(usedforsecurity=False)
            for at in range(start, start + part, BLOCK):
                digest.update(file.read(min(BLOCK, start + part - at)))
            digests.append(digest.digest())
    return digests


def crc32(path: Path) -> str:
    """CRC-32 of a file, 8 hexadecimal digits, as zip archives have it."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(BLOCK):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"


def has_size(path: Path, size: int) -> bool:
    """Whether it is a file of so many bytes."""
    return path.is_file() and path.stat().st_size == size


def abort_leftovers(s3, bucket: str, prefix: str, keys: Collection[str]) -> None:
    """Drops the parts that a killed run of the same command left: they are no objects, but they cost money."""
    from botocore.exceptions import ClientError

    try:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        for left in pages.search("Uploads || `[]`"):
            if left["Key"] in keys:
                s3.abort_multipart_upload(Bucket=bucket, Key=left["Key"], UploadId=left["UploadId"])
    except ClientError as error:
        if error.response["Error"]["Code"] not in DENIED:  # who may write may not always list uploads
            raise


def settings(part: int = PART, *, threads: bool = True):
    """A TransferConfig with parts of this many bytes, sent and fetched by threads of their own or by the caller's."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=part,
        multipart_chunksize=part,
        max_concurrency=WORKERS,
        use_threads=threads,
        num_download_attempts=ATTEMPTS,
        preferred_transfer_client="classic",
    )


@contextmanager
def explained(address: str | Path) -> Iterator[None]:
    """boto3's many exceptions as OSErrors of one line about the address.

    Raises:
        ImportError: boto3 is not installed.
    """
    try:
        from boto3 import exceptions as boto3_errors
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError
    except ModuleNotFoundError:
        raise ImportError(f"S3 needs boto3: {INSTALL}") from None

    try:
        yield
    except (BotoCoreError, ClientError, boto3_errors.Boto3Error, RetriesExceededError) as error:
        kind, said = _explain(getattr(error, "last_exception", None) or error)
        raise kind(f"{address}: {said}") from error


def _explain(error: BaseException) -> tuple[type[OSError], str]:
    from botocore import exceptions as found

    if type(error).__name__ == "S3UploadFailedError" and error.__context__:
        error = error.__context__
    if isinstance(error, found.ClientError):
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        kind, said = _REFUSALS.get(code, (OSError, "{code} {message}"))
        return kind, said.format(code=code, message=message, operation=error.operation_name).strip()
    if isinstance(error, (found.NoCredentialsError, found.PartialCredentialsError)):
        return PermissionError, f"no credentials: {CREDENTIALS}"
    if isinstance(error, (found.HTTPClientError, found.ConnectionError, found.IncompleteReadError, OSError)):
        return OSError, f"the network is broken ({error}); the same command resumes when it works"
    return OSError, str(error)


_REFUSALS: dict[str, tuple[type[OSError], str]] = {
    "NoSuchBucket": (FileNotFoundError, "no such bucket"),
    "RequestTimeTooSkewed": (
        PermissionError,
        "the server's clock and this machine's differ too much: set this machine's clock",
    ),
    **dict.fromkeys(("NoSuchKey", "404"), (FileNotFoundError, "no such object")),
    **dict.fromkeys(DENIED, (PermissionError, "permission denied, these credentials may not call {operation}")),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        (PermissionError, f"the credentials were refused ({{code}}): {CREDENTIALS}"),
    ),
    **dict.fromkeys(("PreconditionFailed", "412"), (OSError, "it was replaced meanwhile: give the command again")),
}
