"""Two hosts that share S3 and a folder: the cable between them is cut in a cluster's run and in a training.

    sudo .venv/bin/python -m benchmarks.two_hosts

The hosts are network namespaces of this machine, each with an address, temporary files and a home of its own; needs
root and Debian's ``iproute2``. Host a has the S3 server (moto). Ray's host b doesn't see this clone: it gets the code
from host a. Films are synthetic. A cut cable is worse than a process that dies: nobody is told, the others have to
notice. Takes 12 minutes; writes ``results/two_hosts.json``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from benchmarks.common import AWS, RESULTS, ROOT, RUNS, machine, make_parser, need, write_json

SHARED = RUNS / "two_hosts"
HOSTS = {"a": "10.77.0.1", "b": "10.77.0.2"}
S3, RAY, MEETING = f"http://{HOSTS['a']}:5000", f"{HOSTS['a']}:6379", f"{HOSTS['a']}:29500"
COPIES, FILMS, PX, SHARD = 10, 100, 1024, 100  # films go into S3 under several prefixes
EPOCHS = 40
ENVIRONMENT = AWS | {"AWS_ENDPOINT_URL": S3, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
CLUSTER = (
    "from kaggle_utils.scale.cluster import predict_on_cluster; "
    f"predict_on_cluster(['s3://bkt/films'], 's3://bkt/lungs', address='{RAY}', shard={SHARD})"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def two_hosts():
    """Both, with a cable between them; all that runs there ends with the block."""
    remove_hosts()  # of a run that was killed
    ip("link", "add", "ula", "type", "veth", "peer", "name", "ulb")
    try:
        for host, address in HOSTS.items():
            ip("netns", "add", f"ul{host}")
            ip("link", "set", f"ul{host}", "netns", f"ul{host}")
            ip("-n", f"ul{host}", "addr", "add", f"{address}/24", "dev", f"ul{host}")
            ip("-n", f"ul{host}", "link", "set", "lo", "up")
            ip("-n", f"ul{host}", "link", "set", f"ul{host}", "up")
        yield
    finally:
        remove_hosts()


def remove_hosts() -> None:
    for host in HOSTS:
        subprocess.run(f"ip netns pids ul{host} 2>/dev/null | xargs -r kill -9", shell=True)
        for kind in (["netns", "del", f"ul{host}"], ["link", "del", f"ul{host}"]):
            subprocess.run(["ip", *kind], stderr=subprocess.DEVNULL)


def cable(state: str) -> None:
    """``up`` or ``down``."""
    ip("-n", "ulb", "link", "set", "ulb", state)


def start(host: str, *command: str, log: str, hide: str = "") -> subprocess.Popen:
    """A command on a host, in an empty ``/tmp``, which is its home; ``hide`` is a folder that is empty there."""
    mounts = "".join(f"mount -t tmpfs none {folder} && " for folder in ("/tmp", hide) if folder)
    with (SHARED / log).open("w") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", f"ul{host}", "unshare", "-m", "bash", "-c", f'{mounts}exec "$@"', "-", *command],
            stdout=file,
            stderr=file,
            cwd="/" if hide else ROOT,
            env=os.environ | ENVIRONMENT | {"HOME": "/tmp", "GLOO_SOCKET_IFNAME": f"ul{host}"},
        )


def on_a(*command: str) -> str:
    """Runs a command on host a; what it prints."""
    done = subprocess.run(
        ["ip", "netns", "exec", "ula", *command], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def wait(condition, seconds: float, what: str, needs: list[subprocess.Popen] = ()) -> float:
    """Seconds until the condition holds."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds or any(process.poll() is not None for process in needs):
            raise SystemExit(f"{what}: not within {seconds:.0f} s, or a process has ended; see {SHARED}/*.log")
        time.sleep(0.5)
    return round(time.monotonic() - begun, 1)


def objects(prefix: str) -> list[str]:
    code = (
        "import boto3; "
        f"told = boto3.client('s3').list_objects_v2(Bucket='bkt', Prefix='{prefix}'); "
        "print(*(each['Key'] for each in told.get('Contents', [])), sep='\\n')"
    )
    return on_a(sys.executable, "-c", code).split()


def prepare() -> None:
    """Synthetic radiographs in S3, as they are and as shards to train on."""

    def kaggle_utils(*words: str) -> None:
        on_a(sys.executable, "-m", "kaggle_utils", *words)

    kaggle_utils("synth", "--n", str(2 * FILMS), "--size", str(PX), "--out", f"{SHARED}/raw")
    films = sorted(path for path in (SHARED / "raw").rglob("CXR_png/*.png"))[:FILMS]
    (SHARED / "films").mkdir()
    for film in films:
        os.link(film, SHARED / "films" / film.name)
    kaggle_utils("prep", "--input", f"{SHARED}/raw", "--out", f"{SHARED}/set", "--size", "128")
    kaggle_utils("shards", "--data", f"{SHARED}/set", "--out", f"{SHARED}/shards", "--films", "20")
    on_a(sys.executable, "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='bkt')")
    for n in range(COPIES):
        kaggle_utils("s3", "upload", f"{SHARED}/films", f"s3://bkt/films/{n}")
    kaggle_utils("s3", "upload", f"{SHARED}/shards", "s3://bkt/shards")


