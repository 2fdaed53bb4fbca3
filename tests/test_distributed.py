"""distributed.py: two processes compute what one does, agree on when to stop, and one that dies ends the run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from phantoms import write_prepared
from s3_server import Fault
from two_processes import ALIKE, BASE, EQUAL, make_trainer, run

import kaggle_utils
from kaggle_utils import distributed
from kaggle_utils import trainer as training
from kaggle_utils.data import EpochSampler
from kaggle_utils.scale import s3
from kaggle_utils.scale.shards import ShardedFilms, StreamLoader, read_shards, write_shards

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = {"PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
ENVIRONMENT = {**os.environ, **SETTINGS}
CLOCK = ["images_per_s", "seconds"]


def be_process(monkeypatch, rank, world):
    for name, number in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", world)):
        monkeypatch.setenv(name, str(number))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")


def assert_same_run(one, two, epochs):
    """Checkpoints of one and of two processes: the same weights and history within float error.

    A ReLU at its kink falls to either side, which moved weights by 2e-4 on one processor; a film's wrong weight moves
    them by 1e-3.
    """
    one, two = (torch.load(folder / "last.pt", weights_only=True) for folder in (one, two))
    assert one["step"] == two["step"]
    for part in ("model", "ema"):
        torch.testing.assert_close(one[part], two[part], rtol=1e-4, atol=5e-4)
    histories = [pd.DataFrame(state["history"]).drop(columns=CLOCK) for state in (one, two)]
    assert len(histories[0]) == epochs
    pd.testing.assert_frame_equal(*histories, rtol=1e-4, atol=5e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_prepared(tmp_path_factory.mktemp("data"), {"train": 8, "val": 5})
    return write_prepared(root, {"train": 5, "val": 2}, source="shenzhen", first=50)


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The folder of all runs of two processes; ``resumed`` goes on from one process's first epoch."""
    out = tmp_path_factory.mktemp("two")
    make_trainer(data, out / "resumed", BASE).fit(lambda row: row["epoch"] == 0)
    write_shards(
        data, out / "shards", films=3
    )  # of 3, 3, 3, 3 and 1: two processes take other numbers of steps in each epoch
    subprocess.run(
        [*TORCHRUN, str(Path(__file__).with_name("two_processes.py")), str(data), str(out)],
        env=ENVIRONMENT,
        check=True,
        timeout=600,
    )
    return out


@pytest.fixture(scope="module")
def seen(two):
    """What each of the two processes saw."""
    return [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]


# --- two processes compute what one does -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EQUAL)
def test_weights_and_history_are_those_of_one_process(data, two, tmp_path, name):
    run(data, tmp_path, **EQUAL[name])
    assert_same_run(tmp_path, two / name, epochs=3)


def test_run_of_one_process_goes_on_with_two(data, two, tmp_path):
    run(data, tmp_path)
    assert_same_run(tmp_path, two / "resumed", epochs=3)


@pytest.mark.parametrize("name", [*EQUAL, *ALIKE, "resumed", "shards"])
def test_both_processes_have_the_same_weights_average_and_history(seen, name):
    """To the bit, clock included: another statistic, learning rate or best epoch in one of them would show."""
    first, second = (facts[name] for facts in seen)
    assert (first["weights"], first["history"]) == (second["weights"], second["history"])


def test_all_epochs_are_streamed_from_shards_at_a_rate_that_only_falls_after_the_warm_up(seen):
    history = seen[0]["shards"]["history"]
    rates = [row["lr"] for row in history]
    assert len(history) == 12 and max(rates) <= BASE.lr
    assert rates[:3] == sorted(rates[:3]) and rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] < 0.1 * BASE.lr


def test_who_reads_fast_waits_for_who_reads_slowly_longer_than_while_training(seen):
    assert [facts["loading"] for facts in seen] == ["", ""]


def test_each_validation_film_is_scored_once(seen):
    films = [name for facts in seen for name in facts["heads"]["validated"]]
    assert len(films) == len(set(films)) == 5 + 2


def test_one_process_of_a_machine_reads_the_films_of_all(seen):
    assert seen[0]["reads"] and not seen[1]["reads"]


def test_one_process_writes(seen, two):
    assert seen[0]["writes"] and not seen[1]["writes"]
    assert {path.name for path in (two / "heads").iterdir()} == {
        "last.pt",
        "best.safetensors",
        "history.csv",
        "config.json",
    }


