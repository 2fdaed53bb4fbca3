"""benchmarks/memory.py: what it measured is below its limit, for every case that it has; the most telling ones are
measured again."""

import json
import sys

import pytest
import torch

from benchmarks import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


def test_every_case_was_measured_and_is_below_the_limit():
    result = json.loads(memory.RESULT.read_text())
    assert list(result["cases"]) == list(memory.CASES) and result["limit_mb"] == memory.LIMIT
    assert all(0 < case["peak_mb"] <= memory.LIMIT for case in result["cases"].values())
    assert {name: case["files"] for name, case in result["cases"].items()} == {
        name: case.__doc__ for name, case in memory.CASES.items()
    }


def test_the_peak_is_that_of_a_process_and_its_children_together():
    hold = "x = bytearray(60_000_000); import time; time.sleep(0.5)"
    child = (
        "import subprocess, sys; x = bytearray(40_000_000); "
        f"subprocess.run([sys.executable, '-c', {hold!r}]); print('said'); sys.exit(3)"
    )
    megabytes, status, said = memory.peak([sys.executable, "-c", child])
    assert 100 < megabytes < 160 and status == 3 and said == "said\n"


@pytest.mark.slow
@pytest.mark.parametrize("case, masks", [("bombs", 8), ("dicom_hostile", 0)])
def test_predict_stays_below_the_limit(case, masks):
    found = memory.measure(case)
    libraries = 350 if torch.version.cuda else 0  # MB, of PyTorch's build for CUDA beyond that for CPUs
    assert found["peak_mb"] <= memory.LIMIT + libraries and found["masks"] == masks
