"""Builds the page that segments lungs in the browser: a folder that any web server can hand out.

    python -m web.make [--weights lungs] [--out runs/web]

The page's own code lies in ``web/src``; all that it knows of the network, the checks, the estimate of quality and the
shapes of lungs, and the words that it shares with ``python -m kaggle_utils app``, come from the package when it is
built: new weights change no code. The networks become ONNX graphs, which ONNX Runtime computes in WebAssembly, and that
of lungs on a graphics card where there is one. npm fetches the libraries that ``package-lock.json`` names, into
``web/node_modules``.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.fit_checks import make_network
from kaggle_utils.config import CONVENTIONS, THRESHOLD
from kaggle_utils.dicom.read import NOT_FILMS
from kaggle_utils.export import export_onnx, to_onnx
from kaggle_utils.files import find_weights, write_bytes
from kaggle_utils.model import read_header
from kaggle_utils.page.app import CAUTION
from kaggle_utils.page.examples import SOURCE, make_examples
from kaggle_utils.page.report import BOTH, CHOICES, IN_MM, IN_PX, OUTLINED, POINTS
from kaggle_utils.page.words import FLAGS, PLAIN
from kaggle_utils.pictures.header import MAX_BYTES, MAX_PIXELS
from kaggle_utils.pictures.overlay import LEFT, RIGHT
from kaggle_utils.quality import checks, choose_fit, flags, measurements, outline, why_no_estimate

HERE = Path(__file__).resolve().parent
MODULES = HERE / "node_modules"
PACKED = {  # by the name beside the page: what npm has fetched
    "runtime.bin": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "gpu.bin": "onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.wasm",
    "charls.bin": "@cornerstonejs/codec-charls/dist/charlswasm_decode.wasm",
    "openjpeg.bin": "@cornerstonejs/codec-openjpeg/dist/openjpegwasm_decode.wasm",
}
THREADS = "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs"  # what each thread of the runtime starts from
LATER = ("gpu.bin", "gpu.js")  # what only a page with a graphics card asks for
PAGE = ("index.html", "style.css", "src/local.js")


def make_page(out: str | Path, weights: str | Path | None = None) -> None:
    """Builds the page.

    Args:
        out: the folder; what an earlier build left in it goes.
        weights: as :class:`infer.LungSegmenter` takes them.

    Raises:
        FileNotFoundError: no such weights, or no npm.
        OSError: npm fetches nothing, or a library can't be built.
        ValueError: damaged weights, or ``out`` holds what is no earlier build.
    """
    out = Path(out)
    fetch_libraries()
    if out.exists() and any(out.iterdir()):
        if not (out / "model.json").exists():
            raise ValueError(f"{out}: it holds other files than a page that was built: choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    path = find_weights(weights)
    for name, source in PACKED.items():
        pack(out / name, (MODULES / source).read_bytes())
    with TemporaryDirectory() as folder:
        export_onnx(path, Path(folder) / "lungs.onnx")
        pack(out / "lungs.bin", (Path(folder) / "lungs.onnx").read_bytes())
    pack(out / "views.bin", views_graph())
    write_json(out / "model.json", constants(read_header(path)))
    write_examples(out)
    bundle(out)
    shutil.copy(MODULES / THREADS, out / "threads.js")
    for name in PAGE:
        shutil.copy(HERE / name, out)
    with (out / "style.css").open("a", encoding="utf-8") as style:
        style.write(f":root {{ --right: {RIGHT}; --left: {LEFT}; }}\n")
    write_worker(out)


def fetch_libraries() -> None:
    """Has npm fetch what ``package-lock.json`` names, unless it is there.

    Raises:
        FileNotFoundError: no npm.
        OSError: npm fetches nothing.
    """
    lock, done = HERE / "package-lock.json", MODULES / ".lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    if done.exists() and done.read_text() == wanted:
        return
    run("npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts")
    done.write_text(wanted)


def run(*command: str) -> None:
    what = " ".join(command[:2])
    try:
        subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=600, check=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{command[0]} is missing: install Node.js (apt-get install npm)") from None
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{what} took more than {error.timeout:.0f} s: is there a network?") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip() or "is there a network?"
        raise OSError(f"{what} failed: {said.splitlines()[-1]}") from None


def bundle(out: Path) -> None:
    """The page's and the worker's modules with the libraries they import; what only some films need stays apart."""
    run(
        "node",
        str(MODULES / "esbuild/bin/esbuild"),
        "src/page.js",
        "src/worker.js",
        "src/gpu.js",
        "--bundle",
        "--minify",
        "--splitting",
        "--format=esm",
        "--target=es2022",
        "--legal-comments=eof",
        *(f"--external:{name}" for name in ("fs", "path", "crypto", "module", "worker_threads", "url")),
        f"--outdir={out.resolve()}",
    )


def pack(path: Path, data: bytes) -> None:
    """Writes bytes as gzip, the same in each build."""
    write_bytes(path, gzip.compress(data, 9, mtime=0))


def write_json(path: Path, found: Any) -> None:
    write_bytes(path, json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())


def views_graph() -> bytes:
    """The network of ``quality.checks.view_odds`` as an ONNX graph, of ``films`` ``(B, 1, THUMB, THUMB)``."""
    network = make_network().eval()
    with np.load(checks.ASSET) as file:
        network.load_state_dict(
            {name: torch.from_numpy(file[name].astype(np.float32)) for name in network.state_dict()}
        )
    return to_onnx(network, (16, 1, checks.THUMB, checks.THUMB))


def constants(header: dict[str, Any]) -> dict[str, Any]:
    """All that the page knows of the weights and the package."""
    conventions = find_conventions(header)
    with np.load(checks.ASSET) as file:
        lung_shape = {name: rounded(file[name]) for name in ("mean", "modes", "sd", "rest")}
    with np.load(flags.SHAPE) as file:
        shape = {name: rounded(file[name]) for name in file.files}
    shape["mean"] = np.ravel(shape["mean"]).tolist()
    first = next(iter(conventions.values()))
    return {
        "size": header["size"],
        "threshold": THRESHOLD,
        "mostPixels": MAX_PIXELS,
        "mostBytes": MAX_BYTES,
        "notFilms": list(NOT_FILMS),
        "conventions": conventions,
        "whyNoEstimate": why_no_estimate(first["fit"]),
        "checks": check_limits(),
        "lungShape": {**lung_shape, "parts": outline.PARTS},
        "shape": {**shape, "parts": outline.PARTS},
        "estimate": {
            "side": flags.SIDE,
            "ok": flags.OK,
            "reject": flags.REJECT,
            "least": flags.LEAST,
            "reasons": flags.REASONS,
            "noLung": "no lung found",
        },
        "height": {
            "leastHeight": measurements.LEAST_HEIGHT,
            "mostHeight": measurements.MOST_HEIGHT,
            "grown": measurements.GROWN,
        },
        "measurements": list(measurements.MEASUREMENTS),
        "words": {
            "caution": CAUTION,
            "source": SOURCE,
            "choices": CHOICES,
            "outlined": OUTLINED,
            "inMm": IN_MM,
            "inPx": IN_PX,
            "points": POINTS,
            "both": BOTH,
            "flags": FLAGS,
            "plain": list(PLAIN.items()),
            "colours": {"right": RIGHT, "left": LEFT},
        },
    }


def find_conventions(header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By convention the network's output and its estimate of quality, as ``LungSegmenter.conventions`` finds them."""
    heads, found = header.get("heads") or [""], {}
    for channel, head in enumerate(heads):
        convention, *others = {CONVENTIONS.get(source) for source in ([head] if head else header["sources"])}
        if convention and not others:
            found.setdefault(convention, {"channel": channel, "fit": choose_fit(header.get("quality", {}), convention)})
    return found or {"": {"channel": 0, "fit": choose_fit(header.get("quality", {}), None)}}


