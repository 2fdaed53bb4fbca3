"""scale.cluster on a Ray cluster of two nodes on this machine: predict's rows, restarts, kills, bad films, S3."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import phantom, write_raw
from s3_server import Fault

from kaggle_utils import infer, predictions
from kaggle_utils.cli import main
from kaggle_utils.files import printable
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.scale.cluster import MANIFEST, Settings, list_films, predict_on_cluster
from kaggle_utils.scale.cluster_work import STOPS, Worker

# Before Ray is imported: its servers and their addresses are the loopback's, and nothing gets into the home folder.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_TOKEN": "of-this-machine-and-of-these-tests",
}
pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

FORCED = Settings(batch=4, force=True)  # the checks say, rightly, that a phantom is no chest film
NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**27, "node_ip_address": "127.0.0.1"}
SECONDS = 300  # generous: each process of a cluster imports PyTorch, perhaps on a busy machine


@pytest.fixture(scope="module")
def folder():
    """A short path: the sockets of Ray lie below it."""
    with tempfile.TemporaryDirectory(prefix="ul", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(folder):
    """The address of two nodes of a core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ACCESS_KEY_ID": "nobody",
            "SECRET_ACCESS_KEY": "nothing",
            "DEFAULT_REGION": "us-east-1",
            "EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(f"AWS_{name}", value)  # the nodes need them too
        (folder / "ray").mkdir()
        patch.setenv("RAY_TMPDIR", str(folder / "ray"))  # else /tmp/ray
        patch.setattr("ray._private.services.start_api_server", lambda *_, **__: ("", None))  # it would ask the cloud
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def weights(folder):
    torch.manual_seed(19)  # by chance a network that finds two lungs in each film
    save_weights(folder / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    return folder / "w.safetensors"


@pytest.fixture(scope="module")
def films(folder):
    """36 films, two of which can't be read, one of which lies in a folder below under another's name."""
    for seed in range(33):
        write_raw(folder / "films" / f"f{seed:02d}.png", phantom(96, 80, seed).image)
    write_raw(folder / "films/below/f03.png", phantom(80, 96, 99).image)
    (folder / "films/f03b.png").write_bytes(b"no film")
    (folder / "films/f20b.png").write_bytes(b"")
    return folder / "films"


@pytest.fixture(scope="module")
def expected(films, weights, folder):
    """What predict says on this machine alone."""
    out = folder / "expected"
    predictions.predict(
        sorted(p for p in films.rglob("*.png")),
        out,
        infer.LungSegmenter(weights, device="cpu"),
        batch=4,
        force=True,
        formats=["coco"],
    )
    return {
        "predictions": pd.read_csv(out / "predictions.csv", keep_default_na=False).drop(columns=["mask", "overlay"]),
        "measurements": pd.read_csv(out / "measurements.csv"),
        "lungs": pd.read_parquet(out / "coco.parquet"),
    }


@pytest.fixture(scope="module")
def done(cluster, films, weights, folder):
    """A finished run, in shards of 8."""
    manifest = predict_on_cluster([films], folder / "out", FORCED, weights=weights, address=cluster.address, shard=8)
    return folder / "out", manifest


def assert_same(out, expected):
    """Row by row, mask by mask, number by number."""
    rows = pd.read_parquet(out)
    assert_alike(rows, expected["predictions"])
    assert_alike(rows[rows["error"] == ""], expected["measurements"])
    lungs = {(row["name"], row["category"]): row["segmentation"]["counts"] for _, row in expected["lungs"].iterrows()}
    found = {
        (row["name"], f"{side} lung"): row[f"{side}_lung"]["counts"]
        for _, row in rows.iterrows()
        for side in ("right", "left")
        if isinstance(row[f"{side}_lung"], dict)
    }
    assert found == lungs and len(lungs) > 60


def assert_alike(rows, expected):
    """Each column's text to the letter, its numbers within float32's: other batches are summed in another order."""
    for name in expected:
        columns = [
            table[name].astype(object).where(table[name].notna(), "").reset_index(drop=True)
            for table in (rows, expected)
        ]
        numbers = [pd.to_numeric(column, errors="coerce") for column in columns]
        np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-3, err_msg=name)
        assert list(columns[0][numbers[0].isna()]) == list(columns[1][numbers[1].isna()]), name


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("*.parquet"))}


def test_rows_are_those_of_predict(done, expected):
    assert_same(done[0], expected)


