"""Fixtures that several modules' tests share; the films themselves are drawn in phantoms.py."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # `pytest tests` finds the package from any folder, installed or not

import numpy as np
import pytest
import torch

from phantoms import Phantom, phantom, write_prepared

torch.set_num_threads(1)  # tiny networks: more threads cost more than they give, and the order of sums stays fixed


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
