"""One training on several GPUs or machines: ``torchrun --nproc-per-node 2 -m kaggle_utils train --data … --out …``.

torchrun starts a process for each GPU. ``--batch-size`` is that of each: n processes learn from n times as many films a
step, at n times the rate (:meth:`config.TrainConfig.for_processes`). DistributedDataParallel averages their gradients,
so all hold the same weights, and the first one writes the files. The numbers are those of one process with that batch
and that rate, within float error. Batch normalisation on CPUs is the exception. On GPUs its statistics are those of the
whole batch; for CPUs PyTorch has no such thing: there each process normalises by its own share, and the running
statistics are the processes' mean. (On GPUs, where a last batch has fewer films than there are processes, another film
or two count in its statistics, and in nothing else.) The processes of a machine share its films' memory.

The first process's clock is everybody's: a time budget ends for all at the same step. When a process dies, torchrun
ends the others, and ``--resume`` continues, with any number of processes, at the batch and rate of the start (by
itself, if torchrun is given ``--max-restarts`` too). Several machines need the prepared set, unless it is shards in S3,
and the run's folder on a disk that all of them see. Where a machine's name stands for 127.0.0.1 or 127.0.1.1, as on
Debian, its network is to be named: ``GLOO_SOCKET_IFNAME=eth0``.

In a process that torchrun didn't start, nothing here does anything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# In what PyTorch says of a lost process, which has no type of its own.
_LOST = ("gloo", "NCCL", "caused pair closure", "closed by peer", "reset by peer")
LONGEST_WAIT = timedelta(minutes=5)  # for a process that hangs, or whose machine is lost; the others then fail too
LOADING_WAIT = timedelta(hours=2)  # for the process whose disk is the slowest, before training starts
_loading: dist.ProcessGroup | None = None  # of all processes, as they were joined; it alone has the long wait


def world_size() -> int:
    """How many processes train together."""
    return _from_torchrun("WORLD_SIZE", 1)


def machine_size() -> int:
    """How many of them run on this machine."""
    return _from_torchrun("LOCAL_WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this is the process that writes files, prints and draws bars."""
    return _from_torchrun("RANK", 0) == 0


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, for as long as the block runs.

    Args:
        device: ``cpu``, or ``cuda``, which then is another GPU in each process.

    Raises:
        ValueError: there are more processes than GPUs on this machine, or the device is a certain one of them.
        ConnectionError: the processes don't reach each other, or one doesn't answer any more.
    """
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        _take_gpu(device)
    global _loading
    try:  # gloo for numbers of Python too: they meet without waiting for what the GPU still computes
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        _loading = dist.new_group(backend="gloo", timeout=LOADING_WAIT)
    except RuntimeError as error:
        raise ConnectionError(
            "the processes don't reach each other; between machines, name the network that connects them, on each: "
            f"GLOO_SOCKET_IFNAME=eth0 torchrun … (`ip addr` lists them). {error}"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST):
            raise ConnectionError(
                "another process doesn't answer any more; the same command with --resume continues from what is saved. "
                f"{error}"
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: this could wait for processes that wait for this one


def _take_gpu(device: torch.device) -> None:
    """Gives this process a GPU of its own."""
    gpus = torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(f"{device} is one GPU and there are {world_size()} processes: choose device auto, cuda or cpu")
    if machine_size() > gpus:
        raise ValueError(
            f"{machine_size()} processes and {gpus} GPUs on this machine: choose --nproc-per-node {gpus}, or device cpu"
        )
    torch.cuda.set_device(_from_torchrun("LOCAL_RANK", 0))


def wait_for_all() -> None:
    """Waits until all processes are here: each has read its films, which one disk may do much later than another."""
    if world_size() > 1:
        dist.barrier(group=_loading)


def once_per_machine(make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that one process of each machine makes, and that all of them see in the same memory: a file's map."""
    if machine_size() == 1 or not dist.is_initialized():
        return make()
    rank, number = _from_torchrun("RANK", 0), _from_torchrun("LOCAL_RANK", 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.npy")
        if number == 0:
            np.save(path, make())
        paths: list[Path] = [path] * world_size()
        dist.all_gather_object(paths, path, group=_loading)
        array = np.load(paths[rank - number], mmap_mode="c")
        wait_for_all()  # until each has it open, which outlasts the file's name
    return array


def share(items: Sequence) -> Sequence:
    """This process's items: of n processes each has every n-th."""
    return items[_from_torchrun("RANK", 0) :: world_size()]


def batch_share(batch: int) -> int:
    """How many films of a whole batch are this process's.

    Raises:
        ValueError: there are more processes than films.
    """
    if batch < world_size():
        raise ValueError(f"a batch of {batch} is too small for {world_size()} processes: choose a larger --batch-size")
    return len(share(range(batch)))


def share_of_batches(items: Sequence, batch: int) -> list:
    """This process's items of every batch, one after the other; a None where the last batch has none for it."""
    return [item for start in range(0, len(items), batch) for item in share(items[start : start + batch]) or [None]]


def sums(*numbers: float) -> list[float]:
    """Each number's sum over the processes."""
    if world_size() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def of_main(number: float) -> float:
    """The first process's number."""
    return sums(number if is_main() else 0.0)[0]


def gather(items: list) -> list:
    """The items of all processes, one process after the other."""
    if world_size() == 1:
        return items
    lists: list[list] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def check_alike(facts: dict[str, object]) -> None:
    """Raises ValueError if processes disagree on a fact: they'd train different models, or wait for ever."""
    first, *others = gather([facts])
    for other in others:
        for name, fact in first.items():
            if other[name] != fact:
                raise ValueError(
                    f"the processes differ in {name} ({fact} and {other[name]}): start all with the same command, "
                    "data and run on a disk that all machines see"
                )


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, its batch normalisation on GPUs by the statistics of all processes' films."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if world_size() > 1 and device.type == "cuda" else model


def average_gradients(model: nn.Module) -> nn.Module:
    """What to train in the model's place: its gradients are the mean of all processes'."""
    # Statistics are equal everywhere already: by SyncBatchNorm on GPUs, by average_statistics on CPUs.
    return DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model


def average_statistics(model: nn.Module) -> None:
    """Gives all processes the mean of the running statistics that each has of its own films; GPUs share theirs."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and not buffer.is_cuda]
    if world_size() == 1 or not buffers:
        return
    statistics = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(statistics)
    for buffer, values in zip(buffers, statistics.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(values.view_as(buffer) / world_size())


def launch_command(*options: object) -> list[str]:
    """The command that trains on all GPUs of this machine, in one process where there is one or none, or one is named.

    Args:
        options: of ``python -m kaggle_utils train``, such as ``"--data", folder, "--epochs", 30``.
    """
    named = any(str(option).rpartition("=")[2].startswith("cuda:") for option in options)
    gpus = 1 if named else torch.cuda.device_count()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else []
    return [sys.executable, *launcher, "-m", "kaggle_utils", "train", *map(str, options)]


def launch(*options: object) -> None:
    """Trains by :func:`launch_command` from a notebook, and prints what it says line by line.

    A notebook can't share its own process, whose CUDA a fork doesn't survive.

    Args:
        options: as there.

    Raises:
        subprocess.CalledProcessError: the training failed; it has said why.
    """
    library = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = launch_command(*options)
    environment = {**os.environ, "PYTHONPATH": library}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _from_torchrun(name: str, otherwise: int) -> int:
    # RANK alone may be another launcher's, of processes that train each for itself.
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else otherwise