def test_manifest_says_what_is_there(done, weights):
    out, manifest = done
    assert manifest == json.loads((out / MANIFEST).read_text())
    assert manifest["films"] == 36 and manifest["weights"] == infer.LungSegmenter(weights, device="cpu").version
    assert {shard["file"]: shard["rows"] for shard in manifest["shards"]} == {
        path.name: len(pd.read_parquet(path)) for path in out.glob("*.parquet")
    }
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 8, 8, 8, 4]
    assert (
        manifest["result"]["masks"] == 34
        and manifest["result"]["unreadable"] == 2
        and manifest["result"]["refused"] == 0
    )


def test_only_what_is_missing_is_done_again(done, cluster, films, weights, expected):
    out, manifest = done
    before = times(out)
    (out / "films-00001.parquet").unlink()
    (out / "films-00004.parquet").unlink()
    (out / ".films-00004.parquet.part").write_bytes(b"what a kill left")
    assert predict_on_cluster([films], out, FORCED, weights=weights, address=cluster.address, shard=8) == manifest
    changed = {name for name, when in times(out).items() if before[name] != when}
    assert changed == {"films-00001.parquet", "films-00004.parquet"}
    assert_same(out, expected)


def test_finished_run_starts_no_cluster(done, films, weights):
    before = times(done[0])
    assert predict_on_cluster([films], done[0], FORCED, weights=weights, address="127.0.0.1:1", shard=8) == done[1]
    assert times(done[0]) == before


