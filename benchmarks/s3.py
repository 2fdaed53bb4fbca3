"""Copies a zip archive of 2 GB to S3, unpacks it there and fetches the result: seconds, and each command's peak memory.

    python -m benchmarks.s3 [--gigabytes 2]

The server (moto) runs on this machine and shares its cores, so the rates are those of both together. Each command is a
process of its own. Every byte is checked: zipfile does so while it unpacks, ``download`` afterwards. Writes
``results/s3.json``.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.common import RESULTS, machine, make_parser, need, peak_mb, s3_server, write_json
from kaggle_utils.scale import s3

LIMIT_MB = 300
FILM = 8 << 20  # bytes of each of the smaller members, which together are two fifths of the archive


def write_archive(path: Path, size: int) -> int:
    """Noise, which doesn't get smaller: a stored member of three fifths of the size, deflated films; their number."""
    noise = random.Random(0).randbytes(FILM)
    with zipfile.ZipFile(path, "w", compresslevel=1) as archive:
        with archive.open("large.bin", "w", force_zip64=True) as member:
            for n in range(size * 3 // 5 // FILM):
                member.write(noise[n:] + noise[:n])
        for n in range(size * 2 // 5 // FILM + 1):
            archive.writestr(f"films/{n:04}.bin", noise[-n:] + noise[:-n], zipfile.ZIP_DEFLATED)
        return len(archive.infolist())


def map_large_objects() -> None:
    """moto reads an object whole for each range that is asked for; here it maps large ones into memory."""
    from moto.s3.models import FakeKey

    whole = FakeKey.value

    def value(self):
        if self.contentsize <= 2 * FILM:
            return whole.fget(self)
        self._value_buffer.flush()
        return mmap.mmap(self._value_buffer.fileno(), 0, access=mmap.ACCESS_READ)

    FakeKey.value = whole.getter(value)


def measured(command: str, source: str, target: str) -> dict[str, float]:
    """A command in a process of its own: seconds, and its peak resident memory before and at the end."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.s3", "--child", command, source, target], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def child(command: str, source: str, target: str) -> None:
    before, begun = peak_mb(), time.perf_counter()
    moved = getattr(s3, command)(source, target)
    seconds = time.perf_counter() - begun
    found = {
        "files": moved.files,
        "bytes": moved.bytes,
        "seconds": round(seconds, 1),
        "mb_per_s": round(moved.bytes / 1e6 / seconds, 1),
        "rss_before_mb": round(before, 1),
        "peak_rss_mb": round(peak_mb(), 1),
    }
    print(json.dumps(found))


def check_same(archive: Path, folder: Path) -> None:
    """The folder holds the archive's files, each of its size; their bytes were checked on the way."""
    with zipfile.ZipFile(archive) as zipped:
        expected = {member.filename: member.file_size for member in zipped.infolist()}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix(): path.stat().st_size for path in files} == expected


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the archive")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    need("moto")
    map_large_objects()
    with tempfile.TemporaryDirectory() as folder, s3_server():
        archive = Path(folder) / "set.zip"
        members = write_archive(archive, round(args.gigabytes * 1e9))
        s3.connect().create_bucket(Bucket="films")
        result = {
            "machine": f"{machine()}, with the server",
            "load_before": round(os.getloadavg()[0], 1),
            "archive_bytes": archive.stat().st_size,
            "members": members,
        }
        for command, source, target in (
            ("upload", str(archive), "s3://films/in"),
            ("unzip", "s3://films/in/set.zip", "s3://films/out"),
            ("download", "s3://films/out", f"{folder}/back"),
        ):
            result[command] = measured(command, source, target)
            print(command, result[command], flush=True)
        check_same(archive, Path(folder, "back"))
    write_json(RESULTS / "s3.json", result)
    if result["unzip"]["peak_rss_mb"] >= LIMIT_MB:
        raise SystemExit(f"unzip took {result['unzip']['peak_rss_mb']} MB, more than {LIMIT_MB}")


if __name__ == "__main__":
    main()
