"""Notebooks, code and weights to Kaggle, by Kaggle's own packages; their metadata lie in ``notebooks/kaggle``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from .weights import LICENCES, OWNER, import_kagglehub, upload_model

HOME = Path("notebooks", "kaggle")  # in the clone: a folder for each notebook, for the code and for the model
# Of the clone, as notebooks look for them in an attached dataset.
CODE = ("kaggle_utils", "benchmarks", "results", "LICENSE")
INSTALL = "pip install 'kaggle>=2.2.4,<3' six, with Python 3.11 or newer"
LOGIN = (
    "Kaggle got no credentials, or refused them: make a token at https://www.kaggle.com/settings/api and put it into "
    "KAGGLE_API_TOKEN or ~/.kaggle/access_token"
)
POLL = 20  # seconds before each question for a status; the server needs a moment to tell the new version
PATIENCE = 5  # questions that may fail in a row: one bad gateway shouldn't end the wait for hours of training
LOG_LINES = 20  # shown of a notebook that failed
# Of a notebook (kagglesdk's KernelWorkerStatus), and of a dataset.
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED", "ready", "failed", "deleted")
NOT_CODE = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.part")


def publish(owner: str, *, wheel: bool = False) -> Iterator[str]:
    """Puts the code up as a private dataset and the weights as a private model, or new versions of them.

    Args:
        owner: name on Kaggle.
        wheel: the dataset holds a wheel, which notebooks install, in place of the folders.

    Yields:
        A line for each that is ready.

    Raises:
        ImportError: one of Kaggle's packages is missing.
        FileNotFoundError: a file to publish is.
        OSError: Kaggle refused, or the wheel can't be built.
    """
    import_kagglehub()
    api = _connect()
    with _staged("code", "dataset-metadata.json", owner) as (stage, metadata):
        if wheel:
            _build_wheel(stage)
        else:
            for name in CODE:
                _copy(Path(name), stage)
        ref = metadata["id"]
        version = _publish(api, ref, str(stage))
    yield f"{ref}: version {version} ready, https://www.kaggle.com/datasets/{ref}"
    for name in LICENCES:
        with _explained(name):
            handle = upload_model(name, owner)
        yield f"{handle}: sent, https://www.kaggle.com/models/{handle}"
    with _staged("model", "model-metadata.json", owner) as (stage, metadata), _explained(metadata["slug"]):
        api.model_update(str(stage))  # title and card, which kagglehub doesn't send


def _build_wheel(stage: Path) -> None:
    """Builds the clone's wheel into a folder: the package with its weights, and the results that notebooks read."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(stage), "."]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"pip can't build the wheel: {' '.join(done.stderr.split()[-40:])}")


def _publish(api, ref: str, stage: str) -> int:
    """Puts a folder up as a dataset's next version and waits until it is ready; says which one it is."""
    _, before = _status(api, ref)
    with _explained(ref):
        if before:
            told = api.dataset_create_version(stage, "unet-lung kaggle publish", quiet=True, dir_mode="zip")
        else:
            told = api.dataset_create_new(stage, quiet=True, dir_mode="zip")
    if told.error:
        raise OSError(f"{ref}: {told.error}")

    def ask() -> str:
        status, now = _status(api, ref)
        return status if now > before else "waiting for the new version"

    if _wait(ref, ask) != "ready":
        raise OSError(f"{ref}: Kaggle could not process it, see https://www.kaggle.com/datasets/{ref}")
    return before + 1


def push(notebooks: Sequence[str], owner: str, *, out: str | Path = "runs/kaggle", wait: bool = True) -> Iterator[str]:
    """Pushes notebooks one after the other, each when those that it reads have run, and fetches their outputs.

    Args:
        notebooks: numbers, ``01`` to ``05``, or ``all``.
        owner: name on Kaggle.
        out: folder to write, a folder below it for each notebook.
        wait: until each has run; without it outputs are not fetched, and no notebook may read another one that is
            pushed.

    Yields:
        A line for each push, each end, each folder of outputs; of a notebook that failed the last lines of its log.

    Raises:
        ImportError: Kaggle's package is missing.
        ValueError: no such notebook, or its metadata has problems.
        OSError: Kaggle refused, or a notebook failed; those after it were not pushed.
    """
    names = choose(notebooks)
    if not wait:
        _check_independent(names)
    api = _connect()
    for name in names:
        with _staged(name, "kernel-metadata.json", owner) as (stage, metadata), _explained(name):
            told = api.kernels_push(str(stage))
        if told.error:
            raise OSError(f"{name}: {told.error}")
        kinds = (told.invalid_dataset_sources, told.invalid_kernel_sources, told.invalid_model_sources)
        missing = [source for kind in kinds for source in kind or ()]
        if missing:
            raise OSError(
                f"{name} was pushed, but Kaggle doesn't know {', '.join(missing)}: `kaggle publish` comes first"
            )
        yield f"{name}: version {told.versionNumber} pushed, {told.url}"
        if wait:
            yield from _finish(api, name, metadata["id"], Path(out) / name)


