"""What this machine computes on, and in which number format it does so fastest."""

from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import torch

PRECISIONS = ("fp32", "bf16", "fp16")


def choose_device(name: str = "auto") -> torch.device:
    """The GPU if there is one, else the CPU; or the one that is named.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"(cpu|mps)(:0)?|cuda(:\d{1,2})?", name):  # others are not tried here
        raise ValueError(f"device is auto, cpu, cuda, cuda:N or mps, not {name!r}")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no mps here, which is a Mac's GPU: choose device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no {name} here, PyTorch sees {torch.cuda.device_count()} GPUs: choose device auto or cpu")
    return device


def choose_precision(device: torch.device) -> str:
    """The fastest number format that the hardware computes in itself, or the one that ``UNET_LUNG_PRECISION`` names.

    bf16 on a GPU from Ampere on and on a CPU with AVX512-BF16 or AMX; fp16 on an older GPU (a T4 only emulates bf16);
    fp32 on any other CPU, where bf16 is emulated and slower, and on a Mac's GPU. bf16 keeps three digits: with
    ``UNET_LUNG_PRECISION=fp32`` two machines come to the same numbers, but for the last digits of a float.

    Raises:
        ValueError: the variable names no such format.
    """
    named = os.environ.get("UNET_LUNG_PRECISION", "auto")
    if named not in ("auto", *PRECISIONS):
        raise ValueError(f"UNET_LUNG_PRECISION is auto, {', '.join(PRECISIONS)}, not {named!r}")
    if named != "auto":
        return named
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.exists():
        flags = cpuinfo.read_text()
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            return "bf16"
    return "fp32"


def processors() -> int:
    """How many processors this process may use; a container or a scheduler may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor there; a GPU fetches it by itself, from memory that the system doesn't move, and nobody waits."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def lone_threads() -> ThreadPoolExecutor | None:
    """As many threads as PyTorch has for one computation, each with a computation of its own; None if that is one.

    Threads that share a computation wait for each other at every layer. Where others, such as those that read films,
    take their processors in the meantime, that is half of the time.
    """
    count = torch.get_num_threads()
    if count == 1:
        return None
    started = Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # first: a thread that never asked would later be given the number of all again
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(count, initializer=start)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(count)  # for this thread and those to come
    return pool


def prepare(device: torch.device) -> None:
    """Has a device compute as fast as training wants: for the whole process."""
    if device.type == "cpu":
        keep_memory()
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are few
        torch.set_float32_matmul_precision("high")  # TF32, where float32 is asked for


def keep_memory() -> bool:
    """Tells glibc to keep freed memory for the next tensor instead of giving it back to the kernel.

    Every activation above 32 MB would otherwise be mapped afresh at each step, page by page: a tenth of the time of a
    training step on a CPU, see ``results/bench_train.csv``. Says whether the C library knows how.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))
