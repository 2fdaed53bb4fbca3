"""Films by the million: a Ray cluster segments and measures them; this process writes the rows as shards of Parquet.

Only addresses and rows travel where there is no GPU: an actor per core reads a film, checks, segments and measures it.
With GPUs, any core reads and checks films and measures masks, and an actor per GPU computes the network; thumbnails of
the network's own size and its probabilities travel between them. Each process holds a few films at a time, whatever
their number.

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
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..infer import DEFAULT_WEIGHTS, LungSegmenter
from ..pictures.find import claims_film, find_files, unique_names, without_outputs
from .cluster_work import DEFAULTS, STOPS, Network, Settings, Whole, explained, finish_films, open_store, read_films
from .s3 import is_address

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs
    from ray.data import Dataset

MANIFEST = "_manifest.json"  # pyarrow and pandas leave out what begins so when they read a folder
SHARD = 1000  # films per file: a stopped run may have to repeat about one of them
BLOCK = 4  # batches per task: what is repeated after a kill, and how often the bar moves
WINDOW = 20_000  # films that Ray is told of at a time: what it remembers of each is some KB in this process
TRIES = 5  # of a task whose process dies; more would hide a film that kills each of them
# No secrets: a cluster's dashboard shows what is sent.
_PLACE = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
_NEEDED = {"ray[data]>=2.60,<2.64": "ray", "pyarrow": "pyarrow", "pycocotools": "pycocotools"}


def predict(
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
            what ``predictions.csv`` says, all of :func:`scale.measure.measure`, and each lung as COCO run lengths of
            the film as it lies.
        settings: see there.
        weights: a file that this machine alone needs; None is the one that ships with the package.
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
    weights = Path(weights or DEFAULT_WEIGHTS)
    segmenter = settings.open(weights, "cpu")  # what is wrong with them is told before a cluster starts
    films = list_films(patterns, out)
    manifest = _plan(films.column("path").to_pylist(), segmenter.version, settings, shard)
    with explained(out):
        store, root = open_store(out)
        missing = _start(store, root, manifest, address)
    if missing:
        with _bar(manifest, missing) as bar, _cluster(address):
            few = max(1, WINDOW // shard)
            for start in range(0, len(missing), few):
                blocks = _blocks(films, missing[start : start + few], shard, BLOCK * settings.batch)
                results = _pipeline(blocks, settings, weights, segmenter, device)
                for number, table in _shards(results, manifest, shard, bar):
                    _write(store, f"{root}/{manifest['shards'][number]['file']}", _parquet(table))
    manifest["result"] = _summarise(store, root, manifest)
    _write_manifest(store, root, manifest)
    return manifest


def _bar(manifest: dict[str, Any], missing: list[int]) -> tqdm:
    left = sum(manifest["shards"][n]["rows"] for n in missing)
    total = manifest["films"]
    return tqdm(total=total, initial=total - left, desc="predict", unit="film", disable=None)


# --- what there is to do ---------------------------------------------------------------------------------------------


def list_films(patterns: Iterable[str | Path], out: str | Path | None = None) -> pa.Table:
    """Every film that files, folders, globs and ``s3://`` addresses name, sorted, each once: number, name and path.

    Paths are absolute, and bytes, since some are not UTF-8. Folders are searched as in :func:`scale.find.find_files`;
    of the objects below a prefix, all count but those whose suffix says that they are no films, and what this package
    wrote there.
    """
    import pyarrow as pa

    local, found = [], set()
    for pattern in map(str, patterns):
        if is_address(pattern):
            found.update(_list_objects(pattern))
        else:
            local.append(pattern)
    here = None if out is None or is_address(out) else out
    found.update(str(path.absolute()) for path in find_files(local, out=here))
    paths = sorted(found)
    names = unique_names([Path(path) for path in paths])
    return pa.table({"number": range(len(paths)), "name": names, "path": [os.fsencode(path) for path in paths]})


def _list_objects(address: str) -> list[str]:
    from pyarrow import fs

    with explained(address):
        store, root = open_store(address)
        if store.get_file_info(root.partition("/")[0]).type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{address}: no such bucket")
        if store.get_file_info(root).is_file:
            return [f"s3://{root}"]
        infos = store.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    there = [info.path for info in infos if info.is_file]
    found = [f"s3://{path}" for path in without_outputs(there) if claims_film(path.rpartition("/")[2]) is not False]
    if not found:
        raise FileNotFoundError(f"{address}: no object that could be a film")
    return found


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


def _start(store: fs.FileSystem, root: str, manifest: dict[str, Any], address: str) -> list[int]:
    """The shards that are missing; writes the manifest, or raises ValueError where the folder has another one."""
    from pyarrow import fs

    there = {info.base_name for info in store.get_file_info(fs.FileSelector(root, allow_not_found=True))}
    if MANIFEST in there:
        _check_same(store, root, manifest)
    elif any(shard["file"] in there for shard in manifest["shards"]):
        raise ValueError(f"{root}: shards without {MANIFEST}, nobody knows of which films: choose another folder")
    else:
        _check_address(address)  # before anything is written
        store.create_dir(root, recursive=True)
        _write_manifest(store, root, manifest)
    return [n for n, shard in enumerate(manifest["shards"]) if shard["file"] not in there]


def _check_same(store: fs.FileSystem, root: str, manifest: dict[str, Any]) -> None:
    with store.open_input_file(f"{root}/{MANIFEST}") as file:
        old = json.loads(file.read())
    for key, value in manifest.items():
        if old.get(key) != value:
            raise ValueError(
                f"{root}: what is there was made with other {key.replace('_', ' ')}: "
                f"{_short(old.get(key))} there, {_short(value)} now; choose another folder"
            )


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
        with _no_stderr():
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


def _pipeline(
    blocks: list[pa.Table], settings: Settings, weights: Path, segmenter: LungSegmenter, device: str
) -> Dataset:
    import ray

    cpus, gpus = _processors(device, settings.backend)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    films: Any = ray.data.from_arrow(blocks)  # its stubs know no function with arguments of its own
    size = settings.batch
    network = {
        "compute": ray.data.ActorPoolStrategy(size=min(gpus or cpus, len(blocks))),
        "batch_size": size,
        "fn_constructor_args": (settings, weights.name, weights.read_bytes(), "auto" if gpus else "cpu"),
        "max_task_retries": TRIES,
    }
    if not gpus:
        return films.map_batches(Whole, num_cpus=1, **network)
    judge = copy(segmenter)
    judge.model = None  # type: ignore[assignment]  # finishing needs none, and not every backend's can travel
    read = films.map_batches(read_films, batch_size=size, fn_args=(segmenter.size, settings.force))
    computed = read.map_batches(Network, num_gpus=1, **network)
    return computed.map_batches(finish_films, batch_size=size, fn_args=(judge, settings.force))


def _processors(device: str, backend: str) -> tuple[int, int]:
    """The cluster's CPU cores, and those of its GPUs that are to compute."""
    import ray

    found = ray.cluster_resources()
    cpus, gpus = int(found.get("CPU", 1)), int(found.get("GPU", 0))
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus):
        raise ValueError(f"device is auto, cpu or cuda on a cluster, not {device}; Ray sees {gpus} GPUs")
    if device == "cpu" or backend != "torch":
        gpus = 0
    return cpus, gpus


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


