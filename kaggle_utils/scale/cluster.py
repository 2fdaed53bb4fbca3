"""Films by the million: a Ray cluster segments and measures them; this process writes the rows as shards of Parquet.

Only addresses and rows travel: an actor per core reads films, checks, segments and measures them. Where nodes have
GPUs, the cores of each share its own, and nodes without one have nothing to do. Each process holds a few films at a
time, whatever their number.

The sorted list of films is cut into shards once and for all. A shard's file appears when it is whole, so the same
command resumes with those that are missing; another process repeats what a killed one was doing.

``pandas.read_parquet(out)`` is the whole table; ``pycocotools.mask.decode`` makes a mask of its ``right_lung`` and
``left_lung``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..dicom.coco import to_parquet
from ..files import find_weights, write_bytes
from ..pictures.find import claims_film, find_files, unique_names, without_outputs
from .cluster_work import DEFAULTS, STOPS, Settings, Worker
from .s3_client import connect, explained, find_objects, is_address, list_objects, parse, read_object

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

MANIFEST = "_manifest.json"  # pyarrow and pandas leave out what begins so when they read a folder
SHARD = 1000  # films per file: a stopped run may have to repeat about one of them
BLOCK = 4  # batches per task: what is repeated after a kill, and how often the bar moves
WINDOW = 20_000  # films that Ray is told of at a time: what it remembers of each is some KB in this process
TRIES = 5  # of a task whose process dies; more would hide a film that kills each of them
# No secrets: a cluster's dashboard shows what is sent.
_PLACE = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
INSTALL = "pip install 'ray[data]>=2.60,<2.64' pyarrow pycocotools"


def predict_on_cluster(
    patterns: Iterable[str | Path],
    out: str | Path,
    settings: Settings = DEFAULTS,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    address: str = "local",
    shard: int = SHARD,
) -> dict[str, Any]:
    """Segments and measures films on a Ray cluster; one that can't be read, or is refused, is a row with the reason.

    Args:
        patterns: files, folders and globs, which every node must see under the same paths, and ``s3://`` prefixes and
            objects, from the server that ``AWS_ENDPOINT_URL`` names; every node needs credentials of its own where
            AWS's tools find them.
        out: a folder, or an ``s3://`` prefix: gets ``_manifest.json`` and ``films-NNNNN.parquet``, a row per film:
            what ``predictions.csv`` says, all of :func:`quality.measure`, and each lung as COCO run lengths of
            the film as it lies.
        settings: see there.
        weights: a file that this machine alone needs, or the name of one that ships, see :func:`files.find_weights`.
        device: auto: the GPUs if Ray sees one; cpu; or cuda.
        address: of the cluster; local starts one on this machine, which no other machine reaches, and ends it.
        shard: films per file.

    Returns:
        The manifest: ``films``, ``films_sha256`` (of their list), ``weights`` (their version), ``settings``,
        ``shards`` (each with ``file`` and ``rows``), and ``result``: how many masks, unreadable, refused and doubtful
        films, and the first five errors.

    Raises:
        FileNotFoundError: a pattern names nothing.
        ValueError: ``out`` belongs to other films, weights or settings; no such device; bad weights.
        ImportError: a package is missing.
        OSError: no cluster at ``address``, a store that gives no films, or ``out`` can't be written.
    """
    _check_installed()
    weights = find_weights(weights)
    version = settings.open(weights, "cpu").version  # what is wrong with them is told before a cluster starts
    films = list_films(patterns)
    manifest = _plan(films.column("path").to_pylist(), version, settings, shard)
    missing = _start(out, manifest, address)
    if missing:
        left = sum(manifest["shards"][n]["rows"] for n in missing)
        bar = tqdm(total=len(films), initial=len(films) - left, desc="predict", unit="film", disable=None)
        few = max(1, WINDOW // shard)
        with bar, _cluster(address):
            for start in range(0, len(missing), few):
                blocks = _blocks(films, missing[start : start + few], shard, BLOCK * settings.batch)
                results = _pipeline(blocks, settings, weights, device)
                for number, table in _shards(results, manifest, shard, bar):
                    _write(out, manifest["shards"][number]["file"], to_parquet(table))
    manifest["result"] = _summarise(out, manifest)
    _write_manifest(out, manifest)
    return manifest


# --- what there is to do ---------------------------------------------------------------------------------------------


def list_films(patterns: Iterable[str | Path]) -> pa.Table:
    """Every film that files, folders, globs and ``s3://`` addresses name, sorted, each once: number, name and path.

    Paths are absolute, and bytes, since some are not UTF-8. Folders are searched by :func:`pictures.find.find_files`;
    of the objects below a prefix, all count but those whose suffix says that they are no films, and what this package
    wrote there.
    """
    import pyarrow as pa

    named = [str(pattern) for pattern in patterns]
    local = find_files(pattern for pattern in named if not is_address(pattern))
    found = {str(path.absolute()) for path in local}
    for address in filter(is_address, named):
        found.update(_films_at(address))
    paths = sorted(found)
    names = unique_names([Path(path) for path in paths])
    return pa.table({"number": range(len(paths)), "name": names, "path": [os.fsencode(path) for path in paths]})


def _films_at(address: str) -> list[str]:
    bucket, prefix = parse(address)
    with explained(address):
        there = [f"s3://{bucket}/{key}" for key in find_objects(connect(), address)]
    if there == [f"s3://{bucket}/{prefix}"]:
        return there
    films = [path for path in without_outputs(there) if claims_film(path.rpartition("/")[2]) is not False]
    if not films:
        raise FileNotFoundError(f"{address}: no object that could be a film")
    return films


def _plan(paths: list[bytes], version: str, settings: Settings, shard: int) -> dict[str, Any]:
    """The manifest before the first film."""
    digest = hashlib.sha256(b"\n".join(paths)).hexdigest()
    rows = [min(shard, len(paths) - start) for start in range(0, len(paths), shard)]
    return {
        "films": len(paths),
        "films_sha256": digest,
        "weights": version,
        "settings": asdict(settings),
        "shards": [{"file": f"films-{n:05d}.parquet", "rows": count} for n, count in enumerate(rows)],
    }


def _start(out: str | Path, manifest: dict[str, Any], address: str) -> list[int]:
    """The shards that are missing; writes the manifest, or raises ValueError where the folder has another one."""
    there = _names(out)
    if MANIFEST in there:
        _check_same(out, manifest)
    elif any(shard["file"] in there for shard in manifest["shards"]):
        raise ValueError(f"{out}: shards without {MANIFEST}, nobody knows of which films: choose another folder")
    else:
        _check_address(address)  # before anything is written
        _write_manifest(out, manifest)
    return [n for n, shard in enumerate(manifest["shards"]) if shard["file"] not in there]


def _check_same(out: str | Path, manifest: dict[str, Any]) -> None:
    old = json.loads(_read(out, MANIFEST))
    for key, value in manifest.items():
        if old.get(key) != value:
            raise ValueError(
                f"{out}: what is there was made with other {key.replace('_', ' ')}: "
                f"{str(old.get(key))[:200]} there, {str(value)[:200]} now; choose another folder"
            )


# --- a folder, or a prefix in S3 -------------------------------------------------------------------------------------


def _names(out: str | Path) -> set[str]:
    """What is there."""
    if not is_address(out):
        return {path.name for path in Path(out).glob("*")}
    bucket, prefix = parse(out, folder=True)
    with explained(out):
        return {key.removeprefix(prefix) for key in list_objects(connect(), bucket, prefix)}


def _read(out: str | Path, name: str) -> bytes:
    if not is_address(out):
        return Path(out, name).read_bytes()
    with explained(out):
        bucket, prefix = parse(out, folder=True)
        return read_object(connect(), bucket, prefix + name)


def _write(out: str | Path, name: str, data: bytes) -> None:
    """Writes a file that is whole or not there at all."""
    if not is_address(out):
        Path(out).mkdir(parents=True, exist_ok=True)
        write_bytes(Path(out, name), data)
        return
    bucket, prefix = parse(out, folder=True)
    with explained(out):
        connect().put_object(Bucket=bucket, Key=prefix + name, Body=data)


def _write_manifest(out: str | Path, manifest: dict[str, Any]) -> None:
    _write(out, MANIFEST, json.dumps(manifest, indent=1).encode())


# --- on the cluster --------------------------------------------------------------------------------------------------


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """A connection to a Ray cluster; a local one listens to this machine alone, and its files go when it ends."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns users comes back as an exception
    if address == "local":  # Ray's name for "loopback alone" on Linux too; read when it is imported
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))  # else Ray leaves one in the home folder
    import ray
    from ray.util.annotations import RayDeprecationWarning

    warnings.simplefilter("ignore", RayDeprecationWarning)  # max_task_retries has no other name yet
    options: dict[str, Any]
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        if address == "local":
            # Workers' temporary files too: one that is ended while it starts leaves its own.
            options = {
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
                "runtime_env": {"env_vars": {"TMPDIR": folder}},
            }
        else:  # the nodes need Ray and what requirements.txt names, not this code
            _check_address(address)
            variables = {name: os.environ[name] for name in _PLACE if name in os.environ}
            options = {"runtime_env": {"py_modules": [str(Path(__file__).parents[1])], "env_vars": variables}}
        # A local cluster's API server does one thing: it asks the cloud's metadata server where it runs.
        with _no_stderr(), patch("ray._private.services.start_api_server", return_value=("", None)):
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        try:
            yield
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raises ConnectionError where nobody answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"no cluster at {address}: {error}") from None


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Keeps what a C++ library writes past Python from the screen."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _pipeline(blocks: list[pa.Table], settings: Settings, weights: Path, device: str) -> Dataset:
    import ray

    cores, gpu = _processors(device, settings.backend)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    films: Any = ray.data.from_arrow(blocks)  # its stubs know no class with arguments of its own
    return films.map_batches(
        Worker,
        batch_size=settings.batch,
        compute=ray.data.ActorPoolStrategy(size=min(cores, len(blocks))),
        num_cpus=1,
        num_gpus=gpu,
        fn_constructor_args=(settings, weights.name, weights.read_bytes(), "auto" if gpu else "cpu"),
        max_task_retries=TRIES,
    )


