"""scale.shards: every film once, shuffled across shards, as the prepared set has it; training from disk and from S3."""

import gzip
import io
import random
import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import write_prepared
from s3_server import Fault

from kaggle_utils.config import TrainConfig
from kaggle_utils.data import LungDataset, read_manifest
from kaggle_utils.scale import s3, s3_client, shards
from kaggle_utils.scale.shards import ShardedFilms, StreamLoader, is_sharded, read_shards, write_shards
from kaggle_utils.trainer import make_trainer

pytest.importorskip("webdataset")

TINY = TrainConfig(sources=("montgomery",), size=32, base_channels=2, depth=2, patch=1, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "segmentation"
    write_prepared(root, {"train": 23, "val": 5})
    return root


@pytest.fixture(scope="module")
def sharded(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("set") / "shards"
    write_shards(prepared, out, films=4)
    return out


def train_rows(root):
    return read_shards(root).query("split == 'train'")


def names(batches):
    return [name for batch in batches for name in batch["name"]]


def test_each_film_is_there_once_in_shards_of_at_most_so_many(prepared, sharded):
    frame = read_shards(sharded)
    assert sorted(frame["name"]) == sorted(read_manifest(prepared)["name"]) and frame["shard"].value_counts().max() == 4
    assert sorted(p.name for p in sharded.glob("*.tar")) == [f"train-{n:05d}.tar" for n in range(6)] + [
        f"val-{n:05d}.tar" for n in range(2)
    ]
    assert is_sharded(sharded) and not is_sharded(prepared) and is_sharded("s3://films/shards")


@pytest.mark.parametrize("raw", [False, True])
def test_films_and_masks_are_those_of_the_prepared_set(prepared, sharded, raw):
    films = LungDataset(read_manifest(prepared).query("split == 'train'"), 32, raw=raw)
    expected = {item["name"]: item for item in (films[n] for n in range(len(films)))}
    found = [
        (name, batch["image"][n], batch["mask"][n], batch["source"][n])
        for batch in ShardedFilms(train_rows(sharded), 32, batch=5, raw=raw)
        for n, name in enumerate(batch["name"])
    ]
    assert sorted(name for name, *_ in found) == sorted(expected)
    for name, image, mask, source in found:
        torch.testing.assert_close(image, expected[name]["image"], rtol=0, atol=0)
        torch.testing.assert_close(mask, expected[name]["mask"], rtol=0, atol=0)
        assert source == expected[name]["source"]


def test_by_default_eight_processes_can_train(tmp_path):
    frame = write_shards(write_prepared(tmp_path / "set", {"train": 23, "val": 9}), tmp_path / "shards", size=16)
    assert (frame.groupby("split")["shard"].nunique() >= 8).all() and frame["shard"].value_counts().max() == 2


def test_shards_may_hold_smaller_films(prepared, tmp_path):
    write_shards(prepared, tmp_path, size=16)
    batch = next(iter(ShardedFilms(train_rows(tmp_path), 16)))
    assert batch["image"].shape == (8, 1, 16, 16) and set(batch["mask"].unique().tolist()) == {0, 1}


@pytest.fixture
def streams(monkeypatch):
    """Four streams, of two shards or one, where a batch has three films."""
    monkeypatch.setattr(shards, "BUFFER", 16)
    monkeypatch.setattr(shards, "STREAM_BATCHES", 1)


def streamed(root, workers=0, epoch=0, **settings):
    films = ShardedFilms(train_rows(root), 32, "light", **{"batch": 3, "shuffle": True, **settings})
    films.epoch = epoch
    return StreamLoader(films, workers)


def same_batches(found, expected):
    assert names(found) == names(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["image"], other["image"], rtol=0, atol=0)
        torch.testing.assert_close(one["mask"], other["mask"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 9])
def test_batches_are_the_same_with_any_number_of_workers(sharded, streams, workers):
    alone, together = streamed(sharded, 0), streamed(sharded, workers)
    assert alone.films.streams == 4 and together.num_workers == {3: 2, 9: 4}.get(workers, workers)
    for epoch in (0, 1):
        alone.films.epoch = together.films.epoch = epoch
        expected = list(alone)
        assert len(expected) == len(alone) == len(together) > 23 / 3  # streams end with a smaller batch each
        assert sorted(names(expected)) == sorted(train_rows(sharded)["name"])
        same_batches(list(together), expected)


def test_each_worker_reads_its_own_shards(sharded, streams, monkeypatch):
    real, read = shards._open, {0: [], 1: []}
    films = streamed(sharded).films
    for worker, opened in read.items():
        monkeypatch.setattr(shards, "get_worker_info", lambda worker=worker: SimpleNamespace(id=worker, num_workers=2))
        monkeypatch.setattr(shards, "_open", lambda path, opened=opened: opened.append(path) or real(path))
        list(films)
    assert len(read[0]) == len(read[1]) == 3 and len({*read[0], *read[1]}) == 6


def test_streams_are_as_many_as_shards_and_films_are_enough_for(sharded):
    def count(batch, **settings):
        return ShardedFilms(train_rows(sharded), 32, batch=batch, **{"shuffle": True, **settings}).streams

    assert [count(1), count(2)] == [1, 1]  # 23 films: 16 batches each are too many for two
    many = train_rows(sharded).loc[lambda rows: rows.index.repeat(16)]
    assert [ShardedFilms(many, 32, batch=batch, shuffle=True).streams for batch in (1, 8, 12, 100)] == [4, 2, 1, 1]
    assert ShardedFilms(many, 32, batch=1).streams == 1  # in order, as validation wants it


def test_a_damaged_shard_is_one_line_from_a_worker_too(copy, streams):
    (copy / "train-00001.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^[^\n]*train-00001.tar: .*damaged[^\n]*: write the shards again$"):
        list(streamed(copy, workers=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_and_seed_decide_order_and_augmentation(sharded, workers, monkeypatch):
    monkeypatch.setattr(shards, "BUFFER", 8)

    def epoch(number, seed=0):
        return list(streamed(sharded, workers, number, batch=4, seed=seed))

    first, again, second, other = epoch(0), epoch(0), epoch(1), epoch(0, seed=1)
    assert names(first) == names(again) != names(second) and names(first) != names(other)
    assert sorted(names(first)) == sorted(names(second)) == sorted(train_rows(sharded)["name"])
    torch.testing.assert_close(
        torch.cat([b["image"] for b in first]), torch.cat([b["image"] for b in again]), rtol=0, atol=0
    )
    where = {name: batch["image"][n] for batch in second for n, name in enumerate(batch["name"])}
    assert any((where[name] != batch["image"][n]).any() for batch in first for n, name in enumerate(batch["name"]))


def test_films_of_different_shards_meet_in_a_batch(sharded):
    frame = train_rows(sharded).set_index("name")
    batches = list(ShardedFilms(frame.reset_index(), 32, batch=8, shuffle=True))
    assert max(frame.loc[batch["name"], "shard"].nunique() for batch in batches) > 2


def test_only_the_wanted_films_are_read(sharded):
    frame = train_rows(sharded).sample(7, random_state=0)
    films = ShardedFilms(frame, 32, batch=3)
    assert sorted(names(films)) == sorted(frame["name"]) and len(films) == len(list(films)) == 3


@pytest.fixture
def copy(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "copy")


def rewrite(path, change):
    """A shard with members changed, or left out where ``change`` says None."""
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for member, data in filter(None, (change(*pair) for pair in members)):
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def bomb(member, data):
    return member, data.replace(b"32 32", b"99999 99999") if member.name.endswith("film.pgm") else data


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "cut between films": lambda path: rewrite(
        path, lambda member, data: (member, data) if member.name < "00000004" else None
    ),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "junk": lambda path: path.write_bytes(random.Random(0).randbytes(20000)),
    "empty": lambda path: path.write_bytes(b""),
    "gzip": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    "a bomb inside": lambda path: rewrite(path, bomb),
    "names of others": lambda path: rewrite(
        path, lambda member, data: (member.replace(name=f"film{member.name}"), data)
    ),
    "masks gone": lambda path: rewrite(
        path, lambda member, data: None if member.name.endswith("pbm") else (member, data)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_one_line_that_names_it(copy, damage):
    DAMAGES[damage](copy / "train-00001.tar")
    with pytest.raises(ValueError, match=r"^[^\n]*train-00001.tar: .*damaged[^\n]*: write the shards again$"):
        list(StreamLoader(ShardedFilms(train_rows(copy), 32)))


def test_flipped_bits_of_a_shard_bring_no_traceback(copy):
    path, chance = copy / "train-00001.tar", random.Random(0)
    data = path.read_bytes()
    for _ in range(60):
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
        try:
            list(StreamLoader(ShardedFilms(train_rows(copy), 32)))
        except ValueError as error:
            assert "train-00001.tar: " in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: "", "not a table as prep writes it"),
        (lambda text: text.replace("pixels", "other", 1), "no column pixels"),
        (
            lambda text: text.replace("train-00001.tar", "../train-00001.tar"),
            "names '../train-00001.tar', which is no shard",
        ),
        (lambda text: text.replace("train-00001.tar", ""), "names nan, which is no shard"),
    ],
)
def test_damaged_manifest_of_shards_is_one_line_that_names_it(copy, damage, message):
    path = copy / "manifest.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message) as refused:
        read_shards(copy)
    assert str(refused.value).startswith(str(path))


def test_damaged_and_missing_shards_are_named(copy):
    shard = copy / "train-00002.tar"
    data = bytearray(shard.read_bytes())
    start = data.index(b"P5")
    data[start : start + 8] = bytes(8)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="train-00002.tar: film 0.* is damaged"):
        list(StreamLoader(ShardedFilms(train_rows(copy), 32)))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="train-00002.tar is in .*manifest.csv but not on the disk"):
        read_shards(copy)