def start_ray(host: str, *options: str, hide: str = "") -> subprocess.Popen:
    """A node of the cluster, with one core."""
    ray = str(Path(sys.executable).with_name("ray"))
    shared = ["--node-ip-address", HOSTS[host], "--num-cpus", "1", "--block"]
    log = SHARED / f"ray_{host}.log"
    process = start(host, ray, "start", *options, *shared, log=log.name, hide=hide)
    wait(lambda: "runtime started" in log.read_text(), 60, f"Ray on host {host}")
    return process


def cluster() -> dict[str, object]:
    """``predict --ray`` over both hosts; b is lost when three shards are written."""
    head = start_ray("a", "--head", "--port", "6379", "--include-dashboard=false")
    node = start_ray("b", "--address", RAY, hide=f"{ROOT}/kaggle_utils")
    # In the mounts of host a, where Ray's sockets are.
    driver = subprocess.Popen(
        ["nsenter", "-t", str(head.pid), "-m", "-n", f"--wd={ROOT}", sys.executable, "-c", CLUSTER],
        env=os.environ | ENVIRONMENT,
        stderr=(SHARED / "driver.log").open("w"),
    )
    begun = time.monotonic()
    wait(lambda: len(objects("lungs/films")) >= 3, 300, "three shards", [driver, head, node])
    cut, there = round(time.monotonic() - begun, 1), len(objects("lungs/films"))
    cable("down")
    assert driver.wait(timeout=600) == 0, (SHARED / "driver.log").read_text()
    whole = round(time.monotonic() - begun, 1)
    for process in (head, node):
        process.kill()
    cable("up")
    on_a(sys.executable, "-m", "kaggle_utils", "s3", "download", "s3://bkt/lungs", f"{SHARED}/lungs")
    rows = pd.read_parquet(SHARED / "lungs")
    return {
        "films": COPIES * FILMS,
        "shards_when_cut": there,
        "seconds_when_cut": cut,
        "seconds": whole,
        "rows": len(rows),
        "different_films": int(rows["path"].nunique()),
        "masks": int((rows["error"] == "").sum()),
    }


def training() -> dict[str, object]:
    """torchrun on both hosts, from shards in S3; b is lost in the third epoch; the same commands resume later."""
    out = SHARED / "run"
    torchrun = f"-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {MEETING}"
    train = f"-m kaggle_utils train --data s3://bkt/shards --out {out} --size 128 --base-channels 8"
    train += f" --epochs {EPOCHS} --device cpu --resume"

    def launch(host: str, attempt: int) -> subprocess.Popen:
        meeting = ["--rdzv-conf", f"is_host={host == 'a'}", "--local-addr", HOSTS[host]]
        words = [*torchrun.split(), *meeting, *train.split()]
        return start(host, sys.executable, *words, log=f"train_{host}{attempt}.log")

    def epochs() -> int:
        return len(pd.read_csv(out / "history.csv")) if (out / "history.csv").exists() else 0

    def messages() -> list[str]:
        """What the processes said in the end: that the other one doesn't answer, or that S3 doesn't."""
        logs = [(SHARED / f"train_{host}1.log").read_text() for host in HOSTS]
        found = [re.search(r"kaggle_utils train: (.*?the same command[^.\[]*)", log) for log in logs]
        return [re.sub(r" \(.*\)", "", message[1]).strip() for message in found if message]

    launched = [launch(host, 1) for host in HOSTS]
    wait(lambda: epochs() >= 3, 300, "three epochs", launched)
    cable("down")
    seconds, before = wait(lambda: len(messages()) == 2, 600, "a message from both"), epochs()
    for each in launched:  # host b's torchrun itself would wait for host a until TCP gives up
        each.kill()
    cable("up")
    again = [launch(host, 2) for host in HOSTS]
    codes = [each.wait(timeout=900) for each in again]
    assert codes == [0, 0] and epochs() == EPOCHS, f"see {SHARED}/train_*2.log"
    return {
        "epochs": EPOCHS,
        "epochs_before": before,
        "seconds_until_both_gave_up": seconds,
        "messages": messages(),
        "exit_codes_of_the_same_commands": codes,
        "epochs_in_the_end": epochs(),
        "val_dice": round(float(pd.read_csv(out / "history.csv")["val_dice"].max()), 4),
    }


def main() -> None:
    make_parser(__doc__).parse_args()
    need("moto", "ray", "webdataset")
    if os.geteuid() or not shutil.which("ip"):
        raise SystemExit("needs root and ip (apt-get install iproute2), to make network namespaces")
    shutil.rmtree(SHARED, ignore_errors=True)
    SHARED.mkdir(parents=True)
    with two_hosts():
        start("a", str(Path(sys.executable).with_name("moto_server")), "-H", HOSTS["a"], "-p", "5000", log="moto.log")
        wait(lambda: "Running on" in (SHARED / "moto.log").read_text(), 60, "the S3 server")
        prepare()
        result = {"machine": machine("ray", "torch")}
        for step in (cluster, training):
            result[step.__name__] = step()
            print(step.__name__, result[step.__name__], flush=True)
    write_json(RESULTS / "two_hosts.json", result)


if __name__ == "__main__":
    main()