def _summarise(store: fs.FileSystem, root: str, manifest: dict[str, Any]) -> dict[str, Any]:
    from pyarrow import parquet

    counts: Counter[str] = Counter()
    errors: list[str] = []
    for shard in manifest["shards"]:
        path = f"{root}/{shard['file']}"
        rows = parquet.read_table(path, columns=["height", "flag", "error"], filesystem=store).to_pandas()
        failed, read = rows["error"] != "", rows["height"].notna()
        counts.update(
            masks=int((~failed).sum()),
            unreadable=int((failed & ~read).sum()),
            refused=int((failed & read).sum()),
            doubtful=int(rows["flag"].isin(("check", "reject")).sum()),
        )
        errors += rows["error"][failed].tolist()[: 5 - len(errors)]
    return {**counts, "errors": errors}


def _parquet(table: pa.Table) -> bytes:
    from pyarrow import parquet

    buffer = BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _write(store: fs.FileSystem, path: str, data: bytes) -> None:
    """A file that is whole or not there at all."""
    folder, _, name = path.rpartition("/")
    with store.open_output_stream(f"{folder}/.{name}.part") as file:
        file.write(data)
    store.move(f"{folder}/.{name}.part", path)


def _write_manifest(store: fs.FileSystem, root: str, manifest: dict[str, Any]) -> None:
    _write(store, f"{root}/{MANIFEST}", json.dumps(manifest, indent=1).encode())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]} …"


def _check_installed() -> None:
    missing = [package for package, module in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"a cluster needs {' and '.join(missing)}: pip install {' '.join(f'{name!r}' for name in missing)}"
        )
