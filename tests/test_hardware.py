"""hardware.py: the device, and the fastest number format that it computes in itself."""

import pytest
import torch

from kaggle_utils import hardware


@pytest.mark.parametrize("there, expected", [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert hardware.choose_device("auto").type == expected


def test_device_that_is_named_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("flags, expected", [("fma avx2 avx512f", "fp32"), ("avx512f avx512_bf16", "bf16"), ("amx_bf16 amx_tile", "bf16")])
def test_precision_on_a_cpu_follows_its_flags(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    path = hardware.Path
    monkeypatch.setattr(hardware, "Path", lambda p: path(tmp_path / "cpuinfo" if p == "/proc/cpuinfo" else p))
    assert hardware.choose_precision(torch.device("cpu")) == expected


def test_precision_on_a_machine_without_cpuinfo_is_float32(monkeypatch, tmp_path):
    path = hardware.Path
    monkeypatch.setattr(hardware, "Path", lambda p: path(tmp_path / "none"))
    assert hardware.choose_precision(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("gpu, capability, expected", [("T4", (7, 5), "fp16"), ("P100", (6, 0), "fp16"), ("A100", (8, 0), "bf16"),
                                                       ("H100", (9, 0), "bf16")])
def test_precision_on_a_gpu_follows_its_generation(monkeypatch, gpu, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.choose_precision(torch.device("cuda")) == expected
