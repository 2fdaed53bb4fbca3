"""What Kaggle is told of each notebook: the table of kernels, their metadata, and its check before Kaggle's CLI sees it.

The CLI ignores keys that it doesn't know, and the server takes a title that doesn't fit its id, so both are errors here.
Source of the rules: kernels_metadata.md and kernels_push of Kaggle's CLI 2.2.4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

FILE = "kernel-metadata.json"
OWNER = "INSERT_OWNER_HERE"  # in the file at the root, until somebody puts their own name there or push --owner does
INSTALL = "pip install 'kaggle>=2.2.4,<3' six, with Python 3.11 or newer"
FLAGS = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
CHOICES = {"language": ("python", "r", "rmarkdown"), "kernel_type": ("script", "notebook"),
           "docker_image_pinning_type": ("original", "latest")}
REQUIRED = ("language", "kernel_type")
NAME, SLUG = r"[A-Za-z0-9][\w-]*", r"[A-Za-z0-9][\w-]{4,}"
SOURCES = {  # key: the form of each of its entries, in words and as a pattern
    "dataset_sources": ("owner/slug or owner/slug/version", rf"{NAME}/{NAME}(/\d+)?"),
    "kernel_sources": ("owner/slug or owner/slug/version, the slug of 5 characters or more", rf"{NAME}/{SLUG}(/\d+)?"),
    "model_sources": ("owner/model/framework/variation/version", rf"{NAME}(/[\w.-]+){{3}}/\d+"),
    "competition_sources": ("a competition's slug", NAME),
    "keywords": ("a tag", ".+"),
}
KEYS = ("id", "id_no", "title", "code_file", "machine_shape", "docker_image", *FLAGS, *CHOICES, *SOURCES)


@dataclass(frozen=True)
class Kernel:
    """A notebook as a kernel.

    Args:
        notebook: in ``notebooks/``, without its suffix.
        title: 5-50 characters; in lower case with dashes it is the kernel's slug.
        reads: numbers of the kernels whose outputs are attached to it.
        gpu: it trains, on the GPUs of the file at the root.
    """

    notebook: str
    title: str
    reads: tuple[str, ...] = ()
    gpu: bool = False

    def ref(self, owner: str) -> str:
        """``owner/slug``, by which Kaggle knows it."""
        return f"{owner}/{re.sub(r'[^a-z0-9]+', '-', self.title.lower())}"

    def path(self, folder: str | Path) -> Path:
        """The notebook's file in a clone."""
        return Path(folder) / "notebooks" / f"{self.notebook}.ipynb"


KERNELS = {
    "01": Kernel("01_prep", "Lung UNet 01 Prep"),
    "02": Kernel("02_training", "Lung UNet 02 Training", reads=("01",), gpu=True),
    "03": Kernel("03_tuning", "Lung UNet 03 Tuning", reads=("01",), gpu=True),
    "04": Kernel("04_inference", "Lung UNet 04 Inference", reads=("01", "02")),
    "05": Kernel("05_tb_screening", "Lung UNet 05 TB Screening", reads=("01", "02"), gpu=True),
}


