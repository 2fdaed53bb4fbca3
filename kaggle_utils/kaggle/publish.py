"""Kaggle from the command line: code published as datasets, notebooks pushed and run in order. Kaggle's own CLI does the talking.

It ends with status 0 when the server refuses, so what it prints is read (``kaggle_api_extended.py`` of 2.2.4).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from .metadata import FILE, INSTALL, KERNELS, choose, derive, read_metadata

POLL = 20  # seconds before each question for a status; also, the server needs a moment until it speaks of the new version
PATIENCE = 5  # questions that may fail in a row: one bad gateway shouldn't end the wait for hours of training
LOG_LINES = 20  # shown of a kernel that failed
ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")  # of kagglesdk's KernelWorkerStatus
REFUSED = re.compile(r"^(?:Kernel push error|Dataset creation error|Dataset version creation error|Upload unsuccessful"
                     r"|The following are not valid).*", re.MULTILINE)
NOT_CODE = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.part")


@dataclass(frozen=True)
class Dataset:
    """Files of the clone as a dataset on Kaggle, each folder one archive that Kaggle unpacks again.

    Args:
        slug: 6-50 characters.
        title: 6-50 characters.
        licence: one of Kaggle's names; ``other`` is what the description says.
        description: shown on its page.
        files: files and folders, relative to the clone.
    """

    slug: str
    title: str
    licence: str
    description: str
    files: tuple[str, ...]


LIMITS = ("The weights carry the licences of the masks that they were trained on: Shenzhen's are CC BY-NC-SA 4.0, so not for "
          "commercial use. Not a medical device.")
CODE = Dataset("lung-unet-code", "Lung UNet code", "other", "kaggle_utils, its weights and its measured results, for notebooks "
               f"without internet. Code: MIT, see LICENSE. {LIMITS}", ("kaggle_utils", "results", "LICENSE"))
WEIGHTS = Dataset("lung-unet-weights", "Lung UNet weights", "CC-BY-NC-SA-4.0", f"A U-Net for lungs in chest radiographs. {LIMITS}",
                  ("kaggle_utils/weights/lungs.safetensors", "kaggle_utils/weights/README.md"))


def check(folder: str | Path = ".") -> list[str]:
    """Checks ``kernel-metadata.json`` and what is derived from it for each notebook that is there.

    Returns:
        What was checked: the file, and the notebooks.

    Raises:
        ValueError: something was not.
    """
    root = read_metadata(Path(folder) / FILE)
    kernels = {KERNELS[number].notebook: derive(root, number, "owner", folder=folder) for number in choose(["all"], folder)}
    return [FILE, *kernels]


def publish(owner: str, *, folder: str | Path = ".") -> Iterator[str]:
    """Puts code and weights up as private datasets, or as new versions of them, and waits until kernels can attach them.

    Args:
        owner: name on Kaggle.
        folder: the clone.

    Yields:
        A line for each dataset that is ready.

    Raises:
        ImportError: Kaggle's CLI is missing.
        FileNotFoundError: a file to publish is.
        OSError: Kaggle refused.
    """
    _require_cli()
    for dataset in (CODE, WEIGHTS):
        ref = f"{owner}/{dataset.slug}"
        try:
            before = _dataset_status(ref)["current_version_number"]
        except OSError:  # as the CLI does: what can't be asked for isn't there, and creating it tells the reason
            before = 0
        with tempfile.TemporaryDirectory() as stage:
            _stage(dataset, ref, Path(folder), Path(stage))
            notes = ("version", "-m", "python -m kaggle_utils kaggle publish") if before else ("create",)
            _kaggle("datasets", *notes, "-p", stage, "--dir-mode", "zip")

        def ask() -> str:
            told = _dataset_status(ref)
            return told["status"] if not before or told["current_version_number"] > before else "waiting for the new version"

        if _wait(ref, ask, ("ready", "failed", "deleted")) != "ready":
            raise OSError(f"{ref}: Kaggle could not process it, see https://www.kaggle.com/datasets/{ref}")
        yield f"{ref}: version {before + 1} ready, https://www.kaggle.com/datasets/{ref}"


def push(numbers: Sequence[str], owner: str, *, folder: str | Path = ".", out: str | Path = "runs/kaggle",
         wait: bool = True) -> Iterator[str]:
    """Pushes notebooks one after the other, each when those that it reads have run, and fetches their outputs.

    Args:
        numbers: of :data:`~kaggle_utils.kaggle.metadata.KERNELS`, or ``all`` that are there.
        owner: name on Kaggle.
        folder: the clone.
        out: folder to write, a folder below it for each notebook.
        wait: until each has run; without it outputs are not fetched, and no kernel may read another one that is pushed.

    Yields:
        A line for each push, each end, each folder of outputs.

    Raises:
        ImportError: Kaggle's CLI is missing.
        ValueError: the metadata has problems; nothing was pushed then.
        OSError: Kaggle refused, or a kernel failed; those after it were not pushed.
    """
    _require_cli()
    root = read_metadata(Path(folder) / FILE)
    kernels = {number: derive(root, number, owner, folder=folder) for number in choose(numbers, folder)}
    readers = [number for number in kernels if set(KERNELS[number].reads) & set(kernels)]
    if readers and not wait:
        raise ValueError(f"{readers[0]} reads what another of these writes: push them without --no-wait, or one by one")
    for number, metadata in kernels.items():
        notebook, ref = KERNELS[number].notebook, metadata["id"]
        yield f"{notebook}: {_push(metadata)}"
        if wait:
            start = time.monotonic()
            status = _wait(notebook, lambda: _kernel_status(ref), ENDED)
            if status != "COMPLETE":
                raise OSError(f"https://www.kaggle.com/code/{ref} ended with {status}, the last lines of its log:\n{_log(ref)}")
            yield f"{notebook}: complete after {(time.monotonic() - start) / 60:.1f} min, fetching its outputs"
            _kaggle("kernels", "output", ref, "-p", str(Path(out) / notebook), "--force")
            yield f"{notebook}: outputs in {Path(out) / notebook}"


def _push(metadata: dict[str, object]) -> str:
    with tempfile.TemporaryDirectory() as stage:
        (Path(stage) / FILE).write_text(json.dumps(metadata), encoding="utf-8")
        try:
            told = _kaggle("kernels", "push", "-p", stage)
        except OSError as error:
            if f"/{CODE.slug}'" not in str(error):
                raise
            raise OSError(f"{error}: python -m kaggle_utils kaggle publish comes first") from error
    pushed = re.search(r"Kernel version (\d+) successfully pushed\.\s+Please check progress at (\S+)", told)
    if not pushed:
        raise OSError(f"kaggle kernels push said neither that it worked nor that it did not: {told.strip()}")
    return "version {} pushed, {}".format(*pushed.groups())


def _stage(dataset: Dataset, ref: str, folder: Path, stage: Path) -> None:
    """What the CLI uploads: copies of the files beside their description."""
    for name in dataset.files:
        source, target = folder / name, stage / Path(name).name
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file, and {ref} needs it; run this in the folder of the clone")
        shutil.copytree(source, target, ignore=NOT_CODE) if source.is_dir() else shutil.copy(source, target)
    about = {"id": ref, "title": dataset.title, "licenses": [{"name": dataset.licence}], "description": dataset.description}
    (stage / "dataset-metadata.json").write_text(json.dumps(about), encoding="utf-8")


def _wait(name: str, ask: Callable[[], str], ended: Collection[str]) -> str:
    """Asks for a status until it is one of those, and shows it with the time elapsed."""
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
            if status in ended:
                return status


def _kernel_status(ref: str) -> str:
    told = _kaggle("kernels", "status", ref)
    status = re.search(r'has status "(?:\w+\.)?(\w+)"', told)
    if not status:
        raise OSError(f"kaggle kernels status gave no status of {ref}: {told.strip()}")
    return status.group(1)


def _dataset_status(ref: str) -> dict[str, object]:
    """Its ``status`` and ``current_version_number``."""
    told = _kaggle("datasets", "status", ref, "--format", "json")
    try:
        return json.loads(told.strip().splitlines()[-1])  # warnings come before it
    except (ValueError, IndexError) as error:
        raise OSError(f"kaggle datasets status gave no status of {ref}: {told.strip()}") from error


def _log(ref: str) -> str:
    """The log's last lines; Kaggle's log is JSON, a list of pieces with their time and stream."""
    try:
        text = _kaggle("kernels", "logs", ref)
    except OSError as error:
        return str(error)
    try:
        text = "".join(piece["data"] for piece in json.loads(text))
    except (ValueError, TypeError, KeyError):
        pass  # plain text
    return "\n".join(text.rstrip().splitlines()[-LOG_LINES:])


def _kaggle(*arguments: str) -> str:
    """Runs Kaggle's CLI.

    Returns:
        What it printed.

    Raises:
        OSError: it failed, or said so and ended with status 0.
    """
    command = [sys.executable, "-m", "kaggle", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode and "Authentication required" in done.stdout:
        raise OSError("Kaggle got no credentials, or refused them: make a token at https://www.kaggle.com/settings/api and put it "
                      "into KAGGLE_API_TOKEN or ~/.kaggle/access_token")
    refusals = REFUSED.findall(done.stdout)
    if refusals or done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise OSError(f"kaggle {' '.join(arguments[:2])}: {'; '.join(refusals) or last}")
    return done.stdout


def _require_cli() -> None:
    try:
        version("six")  # kaggle 2.2.4 imports it and does not ask for it
        found = version("kaggle")
    except PackageNotFoundError as error:
        raise ImportError(f"Kaggle's CLI is missing ({error}): {INSTALL}") from error
    if int(found.split(".")[0]) < 2:
        raise ImportError(f"Kaggle's CLI is {found}, too old to ask for a GPU by name: {INSTALL}")
