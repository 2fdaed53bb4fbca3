"""Fixtures that several modules' tests share; the films themselves are drawn in phantoms.py."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # `pytest tests` finds the package from any folder, installed or not

# Also of the processes and notebooks that tests start, so before anything that computes is imported.
os.environ["UNET_LUNG_PRECISION"] = "fp32"  # on any processor; bfloat16 has tests of its own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: more threads cost more than they give
if os.environ.get("TEST_THREADS") == "all":
    del os.environ["OMP_NUM_THREADS"]  # as where nobody sets it: as many as there are cores

import numpy as np
import pytest
from dicoms import dicom
from phantoms import Phantom, phantom, write_prepared, write_raw

pytest_plugins = ["s3_server"]  # its fixtures: server, proxy, client


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def film() -> Phantom:
    """One film, higher than wide."""
    return phantom(80, 64)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared set of 8 films to train on, 4 to validate, 4 to test."""
    return write_prepared(tmp_path / "segmentation")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four films, two of them in a folder below, and a text."""
    for name in ("b.png", "a.jpg", "sub/c.PNG", "sub/d.tif"):
        write_raw(tmp_path / "films" / name, phantom(40, 32, seed=ord(name[-5])).image)
    (tmp_path / "films" / "notes.txt").write_text("not a film")
    return tmp_path / "films"


@pytest.fixture
def ctrl_c(monkeypatch):
    """``ctrl_c(owner, name, calls)``: the signal that Ctrl-C sends comes after so many calls of a function of the main
    thread."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process of xdist ignores

    def after(owner: object, name: str, calls: int) -> None:
        count, function = itertools.count(1), getattr(owner, name)

        def interrupted(*args: object, **options: object) -> object:
            result = function(*args, **options)
            if next(count) == calls:
                signal.raise_signal(signal.SIGINT)
            return result

        monkeypatch.setattr(owner, name, interrupted)

    yield after
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def full_disk(monkeypatch):
    """``full_disk(files)``: so many files can still be written; ``full_disk(None)``: there is room again."""
    left, replace = [0], os.replace

    def write(source: object, target: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    def after(files: int | None) -> None:
        left[0] = 10**9 if files is None else files
        monkeypatch.setattr(os, "replace", write)

    return after


ODD_NAMES = {
    "r\udcf6ntgen.png": "r_xf6ntgen",
    "a\nb.png": "a_nb",
    "片" * 83 + ".png": "片" * 70 + "_004cc0b5",
    "con.png": "_con",
    "Film.png": "Film_png",
    "film.png": "film_png_2",
    "1.2.840.10008.1533189483.2": "1.2.840.10008.1533189483.2",
    'a,"b.png': "a,_b",
    "b" * 251 + ".png": "b" * 211 + "_412d6dbd",
}


@pytest.fixture
def odd_names(tmp_path: Path) -> dict[Path, str]:
    """Films whose names are not UTF-8, of 250 bytes and more, with a line's end, and so on, and what their results are
    called."""
    write_raw(tmp_path / "film.png", phantom(40, 32).image)
    films = {tmp_path / "odd" / name: result for name, result in ODD_NAMES.items()}
    (tmp_path / "odd").mkdir()
    for path in films:
        path.write_bytes((tmp_path / "film.png").read_bytes())
    return films


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder as a DICOM viewer exports it: names without suffixes, an index, a report and a film that was cut off."""
    tags = {"PixelSpacing": [0.2, 0.1], "ViewPosition": "PA"}
    found = {
        "ST1/IM2": dicom(phantom(40, 32, seed=1).image, **tags),
        "ST1/1.2.840.1": dicom(phantom(40, 32, seed=2).image, photometric="MONOCHROME1"),
        "DICOMDIR": dicom(phantom().image, PixelData=None),
        "ST1/SR1": dicom(phantom().image, Modality="SR", PixelData=None),
        "ST2/IM3": dicom(phantom().image, preamble=False)[:-900],
        "ST2/cut.dcm": b"",
        "ST2/notes": b"not a film",
        "ST2/x.txt": b"DICM",
    }
    for name, data in found.items():
        (tmp_path / "study" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "study" / name).write_bytes(data)
    return tmp_path / "study"


LONGEST = (
    "test_cluster",
    "test_notebooks",
    "test_distributed",
    "test_s3",
    "test_train",
    "test_main",
    "test_tune",
    "test_app",
)  # files
SLOW = {
    "cluster",
    "two",
    "journey",
    "uninterrupted",
    "browser",
    "viewer",
    "proxy",
}  # fixtures: each starts processes, a browser or a server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that processes which share the files end together; who needs a slow fixture is
    slow."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        if SLOW & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
        if "openvino" in item.name and os.environ.get("ONEDNN_MAX_CPU_ISA"):
            item.add_marker(
                pytest.mark.skip(
                    reason="the limit is meant for PyTorch; under it OpenVINO's own oneDNN computes nothing, or crashes"
                )
            )