def test_other_films_weights_settings_or_shards_are_an_error(done, films, weights, tmp_path):
    def go(patterns=(films,), settings=FORCED, weights=weights, shard=8):
        predict_on_cluster(patterns, done[0], settings, weights=weights, address="127.0.0.1:1", shard=shard)

    torch.manual_seed(1)
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    before = times(done[0])
    for what, change in {
        "films": {"patterns": [films / "below"]},
        "weights": {"weights": tmp_path / "w.safetensors"},
        "settings": {"settings": Settings(batch=4)},
        "shards": {"shard": 9},
    }.items():
        with pytest.raises(ValueError, match=f"other {what}.*choose another folder"):
            go(**change)
    (tmp_path / "films-00000.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="shards without"):
        predict_on_cluster([films], tmp_path, FORCED, weights=weights, address="127.0.0.1:1", shard=8)
    assert times(done[0]) == before


def test_killed_process_loses_nothing(cluster, films, weights, folder, expected):
    killed = []

    def kill():
        """The first process at work, once a shard is there."""
        end = time.time() + SECONDS
        while not killed and time.time() < end:
            if times(folder / "killed"):
                workers = [
                    p
                    for p in psutil.process_iter(["name", "cmdline"])
                    if "MapWorker" in " ".join(p.info["cmdline"] or ())
                ]
                for worker in workers[:1]:
                    worker.kill()
                    killed.append(worker.pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    predict_on_cluster([films], folder / "killed", FORCED, weights=weights, address=cluster.address, shard=2)
    killer.join()
    assert killed and len(times(folder / "killed")) == 18
    assert_same(folder / "killed", expected)


def test_a_store_that_fails_ends_the_run_and_is_no_film_s_error(cluster, films, weights, proxy, client):
    """Refused for good, and the next time broken for a moment."""
    for path in sorted(films.glob("f[0-9][0-9].png"))[:12]:
        client.upload_file(str(path), "bkt", f"in/{path.name}")
    denied = Fault("status", "HEAD|GET", "/in/f09", times=10**6, status=403, code="AccessDenied")
    proxy.faults.append(denied)
    with pytest.raises(OSError, match="s3://bkt/in/f09.png: permission denied.* resumes when that is mended"):
        predict_on_cluster(["s3://bkt/in"], "s3://bkt/out", FORCED, weights=weights, address=cluster.address, shard=4)
    denied.times = 0
    proxy.faults.append(Fault("status", "GET", "/in/f10", times=1, status=500))
    assert (
        predict_on_cluster(["s3://bkt/in"], "s3://bkt/out", FORCED, weights=weights, address=cluster.address, shard=4)[
            "result"
        ]["masks"]
        == 12
    )


def test_no_name_of_a_file_ends_a_run(odd_names, weights, tmp_path):
    films = list_films([tmp_path / "odd"])
    batch = {name: np.array(films.column(name).to_pylist(), object) for name in films.column_names}
    rows = Worker(FORCED, weights.name, weights.read_bytes(), "cpu")(batch).to_pandas()
    assert (
        set(rows["name"]) == set(odd_names.values())
        and set(rows["path"]) == set(map(printable, odd_names))
        and (rows["error"] == "").all()
    )


def test_results_below_the_films_are_no_films(tmp_path, proxy, client):
    for key in ("film.png", "run/masks/film.png", "run/predictions.csv", "out/films-00000.parquet"):
        client.put_object(Bucket="bkt", Key=f"in/{key}", Body=b"x")
    assert list_films(["s3://bkt/in"]).column("path").to_pylist() == [b"s3://bkt/in/film.png"]
    (tmp_path / "in" / "masks").mkdir(parents=True)
    for name in ("film.png", "masks/film.png", "predictions.csv"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert list_films([tmp_path / "in"]).column("name").to_pylist() == ["film"]


def test_a_folder_that_a_node_does_not_see_ends_the_run_and_a_film_that_is_gone_does_not(tmp_path, weights):
    batch = {
        "number": np.arange(2),
        "name": np.array(["a", "b"]),
        "path": np.array([str(tmp_path / "gone.png"), str(tmp_path / "gone/film.png")]),
    }
    worker = Worker(FORCED, weights.name, weights.read_bytes(), "cpu")
    gone, unseen = worker(batch).column("error").to_pylist()
    assert "a node doesn't see this folder" in unseen and unseen.endswith(STOPS)
    assert gone and not gone.endswith(STOPS)


def test_what_is_wrong_with_addresses_is_one_line_and_leaves_nothing(weights, films, tmp_path, proxy, client):
    client.put_object(Bucket="bkt", Key="in/a.png", Body=b"x")
    for patterns, out, said in (
        (["s3://nobody/in"], tmp_path / "a", "s3://nobody/in: no such bucket"),
        (["s3://bkt/in"], "s3://nobody/out", "s3://nobody/out: no such bucket"),
    ):
        with pytest.raises(FileNotFoundError, match=said):
            predict_on_cluster(patterns, out, FORCED, weights=weights)
    with pytest.raises(OSError, match="no cluster at 127.0.0.1:1"):
        predict_on_cluster([films], tmp_path / "b", FORCED, weights=weights, address="127.0.0.1:1")
    assert not any(tmp_path.iterdir())


def test_films_and_results_in_s3(cluster, films, weights, expected, folder, monkeypatch, capsys):
    """A bucket on this machine; the credentials are dummies, which the nodes have in their environment."""
    boto3, server = (
        pytest.importorskip("boto3"),
        pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False),
    )
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:{1}".format(*server.get_host_and_port()))
        client = boto3.client("s3")
        client.create_bucket(Bucket="films")
        for path in films.rglob("*.png"):
            client.upload_file(str(path), "films", f"in/{path.relative_to(films).as_posix()}")
        client.put_object(Bucket="films", Key="in/readme.txt", Body=b"no film")
        manifest = predict_on_cluster(
            ["s3://films/in"], "s3://films/out", FORCED, weights=weights, address=cluster.address, shard=20
        )
        client.upload_file(str(weights), "films", "w.safetensors")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert (
            main(
                [
                    "predict",
                    "s3://films/in/below/",
                    "--out",
                    "s3://films/out",
                    "--weights",
                    "s3://films/w.safetensors",
                    "--ray",
                    "127.0.0.1:1",
                ]
            )
            == 1
        )
        assert "other films" in capsys.readouterr().err
        with pytest.raises(FileNotFoundError, match="s3://films/nothing"):
            predict_on_cluster(["s3://films/nothing"], "s3://films/out", FORCED, weights=weights)
        found = {
            item["Key"]: client.get_object(Bucket="films", Key=item["Key"])["Body"].read()
            for item in client.list_objects_v2(Bucket="films", Prefix="out/")["Contents"]
        }
    finally:
        server.stop()
    assert {key for key, data in found.items() if data} == {
        f"out/{name}" for name in (MANIFEST, "films-00000.parquet", "films-00001.parquet")
    }
    rows = pd.concat(pd.read_parquet(BytesIO(found[f"out/films-0000{n}.parquet"])) for n in (0, 1))
    assert manifest["result"] | {"errors": 0} == {
        "masks": 34,
        "unreadable": 2,
        "refused": 0,
        "doubtful": manifest["result"]["doubtful"],
        "errors": 0,
    }
    assert list(rows["path"]) == [
        f"s3://films/in/{Path(path).relative_to(films).as_posix()}" for path in expected["predictions"]["path"]
    ]
    same = ["name", "lung_px", "quality", "flag"]
    assert_alike(rows, expected["predictions"][same])
    assert {error.split(": ")[0] for error in manifest["result"]["errors"]} == {
        "s3://films/in/f03b.png",
        "s3://films/in/f20b.png",
    }


@pytest.mark.slow
def test_command_line_on_this_machine_alone(films, weights, folder):
    """It listens to this machine alone, prints what concerns users, and leaves its results and nothing else."""
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    ray_was_there = Path("/tmp/ray").exists()
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(infer.__file__).parents[1]),
    }
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED", "RAY_AUTH_TOKEN"):
        del environment[name]
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kaggle_utils",
            "predict",
            "films",
            "--weights",
            weights.name,
            "--force",
            "--out",
            "local",
            "--ray",
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen, commands = set(), set()
    while run.poll() is None:
        addresses, lines = sockets(run.pid)
        seen, commands = seen | addresses, commands | lines
        time.sleep(0.2)
    out, err = run.communicate()
    assert run.returncode == 3, err
    assert out.startswith("34 masks in local, 2 files could not be read, 0 films refused")
    assert [line.split(": ")[0] for line in err.splitlines()] == [
        f"  {films.resolve()}/f03b.png",
        f"  {films.resolve()}/f20b.png",
    ]
    assert len(pd.read_parquet(folder / "local")) == 36
    assert seen and all(address.removeprefix("::ffff:").startswith("127.") for address in seen)
    assert commands and not any("dashboard/dashboard.py" in line for line in commands)  # it would ask the cloud
    assert not list((folder / "home").iterdir()) and not list((folder / "tmp").iterdir())
    assert ray_was_there or not Path("/tmp/ray").exists()