@pytest.mark.parametrize("each", [1, 16])
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_several_processes_share_the_shards_and_take_as_many_steps(sharded, monkeypatch, world, each):
    monkeypatch.setattr(shards, "STREAM_BATCHES", each)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    found, steps = [], set()
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        batch = 2 * world + world // 2  # not the same share for all
        films = StreamLoader(ShardedFilms(train_rows(sharded), 32, batch=batch, shuffle=True))
        batches = list(films)
        steps.add(len(batches))
        assert len(films) == len(batches) and all("" not in batch["name"] or batch["name"] == [""] for batch in batches)
        found += filter(None, names(batches))
    assert len(steps) == 1 and sorted(found) == sorted(train_rows(sharded)["name"])
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(ValueError, match="6 shards are too few for 7 processes.*--films 3 or fewer"):
        ShardedFilms(train_rows(sharded), 32, batch=14)


def test_training_from_shards_learns_and_resumes_to_the_same_weights(sharded, tmp_path):
    config = replace(TINY, base_channels=4, batch_size=6, epochs=3, lr=1e-2)
    whole = make_trainer(sharded, None, config)
    history = whole.fit()
    assert history["val_dice"].iloc[-1] > 0.5
    half = make_trainer(sharded, tmp_path / "run", config)
    half.fit(lambda row: row["epoch"] == 1)
    resumed = make_trainer(sharded, tmp_path / "run", config, resume=True)
    resumed.fit()
    for name, weight in whole.best_model.state_dict().items():
        torch.testing.assert_close(resumed.best_model.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_within_an_epoch_goes_on_with_the_next_batch(sharded, tmp_path, monkeypatch, streams, workers):
    class Stop(Exception):
        pass

    def stop(*_):
        if stopped.step == 13:  # the second epoch's fifth
            raise Stop

    config = replace(TINY, batch_size=3, epochs=2)
    whole = make_trainer(sharded, None, config)
    whole.fit()
    assert whole.train_loader.films.streams == 4
    monkeypatch.setattr("kaggle_utils.trainer.CHECKPOINT_SECONDS", 0)
    stopped = make_trainer(sharded, tmp_path / "run", config)
    monkeypatch.setattr(stopped, "_set_rate", lambda rate, real=stopped._set_rate: stop() or real(rate))
    with pytest.raises(Stop):
        stopped.fit()
    resumed = make_trainer(sharded, tmp_path / "run", replace(config, workers=workers), resume=True)
    assert resumed.step == 13 and 0 < resumed.begun.batches < len(resumed.train_loader)
    resumed.fit()
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0)


