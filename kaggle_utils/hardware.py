"""What this machine computes on, and in which number format it does so fastest."""

from __future__ import annotations

from pathlib import Path

import torch


def choose_device(name: str = "auto") -> torch.device:
    """The GPU if there is one, else the CPU; or the one that is named."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(device: torch.device) -> str:
    """The fastest number format that the hardware computes in itself.

    bf16 on a GPU from Ampere on and on a CPU with AVX512-BF16 or AMX; fp16 on an older GPU (a T4 only emulates bf16);
    fp32 on any other CPU, where bf16 is emulated and slower.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16" if device.type == "cpu" and ("avx512_bf16" in flags or "amx_bf16" in flags) else "fp32"