def sockets(pid: int) -> tuple[set[str], set[str]]:
    """Addresses that a process and its children listen at or are connected to, and their command lines."""
    found, commands = set(), set()
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            commands.add(" ".join(process.cmdline()))
            for connection in process.net_connections("inet"):
                found |= {end.ip for end in (connection.laddr, connection.raddr) if end}
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass
    return found, commands


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU computes other digits")
def test_with_a_gpu_rows_are_the_same(cluster, films, weights, folder, expected):
    """A node that says it has a GPU: the rows are the same."""
    node = cluster.add_node(**NODE, num_gpus=1)
    try:
        manifest = predict_on_cluster(
            [films], folder / "gpu", FORCED, weights=weights, address=cluster.address, device="cuda"
        )
    finally:
        cluster.remove_node(node)
    assert manifest["result"]["masks"] == 34
    assert_same(folder / "gpu", expected)


def test_gpu_that_is_not_there_is_an_error(cluster, films, weights, tmp_path):
    with pytest.raises(ValueError, match="Ray sees a GPU on 0 nodes"):
        predict_on_cluster([films], tmp_path, FORCED, weights=weights, address=cluster.address, device="cuda")


def test_address_where_nobody_answers_is_an_error(films, weights, tmp_path):
    with pytest.raises(OSError, match="no cluster at 127.0.0.1:1: "):
        predict_on_cluster([films], tmp_path, FORCED, weights=weights, address="127.0.0.1:1")


@pytest.mark.slow
def test_ray_is_imported_where_it_is_used():
    code = "import sys, kaggle_utils.cli, kaggle_utils.scale.cluster; sys.exit('ray' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(infer.__file__).parents[1], timeout=SECONDS).returncode
        == 0
    )


def test_without_ray_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    from kaggle_utils.scale import cluster

    monkeypatch.setattr(cluster, "find_spec", lambda name: None if name == "ray" else name)
    film = write_raw(tmp_path / "film.png", phantom().image)
    assert main(["predict", str(film), "--out", str(tmp_path), "--ray"]) == 1
    assert capsys.readouterr().err == f"unet-lung predict: a cluster needs ray: {cluster.INSTALL}\n"


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["--ray", "film.png"], 2, "films go before --ray"),
        (["there.png", "--ray", "--format", "coco"], 1, "leave --format away"),
        (["film.png", "--ray"], 1, "film.png: no such file"),
        (["film.png", "--ray", "--weights", "no.pt"], 1, "no.pt"),
    ],
)
def test_wrong_usage_is_one_line(arguments, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_raw(tmp_path / "there.png", phantom().image)
    try:
        assert main(["predict", "--out", "out", *arguments]) == status
    except SystemExit as end:
        assert end.code == status
    assert message in capsys.readouterr().err