def test_both_stop_by_the_first_process_s_clock(seen):
    assert seen[0]["clock"] == seen[1]["clock"] and 20 <= seen[0]["clock"][-1]["seconds"] <= 22


class Joined:
    """A loader of the batches that two processes stream from shards, step by step in one batch, without the films that
    only fill it."""

    def __init__(self, shards, config, monkeypatch):
        self.sampler, self.dataset, self.epoch, self.batches = None, self, 0, []
        for epoch in range(config.epochs):
            steps = []
            for rank in (0, 1):
                be_process(monkeypatch, rank, 2)
                films = ShardedFilms(
                    read_shards(shards).query("split == 'train'"),
                    config.size,
                    config.augment,
                    batch=config.batch_size,
                    shuffle=True,
                )
                films.epoch = epoch
                steps.append(list(StreamLoader(films)))
            monkeypatch.delenv("TORCHELASTIC_RUN_ID")
            self.batches.append([self.join(*both) for both in zip(*steps, strict=True)])

    @staticmethod
    def join(one, two):
        keep = [n for n, name in enumerate(one["name"] + two["name"]) if name]
        return {
            key: torch.cat([one[key], two[key]])[keep]
            if torch.is_tensor(one[key])
            else [(one[key] + two[key])[n] for n in keep]
            for key in one
        }

    def __len__(self):
        return len(self.batches[self.epoch])

    def __iter__(self):
        return iter(self.batches[self.epoch])