def _processors(device: str, backend: str) -> tuple[int, float]:
    """How many of the cluster's cores are to work, and the share of a GPU that each of them has."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
    with_gpu = [node for node in nodes if "GPU" in node]
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not with_gpu):
        raise ValueError(
            f"device is auto, cpu or cuda on a cluster, not {device}; Ray sees a GPU on {len(with_gpu)} nodes"
        )
    share = 0.0
    if with_gpu and device != "cpu" and backend == "torch":
        nodes, share = with_gpu, min(1, *(node["GPU"] / node["CPU"] for node in with_gpu))
    return int(sum(node["CPU"] for node in nodes)), share


# --- what comes back -------------------------------------------------------------------------------------------------


def _blocks(films: pa.Table, missing: list[int], shard: int, size: int) -> list[pa.Table]:
    """The films of the missing shards, in tables of one task each."""
    parts = [films.slice(n * shard, shard) for n in missing]
    return [part.slice(start, size) for part in parts for start in range(0, len(part), size)]


def _shards(results: Dataset, manifest: dict[str, Any], shard: int, bar: tqdm) -> Iterator[tuple[int, pa.Table]]:
    """Shards in the order in which they become whole; those under way wait in memory."""
    import pyarrow as pa

    waiting: dict[int, list[pa.Table]] = defaultdict(list)
    part: Any  # a pa.Table, as the format says
    for part in results.iter_batches(batch_size=None, batch_format="pyarrow"):
        for error in part.column("error").to_pylist():
            if error.endswith(STOPS):
                raise OSError(error)
        bar.update(len(part))
        shards = part.column("number").to_numpy() // shard
        for n in map(int, np.unique(shards)):
            waiting[n].append(part.filter(pa.array(shards == n)))
            if sum(map(len, waiting[n])) == manifest["shards"][n]["rows"]:
                yield n, pa.concat_tables(waiting.pop(n)).sort_by("number").drop_columns("number")


def _summarise(out: str | Path, manifest: dict[str, Any]) -> dict[str, Any]:
    from pyarrow import parquet

    files = (BytesIO(_read(out, shard["file"])) for shard in manifest["shards"])
    columns = ["height", "flag", "error"]
    rows = pd.concat([parquet.read_table(file, columns=columns).to_pandas() for file in files])
    failed, read = rows["error"] != "", rows["height"].notna()
    return {
        "masks": int((~failed).sum()),
        "unreadable": int((failed & ~read).sum()),
        "refused": int((failed & read).sum()),
        "doubtful": int(rows["flag"].isin(("check", "reject")).sum()),
        "errors": rows["error"][failed].head(5).tolist(),
    }


def _check_installed() -> None:
    missing = [name for name in ("ray", "pyarrow", "pycocotools") if find_spec(name) is None]
    if missing:
        raise ImportError(f"a cluster needs {' and '.join(missing)}: {INSTALL}")
