"""AWS Lambda: a radiograph that arrives in S3 gets its mask, its overlay and its measurements there. ONNX Runtime
computes, PyTorch isn't there.

Each object below ``IN_PREFIX`` becomes, below ``OUT_PREFIX``, ``masks/KEY.png``, ``overlays/KEY.png`` and
``measurements/KEY.json``, where KEY is what follows the prefix, suffix included; or ``errors/KEY.json`` where it can't
be read, or is no frontal chest film. What is written depends on the object alone, so an event that comes twice does no
harm; what is wrong with a film is never raised, as Lambda would only try it again; what is wrong with S3 is, so that
it does.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import cv2
import numpy as np
import onnxruntime
from botocore.exceptions import ClientError

from kaggle_utils.config import CONVENTIONS, FORMAT, THRESHOLD, parse_header
from kaggle_utils.image import encode_image, resize_image
from kaggle_utils.infer import Unsegmented, finish_mask, segment_films
from kaggle_utils.pictures import header
from kaggle_utils.pictures.overlay import draw_overlay
from kaggle_utils.quality import choose_fit, measure
from kaggle_utils.scale.s3_client import connect

MODEL = os.environ.get("MODEL", str(Path(__file__).with_name("lungs.onnx")))  # of `python -m kaggle_utils export`
IN_PREFIX, OUT_PREFIX = os.environ.get("IN_PREFIX", "films/"), os.environ.get("OUT_PREFIX", "lungs/")
OUT_BUCKET = os.environ.get("OUT_BUCKET")  # the film's own if not given
MAX_BYTES = int(os.environ.get("MAX_BYTES", 64_000_000))  # of an object; /tmp and memory are small
# What 512 MB hold, see results/lambda.json. Files that declare more pixels are refused before they are decoded.
header.MAX_PIXELS = int(os.environ.get("MAX_PIXELS", 20_000_000))
# The measurements come after the pictures: where they are, the mask is.
KINDS = {
    "masks": "image/png",
    "overlays": "image/png",
    "measurements": "application/json",
    "errors": "application/json",
}
MEMORY_MB = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")


class Segmenter:
    """The exported network: what ``kaggle_utils.infer.LungSegmenter`` is to PyTorch, for one film at a time."""

    threshold = THRESHOLD

    def __init__(self, path: str):
        graph = Path(path).read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.enable_cpu_mem_arena = False  # it would keep the largest film's memory
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        header = parse_header(self.session.get_modelmeta().custom_metadata_map[FORMAT], path, data=graph)
        self.size = header["size"]
        self.quality = choose_fit(header.get("quality", {}), CONVENTIONS.get(header["sources"][0]))
        self.version = hashlib.sha256(graph).hexdigest()[:16]

    def probabilities(self, films: list[np.ndarray]) -> np.ndarray:
        """``uint8 (H, W)`` each → ``float32 (B, size, size)``, by the rules of the network's first head."""
        images = np.stack([resize_image(film, self.size) for film in films])[:, None].astype(np.float32)
        mean, deviation = images.mean((-2, -1), keepdims=True), images.std((-2, -1), keepdims=True)
        images = (images - mean) / np.maximum(deviation, 1e-3)  # as data.normalise
        logits = self.session.run(None, {"films": images})[0][:, 0]
        return 1 / (1 + np.exp(-logits))

    def finish(self, prob: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        return finish_mask(prob, shape, threshold=self.threshold)


if MEMORY_MB:  # a film too large becomes an error to tell of, instead of a killed process to try again
    resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY_MB) << 20, int(MEMORY_MB) << 20))
SEGMENTER, S3 = Segmenter(MODEL), connect()  # while Lambda starts, when it lends more of the CPU


def handler(event: dict, context: object = None) -> list[dict[str, str]]:
    """Segments the films that an event of S3 names.

    Returns:
        Bucket, key and outcome of each: ``segmented``, ``refused: …``, ``ignored`` or ``gone``.

    Raises:
        ClientError, BotoCoreError: S3 failed; Lambda tries again.
        ValueError: results would be films to segment again.
    """
    done = []
    for record in event.get("Records", ()):  # S3's test event has none
        bucket, key = record["s3"]["bucket"]["name"], unquote_plus(record["s3"]["object"]["key"])
        done.append({"bucket": bucket, "key": key, "outcome": process(bucket, key)})
        print(json.dumps(done[-1]))
    return done


def process(bucket: str, key: str) -> str:
    """Segments one object; the outcome in words."""
    target = OUT_BUCKET or bucket
    folders = [f"{OUT_PREFIX}{kind}/" for kind in KINDS]
    if target == bucket and any(folder.startswith(IN_PREFIX) or IN_PREFIX.startswith(folder) for folder in folders):
        raise ValueError(
            f"results below {OUT_PREFIX!r} would be films below {IN_PREFIX!r}, and segmented for ever: choose another "
            "OUT_PREFIX"
        )
    if not key.startswith(IN_PREFIX) or key.endswith("/"):
        return "ignored"
    try:
        with tempfile.TemporaryDirectory() as folder:
            report, made = _segment(bucket, key, Path(folder) / f"film{Path(key).suffix}")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):  # deleted since; its event came late
            return "gone"
        raise
    error = report["error"]
    made["errors" if error else "measurements"] = json.dumps(report, indent=1).encode()
    for kind, content in KINDS.items():
        suffix = content.rpartition("/")[2]
        place = {"Bucket": target, "Key": f"{OUT_PREFIX}{kind}/{key.removeprefix(IN_PREFIX)}.{suffix}"}
        if kind in made:
            S3.put_object(**place, Body=made[kind], ContentType=content)
        else:  # of another film of that name
            S3.delete_object(**place)
    return f"refused: {error}" if error else "segmented"


def _segment(bucket: str, key: str, path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The report on a film, whose ``error`` is empty or says why there is no mask; mask and overlay, if any, as PNG."""
    head, address = S3.head_object(Bucket=bucket, Key=key), f"s3://{bucket}/{key}"
    report = {"film": address, "etag": head["ETag"].strip('"'), "model": SEGMENTER.version}
    if head["ContentLength"] > MAX_BYTES:
        too_large = f"{address}: {head['ContentLength']:,} bytes, more than {MAX_BYTES:,}: too large"
        return report | {"error": too_large}, {}
    S3.download_file(bucket, key, str(path))
    try:
        found = next(segment_films([path], SEGMENTER, names=[key.removeprefix(IN_PREFIX)]))
    except (MemoryError, cv2.error):  # which OpenCV raises for the same reason
        return report | {"error": f"{address}: this function's memory is too small for it"}, {}
    report |= found.row
    report.pop("path")
    if isinstance(found, Unsegmented):
        return report | {"error": found.error.replace(str(path), address)}, {}
    measured = measure(found.upright, found.film.spacing_mm)
    report["measurements"] = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    return report, {  # they lie as the film does
        "masks": encode_image(found.mask * np.uint8(255), ".png"),
        "overlays": encode_image(draw_overlay(found.film.image, found.mask), ".png"),
    }