def test_files_of_others_are_neither_removed_nor_replaced(prepared, tmp_path):
    def refused(name, text, match):
        folder = tmp_path / f"folder of {name}"
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            write_shards(prepared, folder)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == text

    refused("backup-00001.tar", "mine", "holds something else, as there is no manifest.csv: choose another folder")
    refused("manifest.csv", "name,weight\na,1\n", "not that of shards: choose another folder")


def test_shards_written_again_leave_none_of_the_old_and_all_of_others(prepared, tmp_path):
    write_shards(prepared, tmp_path, films=4, size=16)
    (tmp_path / "backup-00001.tar").write_text("mine")
    write_shards(prepared, tmp_path, films=20, size=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "backup-00001.tar",
        "manifest.csv",
        "train-00000.tar",
        "train-00001.tar",
        "val-00000.tar",
    ]


def test_a_run_that_was_killed_writes_its_shards_again(prepared, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("kaggle_utils.scale.shards.read_pair", killed)
        write_shards(prepared, tmp_path)
    assert len(write_shards(prepared, tmp_path)) == 28


def test_shards_and_prepared_set_are_not_taken_for_each_other(prepared, sharded):
    with pytest.raises(ValueError, match="is the prepared set itself"):
        write_shards(prepared, prepared / ".")
    with pytest.raises(ValueError, match="holds shards, which train alone reads"):
        read_manifest(sharded)


def test_without_webdataset_it_is_one_line(sharded, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(ImportError, match="shards need webdataset: pip install webdataset"):
        ShardedFilms(train_rows(sharded))


def test_a_set_without_films_is_refused(sharded):
    with pytest.raises(ValueError, match="left nothing"):
        ShardedFilms(pd.DataFrame(columns=read_shards(sharded).columns))
    assert np.isfinite(len(ShardedFilms(train_rows(sharded))))


# --- from S3 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(sharded, proxy):
    """The shards' address, with a slash at its end as people give it."""
    s3.upload(sharded, "s3://bkt/set")
    proxy.log.clear()
    return "s3://bkt/set/"


def test_shards_in_s3_are_those_of_the_disk_through_faults(sharded, remote, proxy):
    proxy.faults[:] = [
        Fault("reset", "GET", "manifest"),
        Fault("truncate", "GET", "train-00001"),
        Fault("status", "GET", "train-00004"),
    ]
    local, far = (
        list(ShardedFilms(train_rows(root), 32, "light", batch=5, shuffle=True)) for root in (sharded, remote)
    )
    assert not any(fault.times for fault in proxy.faults) and names(local) == names(far)
    for one, other in zip(local, far):
        torch.testing.assert_close(one["image"], other["image"], rtol=0, atol=0)


def test_streams_of_s3_are_those_of_the_disk(sharded, remote, streams):
    same_batches(list(streamed(remote)), list(streamed(sharded)))


def test_clients_are_made_one_at_a_time(monkeypatch):
    """boto3 makes them in a session of its own, which two threads may not change at once."""
    making, most = [], []

    def client(*_, **__):
        making.append(1)
        time.sleep(0.05)
        most.append(len(making))
        making.pop()

    monkeypatch.setattr(pytest.importorskip("boto3"), "client", client)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: s3_client.connect(), range(4)))
    assert most == [1, 1, 1, 1]


def test_of_s3_no_more_than_the_next_shard_is_fetched_ahead(remote, proxy):
    films = iter(ShardedFilms(train_rows(remote), 32, batch=2))
    proxy.wait_for("GET", "manifest")
    next(films)
    proxy.wait_for("GET", "train-00001")
    assert not proxy.asked("GET", "train-0000[2-9]")


def test_what_is_wrong_with_shards_in_s3_is_one_line(prepared, remote, client):
    with pytest.raises(FileNotFoundError, match="s3://bkt/other/manifest.csv: no such object"):
        read_shards("s3://bkt/other")
    frame = train_rows(remote)
    client.delete_object(Bucket="bkt", Key="set/train-00003.tar")
    with pytest.raises(FileNotFoundError, match="s3://bkt/set/train-00003.tar: no such object"):
        list(StreamLoader(ShardedFilms(frame, 32)))
    s3.upload(prepared, "s3://bkt/prepared")
    with pytest.raises(ValueError, match="s3://bkt/prepared/manifest.csv: a set without shards"):
        make_trainer("s3://bkt/prepared", None, TrainConfig(sources=("montgomery",)))