def read_metadata(path: str | Path) -> dict[str, object]:
    """Reads a ``kernel-metadata.json`` and checks it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or has problems; all of them are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run this in the folder of the clone")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: expected an object with keys such as id and title, found a {type(metadata).__name__}")
    _raise(path, problems(metadata, path.parent))
    return metadata


def derive(root: dict[str, object], number: str, owner: str, *, folder: str | Path = ".") -> dict[str, object]:
    """A notebook's metadata: the root's, with its own title, file, GPU and the kernels that it reads.

    Args:
        root: of the file at the root.
        number: of :data:`KERNELS`.
        owner: name on Kaggle.
        folder: the clone.

    Raises:
        ValueError: it has problems, a missing notebook among them.
    """
    kernel = KERNELS[number]
    metadata = json.loads(json.dumps(root).replace(OWNER, owner)) | {
        "id": kernel.ref(owner), "title": kernel.title, "code_file": str(kernel.path(folder).resolve()),
        "enable_gpu": kernel.gpu, "kernel_sources": [KERNELS[other].ref(owner) for other in kernel.reads]}
    metadata.pop("id_no", None)  # it would win over id, for every notebook
    if not kernel.gpu:
        metadata.pop("machine_shape", None)  # it would win over enable_gpu
    _raise(f"{kernel.notebook} by {FILE}", problems(metadata, Path(folder)))
    return metadata


def choose(wanted: Sequence[str], folder: str | Path) -> list[str]:
    """Numbers of kernels in the order in which they run; ``all`` stands for the notebooks that are there.

    Raises:
        ValueError: there is no such kernel.
        FileNotFoundError: ``all``, and no notebook is there.
    """
    unknown = set(wanted) - {"all", *KERNELS}
    if unknown:
        raise ValueError(f"no kernel {', '.join(sorted(unknown))}: choose of {', '.join(KERNELS)} or all")
    there = [number for number, kernel in KERNELS.items() if kernel.path(folder).is_file()]
    if "all" in wanted and not there:
        raise FileNotFoundError(f"{Path(folder) / 'notebooks'}: none of {', '.join(k.notebook for k in KERNELS.values())}")
    return there if "all" in wanted else sorted(set(wanted))


def problems(metadata: dict[str, object], folder: Path) -> list[str]:
    """What is wrong with a kernel's metadata, each ``key: what``; an empty list is good.

    Args:
        metadata: of ``kernel-metadata.json``.
        folder: in which ``code_file`` is looked for.
    """
    found = [f"{key}: no such key, Kaggle would ignore it{_meant(key)}" for key in metadata if key not in KEYS]
    found += _title_problems(metadata) + _code_problems(metadata, folder)
    for key in FLAGS:
        value = metadata.get(key, False)
        if not isinstance(value, bool) and value not in ("true", "false"):
            found.append(f"{key}: true or false, not {json.dumps(value)}")
    if "enable_internet" not in metadata:
        found.append("enable_internet: say true or false; the CLI takes true where its manual says false")
    for key, allowed in CHOICES.items():
        if metadata.get(key) not in allowed and (key in metadata or key in REQUIRED):
            found.append(f"{key}: one of {', '.join(allowed)}, not {json.dumps(metadata.get(key))}")
    for key, (form, pattern) in SOURCES.items():
        entries = metadata.get(key, [])
        if not isinstance(entries, list):
            found.append(f"{key}: a list, each entry {form}, not {json.dumps(entries)}")
            continue
        found += [f"{key}: {form}, not {json.dumps(entry)}" for entry in entries
                  if not isinstance(entry, str) or not re.fullmatch(pattern, entry)]
    return found


def _meant(key: str) -> str:
    match = get_close_matches(key, KEYS, n=1)
    return f"; did you mean {match[0]}?" if match else f"; known are {', '.join(KEYS)}"


def _title_problems(metadata: dict[str, object]) -> list[str]:
    try:
        from slugify import slugify  # the CLI's own rule
    except ImportError as error:
        raise ImportError(f"python-slugify is missing, it comes with Kaggle's CLI: {INSTALL}") from error
    ref, title = metadata.get("id"), metadata.get("title")
    found = []
    if not isinstance(ref, str) or not re.fullmatch(f"{NAME}/{SLUG}", ref):
        found.append(f"id: owner/slug, the slug of 5 characters or more and no version, not {json.dumps(ref)}")
    if not isinstance(title, str) or not 5 <= len(title) <= 50:  # of a longer one the server says no more than 500
        found.append(f"title: 5 to 50 characters, not {json.dumps(title)}")
    elif not found and slugify(title) != ref.split("/")[1].lower():
        found.append(f"title: {title!r} becomes {slugify(title)} at Kaggle, but id ends in {ref.split('/')[1]}"
                     + ("; a dash splits a word, UNet is one and U-Net two" if "-" in title else ""))
    return found


def _code_problems(metadata: dict[str, object], folder: Path) -> list[str]:
    code = metadata.get("code_file")
    if not isinstance(code, str) or not (folder / code).is_file():
        return [f"code_file: no such file {folder / code}" if isinstance(code, str) else "code_file: which notebook?"]
    if metadata.get("kernel_type") != "notebook":
        return []
    try:
        notebook = json.loads((folder / code).read_text(encoding="utf-8"))
        kernelspec = notebook["metadata"].get("kernelspec") and notebook["cells"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return [f"code_file: {folder / code} is not a notebook"]
    return [] if kernelspec else [f"code_file: {folder / code} has no cells or no metadata.kernelspec, Kaggle couldn't run it"]


def _raise(where: object, found: list[str]) -> None:
    if found:
        raise ValueError(f"{where}: {'; '.join(found)}")
