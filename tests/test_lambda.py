"""deploy/lambda/handler.py, in front of a server on loopback that speaks S3's protocol: the masks of predict, without
PyTorch."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("onnxruntime")

from dicoms import dicom  # noqa: E402
from s3_server import Fault

from kaggle_utils.export import export_onnx  # noqa: E402
from kaggle_utils.image import encode_image  # noqa: E402
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter  # noqa: E402
from kaggle_utils.pictures import header  # noqa: E402
from kaggle_utils.predictions import predict  # noqa: E402
from kaggle_utils.quality.measurements import MEASUREMENTS  # noqa: E402
from kaggle_utils.synthetic.model import AppearanceModel  # noqa: E402

CLONE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "lungs.onnx"
    export_onnx(DEFAULT_WEIGHTS, path)
    return path


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    return [film.image for film in AppearanceModel.load().sample(4, 3, size=320, acquire=False)]


@pytest.fixture
def load(proxy, onnx_file, monkeypatch):
    """The handler as Lambda would import it, in an environment."""

    def load(**environment):
        monkeypatch.setattr(header, "MAX_PIXELS", header.MAX_PIXELS)  # which it changes: undone after the test
        for name, value in {"MODEL": str(onnx_file), **environment}.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("handler", CLONE / "deploy/lambda/handler.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def event(*keys: str) -> dict:
    """As S3 sends it: keys quoted, spaces as plus."""
    from urllib.parse import quote_plus

    return {
        "Records": [
            {
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": "bkt"}, "object": {"key": quote_plus(key, safe="/")}},
            }
            for key in keys
        ]
    }


def put(client, key: str, film) -> str:
    client.put_object(Bucket="bkt", Key=key, Body=film if isinstance(film, bytes) else encode_image(film, ".png"))
    return key


def written(client) -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket="bkt", Prefix="lungs/").get("Contents", ())
    return {
        each["Key"].removeprefix("lungs/"): client.get_object(Bucket="bkt", Key=each["Key"])["Body"].read()
        for each in listed
    }


def picture(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


# --- results ---------------------------------------------------------------------------------------------------------


def test_masks_and_measurements_are_those_of_predict(load, client, films, tmp_path):
    films = [
        films[0],
        films[1],
        np.ascontiguousarray(np.rot90(films[2])),
        255 - films[3],
    ]  # one on its side, and a negative
    for n, film in enumerate(films):
        put(client, f"films/{n}.png", film)
        (tmp_path / f"{n}.png").write_bytes(encode_image(film, ".png"))
    assert [d["outcome"] for d in load().handler(event(*(f"films/{n}.png" for n in range(4))))] == ["segmented"] * 4
    predict([tmp_path / f"{n}.png" for n in range(4)], tmp_path / "out", LungSegmenter(device="cpu"))
    table = pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False)
    measurements = pd.read_csv(tmp_path / "out/measurements.csv")
    found = written(client)
    assert sorted(found) == sorted(
        f"{kind}/{n}.png.{end}"
        for n in range(4)
        for kind, end in (("masks", "png"), ("overlays", "png"), ("measurements", "json"))
    )
    for n in range(4):
        mask, expected = (
            picture(found[f"masks/{n}.png.png"]),
            cv2.imread(str(tmp_path / f"out/masks/{n}.png"), cv2.IMREAD_UNCHANGED),
        )
        assert set(np.unique(mask)) == {0, 255} and mask.shape == films[n].shape
        assert 2 * (mask & expected > 0).sum() / ((mask > 0).sum() + (expected > 0).sum()) > 0.999
        report = json.loads(found[f"measurements/{n}.png.json"])
        assert report["notes"] == table["notes"][n] and report["flag"] == table["flag"][n] and report["error"] == ""
        assert report["quality"] == pytest.approx(table["quality"][n], abs=0.005)
        assert list(report["measurements"]) == list(MEASUREMENTS)
        assert report["measurements"]["lung_share"] == pytest.approx(measurements["lung_share"][n], rel=0.002)
        assert picture(found[f"overlays/{n}.png.png"]).shape == (*films[n].shape, 3)


def test_dicom_is_read_and_measured_in_mm(load, client, films):
    pytest.importorskip("pydicom")
    put(client, "films/ward/IM1", dicom(films[0], PixelSpacing=[0.5, 0.5]))
    assert load().handler(event("films/ward/IM1"))[0]["outcome"] == "segmented"
    report = json.loads(written(client)["measurements/ward/IM1.json"])
    measured = report["measurements"]
    assert (
        measured["right_height_mm"] == pytest.approx(measured["right_height_px"] / 2)
        and "is the spacing wrong" in report["notes"]
    )


def test_an_event_that_comes_twice_writes_the_same_again(load, client, films):
    handler = load()
    put(client, "films/ward 1/ä+b.png", films[0])
    handler.handler(event("films/ward 1/ä+b.png"))
    first = written(client)
    handler.handler(event("films/ward 1/ä+b.png", "films/ward 1/ä+b.png"))
    assert written(client) == first and "masks/ward 1/ä+b.png.png" in first


# --- what can't be segmented -----------------------------------------------------------------------------------------

BAD = {
    "truncated": lambda film: encode_image(film, ".png")[:5000],
    "no picture": lambda film: b"hello",
    "empty": lambda film: b"",
    "blank": lambda film: np.full((300, 300), 9, np.uint8),
    "noise": lambda film: np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8),
    "bomb": lambda film: dicom(film, Rows=65535, Columns=65535),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_film_becomes_an_error_in_s3_and_is_not_raised(case, load, client, films):
    put(client, "films/x.png", BAD[case](films[0]))
    outcome = load().handler(event("films/x.png"))[0]["outcome"]
    assert list(written(client)) == ["errors/x.png.json"]
    report = json.loads(written(client)["errors/x.png.json"])
    assert (
        report["error"].startswith("s3://bkt/films/x.png: ")
        and outcome == f"refused: {report['error']}"
        and "/tmp" not in report["error"]
    )


@pytest.mark.parametrize(
    "limit, said",
    [({"MAX_BYTES": "1000"}, "bytes, more than 1,000: too large"), ({"MAX_PIXELS": "1000"}, "too large for a film")],
)
def test_what_is_too_large_is_refused_before_it_is_decoded(limit, said, load, client, films, proxy):
    put(client, "films/x.png", films[0])
    proxy.log.clear()
    assert said in load(**limit).handler(event("films/x.png"))[0]["outcome"]
    assert "MAX_PIXELS" in limit or not proxy.asked("GET", "films/x.png")


def test_a_film_put_in_the_place_of_a_bad_one_clears_its_error_and_the_other_way_round(load, client, films):
    handler = load()
    for film, kinds in ((b"bad", {"errors"}), (films[0], {"masks", "overlays", "measurements"}), (b"bad", {"errors"})):
        put(client, "films/x.png", film)
        handler.handler(event("films/x.png"))
        assert {key.split("/")[0] for key in written(client)} == kinds


# --- events ----------------------------------------------------------------------------------------------------------


def test_its_own_results_folders_and_other_prefixes_are_ignored(load, client, films):
    keys = [put(client, key, films[0]) for key in ("lungs/masks/a.png.png", "other/a.png", "films/", "films2/a.png")]
    assert [d["outcome"] for d in load().handler(event(*keys))] == ["ignored"] * 4
    assert list(written(client)) == ["masks/a.png.png"]


@pytest.mark.parametrize(
    "prefixes",
    [("", "lungs/"), ("films/", "films/lungs/"), ("lungs/", "lungs/"), ("lungs/masks/x/", "lungs/"), ("films/", "")],
)
def test_results_that_would_be_films_again_are_refused(prefixes, load, client, films):
    handler = load(IN_PREFIX=prefixes[0], OUT_PREFIX=prefixes[1])
    key = put(client, f"{prefixes[0]}x.png", films[0])
    if prefixes[1]:
        with pytest.raises(ValueError, match="segmented for ever"):
            handler.handler(event(key))
        assert len(client.list_objects_v2(Bucket="bkt")["Contents"]) == 1
    else:
        assert handler.handler(event(key))[0]["outcome"] == "segmented"


def test_another_bucket_for_results_may_have_any_prefix(load, client, films):
    client.create_bucket(Bucket="results")
    put(client, "x.png", films[0])
    assert load(IN_PREFIX="", OUT_PREFIX="", OUT_BUCKET="results").handler(event("x.png"))[0]["outcome"] == "segmented"
    assert len(client.list_objects_v2(Bucket="results")["Contents"]) == 3 and not written(client)


def test_a_film_that_is_gone_is_no_error_and_a_test_event_neither(load, client):
    assert load().handler(event("films/gone.png"))[0]["outcome"] == "gone"
    assert load().handler({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "bkt"}) == []


@pytest.mark.parametrize(
    "request_", [("HEAD", "films/x"), ("GET", "films/x"), ("PUT", "masks")], ids=["head", "get", "put"]
)
def test_s3_that_fails_is_raised_so_that_lambda_tries_again_and_the_second_try_is_whole(
    request_, load, client, films, proxy, monkeypatch
):
    from botocore.exceptions import ClientError

    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    handler = load()
    put(client, "films/x.png", films[0])
    proxy.faults.append(Fault("status", *request_, times=100, status=503, code="SlowDown"))
    with pytest.raises(ClientError):
        handler.handler(event("films/x.png"))
    assert not written(client)
    proxy.faults.clear()
    assert handler.handler(event("films/x.png"))[0]["outcome"] == "segmented" and len(written(client)) == 3


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_runs_without_pytorch_pandas_and_albumentations_within_its_memory(client, films, onnx_file):
    put(client, "films/x.png", films[0])
    code = (
        "import re, sys\nfor name in ('torch', 'pandas', 'albumentations', 'safetensors', 'onnx'): sys.modules[name] "
        "= None\n"
        f"import handler\nprint(handler.handler({event('films/x.png')!r})[0]['outcome'])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{CLONE}:{CLONE / 'deploy/lambda'}",
        "MODEL": str(onnx_file),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *_, outcome, peak = done.stdout.split()
    assert outcome == "segmented" and int(peak) / 1024 < 350


class Runtime(ThreadingHTTPServer):
    """Lambda's side of its runtime's protocol: hands out events one after the other, and keeps what comes back for
    each."""

    def __init__(self, events: list[dict]):
        super().__init__(("127.0.0.1", 0), _RuntimeHandler)
        self.left, self.answers, self.over = list(enumerate(events)), {}, threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _RuntimeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if not self.server.left:
            self.close_connection = True
            self.server.over.set()  # there is nothing more to do
            return
        number, event = self.server.left.pop(0)
        self._answer(
            200,
            json.dumps(event).encode(),
            {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": str(number),
                "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 60_000),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:1:function:unet-lung",
                "Lambda-Runtime-Trace-Id": "Root=1",
            },
        )

    def do_POST(self):
        self.server.answers[self.path.removeprefix("/2018-06-01/runtime/")] = json.loads(
            self.rfile.read(int(self.headers["Content-Length"]))
        )
        self._answer(202, b"{}", {})

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_aws_s_own_runtime_client_starts_it_and_takes_its_answers(client, films, onnx_file, proxy):
    """The process that the image's base starts, in front of a stand-in for Lambda."""
    pytest.importorskip("awslambdaric")
    put(client, "films/x y.png", films[0])
    proxy.faults.append(Fault("status", "HEAD", "films/denied", status=403))
    docker = (CLONE / "deploy/lambda/Dockerfile").read_text()
    runtime = Runtime([event("films/x y.png", "films/none.png"), event("films/denied.png"), {"Event": "s3:TestEvent"}])
    environment = {
        **os.environ,
        "PYTHONPATH": f"{CLONE}:{CLONE / 'deploy/lambda'}",
        "MODEL": str(onnx_file),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "OPENBLAS_NUM_THREADS": "1",
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{runtime.server_port}",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "awslambdaric", *re.search(r'CMD \["(.+)"\]', docker).groups()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert runtime.over.wait(600), process.communicate(timeout=1)
    finally:
        process.kill()
        process.communicate()
        runtime.shutdown()
    first = [
        {"bucket": "bkt", "key": "films/x y.png", "outcome": "segmented"},
        {"bucket": "bkt", "key": "films/none.png", "outcome": "gone"},
    ]
    assert runtime.answers.pop("invocation/0/response") == first and len(written(client)) == 3
    assert runtime.answers.pop("invocation/1/error")["errorType"] == "ClientError"  # so that Lambda tries again
    assert runtime.answers == {"invocation/2/response": []}


@pytest.mark.slow
def test_a_film_too_large_for_the_memory_is_an_error_in_s3_and_not_a_dead_process(client, films, onnx_file):
    put(client, "films/x.png", cv2.resize(films[0], (6000, 6000)).astype(np.uint16) * 257)
    code = f"import handler\nprint(handler.handler({event('films/x.png')!r})[0]['outcome'])"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{CLONE}:{CLONE / 'deploy/lambda'}",
        "MODEL": str(onnx_file),
        "MAX_PIXELS": "100000000",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "220",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search("memory is too small|Failed to allocate", done.stdout) and list(written(client)) == [
        "errors/x.png.json"
    ]


def test_the_image_has_all_that_the_handler_imports_and_nothing_that_it_does_not():
    docker = (CLONE / "deploy/lambda/Dockerfile").read_text()
    installed = set(re.findall(r"^([\w-]+)", (CLONE / "deploy/lambda/requirements.txt").read_text(), re.M))
    assert installed == {
        "numpy",
        "scipy",
        "opencv-python-headless",
        "pillow",
        "onnxruntime",
        "boto3",
        "tqdm",
        "pydicom",
        "python-gdcm",
    }
    for name in re.findall(r"COPY (.*) \S+\n", docker):
        for path in name.split():
            assert (CLONE / path).exists() or path.endswith("lungs.onnx")