@pytest.mark.slow
def test_two_machines_stream_from_s3_and_learn_what_one_process_does(data, proxy, tmp_path, monkeypatch):
    """Each has its own torchrun and reads its own shards; what they share is the run's folder."""
    pytest.importorskip("webdataset")
    write_shards(data, tmp_path / "shards", films=3)
    s3.upload(tmp_path / "shards", "s3://bkt/set")
    proxy.faults.append(Fault("truncate", "GET", "train-00001"))
    config = replace(BASE, sources=("montgomery", "shenzhen"), batch_size=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        *TORCHRUN[:3],
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        endpoint,
        "--local-addr",
        "127.0.0.1",
        "-m",
        "kaggle_utils",
        *config.command.split()[3:],
        "--data",
        "s3://bkt/set",
        "--out",
        str(tmp_path / "two"),
    ]
    machines = [
        subprocess.Popen(command, env=os.environ | SETTINGS, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [machine.communicate(timeout=600)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert not proxy.faults[0].times
    together = config.for_processes(2)
    one = make_trainer(tmp_path / "shards", tmp_path / "one", together)
    one.train_loader = Joined(tmp_path / "shards", together, monkeypatch)
    films = [name for batch in one.train_loader.batches[0] for name in batch["name"]]
    assert len(films) == len(set(films)) == 8 + 5
    one.fit()
    assert_same_run(tmp_path / "one", tmp_path / "two", epochs=3)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "case, message",
    [
        ("diverged", "the loss is nan at step 0, on MONTGOMERY_0002_0, MONTGOMERY_0003_1, MONTGOMERY_0004_0: "),
        ("other seed", "the processes differ in seed (0 and 1): "),
        ("small batch", "a batch of 1 is too small for 2 processes"),
    ],
)
def test_what_one_process_meets_ends_both_in_words(seen, rank, case, message):
    assert seen[rank][case].startswith(message)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_process_that_is_killed_ends_the_run_which_one_process_finishes_at_the_batch_and_rate_of_two(data, tmp_path):
    config = replace(BASE, epochs=16)
    options = [*config.command.split()[3:], "--data", str(data), "--out", str(tmp_path / "run")]
    launched = subprocess.Popen(
        [*TORCHRUN, "-m", "kaggle_utils", *options], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run" / "last.pt").exists():
        assert launched.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    victim = next(int(pid) for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(victim, signal.SIGKILL)
    _, errors = launched.communicate(timeout=600)
    assert launched.returncode != 0 and "SIGKILL" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    killed = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert 0 < len(killed["history"]) < 16
    assert (killed["config"]["batch_size"], killed["config"]["lr"]) == (6, 2 * BASE.lr)
    training.train(data, tmp_path / "run", config, resume=True)
    training.train(data, tmp_path / "undisturbed", config.for_processes(2))
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run", epochs=16)


@pytest.mark.parametrize(
    "device, message",
    [
        ("cuda:0", "cuda:0 is one GPU and there are 3 processes"),
        ("cuda", "3 processes and 2 GPUs on this machine: choose --nproc-per-node 2"),
    ],
)
def test_processes_without_a_gpu_each_are_refused(monkeypatch, device, message):
    be_process(monkeypatch, 2, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message), distributed.processes(torch.device(device)):
        pass


def test_machines_that_do_not_reach_each_other_are_told_which_variable_helps(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Gloo connectFullMesh failed with […] Connection refused, remote=[127.0.0.1]:55733")

    be_process(monkeypatch, 1, 2)
    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with (
        pytest.raises(ConnectionError, match="don't reach each other.*GLOO_SOCKET_IFNAME=eth0.*refused"),
        distributed.processes(torch.device("cpu")),
    ):
        pass


def test_a_process_that_no_longer_answers_is_one_line_and_other_errors_stay_what_they_are(monkeypatch):
    be_process(monkeypatch, 0, 2)
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    for said in (
        "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:129] Timed out waiting 300000ms",
        "Application timeout caused pair closure",
    ):
        with (
            pytest.raises(ConnectionError, match="doesn't answer any more.*--resume"),
            distributed.processes(torch.device("cpu")),
        ):
            raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="of ours"), distributed.processes(torch.device("cpu")):
        raise RuntimeError("one of ours")


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world, batch, n", [(1, 3, 8), (2, 3, 7), (2, 4, 8), (3, 4, 13), (4, 4, 9), (4, 8, 3)])
def test_shares_together_are_each_batch_and_all_processes_take_as_many_steps(monkeypatch, world, batch, n):
    order, steps = list(EpochSampler(n, batch=batch)), [[] for _ in range(-(-n // batch))]
    for rank in range(world):
        be_process(monkeypatch, rank, world)
        sampler, own = EpochSampler(n, batch=batch), distributed.batch_share(batch)
        keys = list(sampler)
        assert len(keys) == len(sampler) and -(-len(keys) // own) == len(steps)  # as a loader cuts them
        for step, films in enumerate(steps):
            films += filter(None, keys[step * own : (step + 1) * own])
    assert [sorted(films) for films in steps] == [sorted(order[start : start + batch]) for start in range(0, n, batch)]


def test_statistics_of_gpus_are_neither_sent_around_nor_averaged_again(monkeypatch):
    """SyncBatchNorm has made them equal: a broadcast or a mean would cost each step a wait."""
    be_process(monkeypatch, 0, 2)
    buffer = SimpleNamespace(is_floating_point=lambda: True, is_cuda=True)
    distributed.average_statistics(SimpleNamespace(buffers=lambda: [buffer]))  # without a process group
    asked = []
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model, **options: asked.append(options))
    distributed.average_gradients(torch.nn.BatchNorm2d(1))
    assert asked == [{"broadcast_buffers": False}]
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    assert isinstance(distributed.share_statistics(model, torch.device("cuda"))[0], torch.nn.SyncBatchNorm)


# --- one process -----------------------------------------------------------------------------------------------------


def test_another_launcher_s_rank_changes_nothing(monkeypatch):
    be_process(monkeypatch, 1, 2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    model = torch.nn.BatchNorm2d(1)
    with distributed.processes(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
    assert distributed.is_main() and distributed.world_size() == distributed.machine_size() == 1
    assert distributed.share([1, 2]) == distributed.gather([1, 2]) == distributed.sums(1, 2) == [1, 2]
    assert distributed.average_gradients(model) is model is distributed.share_statistics(model, torch.device("cuda"))


@pytest.mark.parametrize(
    "gpus, launcher", [(0, []), (1, []), (2, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])]
)
def test_command_for_a_notebook_takes_all_gpus(monkeypatch, gpus, launcher):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    command = distributed.launch_command("--data", Path("set"), "--epochs", 3)
    assert command == [sys.executable, *launcher, "-m", "kaggle_utils", "train", "--data", "set", "--epochs", "3"]
    for named in (("--device", "cuda:0"), ("--device=cuda:0",)):
        assert "torch.distributed.run" not in distributed.launch_command(*named)


@pytest.mark.slow
def test_a_notebook_sees_what_the_training_says_and_that_it_failed(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # where there is no kaggle_utils
    distributed.launch("--help")
    assert "torchrun" in capsys.readouterr().out
    with pytest.raises(subprocess.CalledProcessError):
        distributed.launch("--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert "nowhere" in capsys.readouterr().out
