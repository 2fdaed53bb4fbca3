"""Fixtures that several modules' tests share; the films themselves are drawn in phantoms.py."""

from __future__ import annotations

import os
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

from phantoms import Phantom, phantom, write_prepared


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