def check_limits() -> dict[str, Any]:
    return {
        "thumb": checks.THUMB,
        "outline": checks.OUTLINE,
        "leastSide": checks.LEAST_SIDE,
        "leastContrast": checks.LEAST_CONTRAST,
        "near": checks.NEAR,
        "twoLevels": checks.TWO_LEVELS,
        "coloured": checks.COLOURED,
        "chest": checks.CHEST,
        "doubtful": checks.DOUBTFUL,
        "sure": checks.SURE,
        "mirrored": checks.MIRRORED,
        "cut": checks.CUT,
        "unusual": checks.UNUSUAL,
        "words": {
            "noChest": checks.NO_CHEST,
            "mask": checks.MASK,
            "noPhoto": checks.NO_PHOTO,
            "obeyed": checks.OBEYED,
            "turned": checks.TURNED,
            "noLung": "no lung found",
        },
    }


def rounded(array: np.ndarray) -> Any:
    """Numbers as they are in float32, in as few digits as tell them apart."""
    return np.vectorize(lambda value: float(np.format_float_positional(np.float32(value), unique=True)))(array).tolist()


def write_examples(out: Path) -> None:
    """The films to try, their thumbnails, and a list of them."""
    (out / "examples").mkdir()
    listed = []
    for example in make_examples():
        thumbnail = f"{Path(example.name).stem}_small.jpg"
        write_bytes(out / "examples" / example.name, example.data)
        write_bytes(out / "examples" / thumbnail, example.thumbnail)
        listed.append({"name": example.name, "caption": example.caption, "thumbnail": thumbnail, "age": example.age})
    write_json(out / "examples/list.json", listed)


def write_worker(out: Path) -> None:
    """The service worker, with the names of all files and a version that any change of theirs changes."""
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    version = hashlib.sha256(b"".join((out / name).read_bytes() for name in names)).hexdigest()[:16]
    source = (HERE / "src/offline.js").read_text(encoding="utf-8")
    files = ["./", *(name for name in names if name not in LATER)]
    listed = json.dumps({"version": version, "files": files, "later": LATER})
    write_bytes(out / "offline.js", source.replace("BUILD", listed, 1).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the page; what a user can mend is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m web.make", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a file, or the name of weights that ship (default: lungs)")
    parser.add_argument("--out", default="runs/web", help="the folder (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        make_page(args.out, args.weights)
    except (ValueError, OSError, ImportError) as error:
        print(f"web: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in Path(args.out).rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB; look at it: python -m http.server --bind 127.0.0.1 --directory {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