def _finish(api, name: str, ref: str, out: Path) -> Iterator[str]:
    """Waits for a notebook's end and fetches its outputs; yields what :func:`push` says of both."""
    start = time.monotonic()
    status = _wait(name, lambda: api.kernels_status(ref).status.name)
    if status != "COMPLETE":
        yield _log(api, ref)
        raise OSError(f"https://www.kaggle.com/code/{ref} ended with {status}; the last lines of its log are above")
    yield f"{name}: complete after {(time.monotonic() - start) / 60:.1f} min, fetching its outputs"
    with _explained(ref):
        api.kernels_output(ref, str(out), force=True, quiet=True, page_size=100)
    yield f"{name}: outputs in {out}"


def choose(wanted: Sequence[str], folder: str | Path = ".") -> list[str]:
    """Names of notebooks in the order in which they run, by their numbers; ``all`` are those that have metadata.

    Raises:
        ValueError: there is no such notebook.
        FileNotFoundError: this is no clone.
    """
    there = sorted(path.parent.name for path in (Path(folder) / HOME).glob("*/kernel-metadata.json"))
    if not there:
        raise FileNotFoundError(f"{Path(folder) / HOME}: no notebook's metadata; run this in the folder of the clone")
    numbers = [name[:2] for name in there]
    unknown = set(wanted) - {"all", *numbers}
    if unknown:
        raise ValueError(f"no notebook {', '.join(sorted(unknown))}: choose of {', '.join(numbers)} or all")
    return [name for name in there if "all" in wanted or name[:2] in wanted]


def _read_metadata(name: str, file: str, owner: str) -> dict[str, Any]:
    """What Kaggle is told of a notebook or a dataset, with the owner's name; ``code_file`` is a whole path.

    Raises:
        FileNotFoundError: this is no clone.
    """
    path = HOME / name / file
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run this in the folder of the clone")
    metadata = _given_to(owner, json.loads(path.read_text(encoding="utf-8")))
    if "code_file" in metadata:
        metadata["code_file"] = str((path.parent / metadata["code_file"]).resolve())
    return metadata


def _given_to(owner: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata with another owner's name: what is ours is called ``OWNER/…``."""

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(each) for each in value]
        ours = isinstance(value, str) and value.startswith(f"{OWNER}/")
        return f"{owner}/{value.partition('/')[2]}" if ours else value

    given = {key: renamed(value) for key, value in metadata.items()}
    return given | ({"ownerSlug": owner} if "ownerSlug" in given else {})


def _check_independent(names: Sequence[str]) -> None:
    every = [_read_metadata(name, "kernel-metadata.json", OWNER) for name in names]
    pushed = {metadata["id"] for metadata in every}
    for name, metadata in zip(names, every):
        if pushed & set(metadata["kernel_sources"]):
            raise ValueError(f"{name} reads what another of these writes: push them without --no-wait, or one by one")


@contextmanager
def _staged(name: str, file: str, owner: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary folder with the metadata, as Kaggle's package wants it."""
    metadata = _read_metadata(name, file, owner)
    with TemporaryDirectory() as stage:
        (Path(stage) / file).write_text(json.dumps(metadata), encoding="utf-8")
        yield Path(stage), metadata


def _copy(source: Path, stage: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, stage / source.name, ignore=NOT_CODE)
    else:
        shutil.copy(source, stage)


def _connect():
    """Kaggle's API, logged in."""
    try:
        with redirect_stdout(StringIO()):  # it explains itself in a page of text
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
    except ImportError as error:
        raise ImportError(f"Kaggle's package is missing, or too old ({error}): {INSTALL}") from None
    except SystemExit:
        raise PermissionError(LOGIN) from None
    return api


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Kaggle's refusals in one line, without what its packages print."""
    from requests import HTTPError

    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    except HTTPError as error:
        response: Any = error.response
        if response is not None and response.status_code == 401:
            raise PermissionError(LOGIN) from None
        message = " ".join(str(error).split())
        with suppress(AttributeError, ValueError, KeyError, TypeError):  # no answer, or one without a message
            message = response.json()["message"]
        raise OSError(f"{what}: Kaggle refused: {message}") from None


def _status(api, ref: str) -> tuple[str, int]:
    """Of a dataset, and the number of its newest version; 0 where there is none."""
    from requests import HTTPError

    try:
        told = json.loads(api.dataset_status(ref, format="json"))
    except HTTPError:  # as Kaggle's package does: what can't be asked for isn't there, and creating it tells the reason
        return "", 0
    return told["status"], told["current_version_number"]


def _wait(name: str, ask: Callable[[], str]) -> str:
    """Asks for a status until it is one of ``ENDED``, and shows it with the time elapsed."""
    failures = 0
    with tqdm(desc=f"{name}: sent", bar_format="{desc} {elapsed}", disable=None, leave=False) as bar:
        while True:
            time.sleep(POLL)
            try:
                status, failures = ask(), 0
            except OSError:
                failures += 1
                if failures == PATIENCE:
                    raise
                continue
            bar.set_description_str(f"{name}: {status.lower()}")
            if status in ENDED:
                return status


def _log(api, ref: str) -> str:
    """The log's last lines; Kaggle's log is JSON, a list of pieces with their time and stream."""
    try:
        with _explained(ref):
            text = api.kernels_logs(ref)
    except OSError as error:
        return str(error)
    with suppress(ValueError, TypeError, KeyError):  # plain text
        text = "".join(piece["data"] for piece in json.loads(text))
    return "\n".join(text.rstrip().splitlines()[-LOG_LINES:])
