"""The network as an ONNX graph, and the runtimes that compute it instead of PyTorch.

Axes: B films, 1 channel, H rows, W columns, C classes. A graph takes ``films`` float32 ``(B, 1, H, W)``, normalised as
``data.normalise`` does, and gives ``logits`` float32 ``(B, C, H, W)``; B, H and W are any.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .files import write_bytes
from .model import FORMAT, UNSEALED, check_finite, load_weights, parse_header, read_header, seal

TOLERANCE = 1e-4  # of a logit, between PyTorch and the exported graph
# Odd and unlike each other: at these, the padding to whole patches becomes part of the traced graph.
TRACED_SHAPE = (1, 1, 201, 265)


def export_onnx(weights: str | Path, out: str | Path) -> None:
    """Writes a weights file as ONNX, once ONNX Runtime has computed from it what PyTorch does.

    Args:
        weights: a file of ``model.save_weights``, for films.
        out: the file; written whole or not at all. The weights' header is JSON in its ``metadata_props``, under
            ``FORMAT``.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: a damaged weights file or another program's, logits that differ by more than ``TOLERANCE``, or
            ``out`` is there and no earlier export.
        ImportError: onnx or onnxruntime is not installed.
    """
    _check_out(Path(out), Path(weights))
    header, model = read_header(weights), load_weights(weights)
    graph = to_onnx(model)
    difference = _difference(model, graph)
    if not difference <= TOLERANCE:  # nor is NaN
        raise ValueError(
            f"{weights}: the ONNX graph's logits are up to {difference:.1e} away from PyTorch's, more than "
            f"{TOLERANCE:.0e}; {out} was not written"
        )
    onnx = _extra("onnx")
    proto = onnx.load_model_from_string(graph)
    onnx.helper.set_model_props(proto, {FORMAT: json.dumps({**header, "checksum": UNSEALED})})
    write_bytes(out, seal(proto.SerializeToString()))


def _check_out(out: Path, weights: Path) -> None:
    if not out.exists():
        return
    try:
        read_onnx_header(out)
    except ValueError:
        what = "the weights themselves" if weights.exists() and out.samefile(weights) else "no earlier export"
        raise ValueError(f"{out}: it is there, and {what}: choose another file to write") from None


def to_onnx(model: nn.Module, shape: tuple[int, ...] = TRACED_SHAPE) -> bytes:
    """Traces a network in evaluation mode, on the CPU, to an ONNX graph.

    Args:
        model: ``(B, 1, H, W)`` → ``(B, C, H, W)``.
        shape: of the film it is traced with; a network that only takes multiples of something needs another one.

    Raises:
        ImportError: onnx is not installed.
    """
    _extra("onnx")
    graph, dynamic = io.BytesIO(), {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        # That Python's branches are traced as constants is what export_onnx checks. The exporter that replaces this one
        # takes seconds instead of tenths of a second, and fails on batch normalisation in PyTorch 2.6.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(shape),),
            graph,  # type: ignore[arg-type]  # a file works too
            dynamo=False,
            input_names=["films"],
            output_names=["logits"],
            dynamic_axes={"films": dynamic, "logits": dynamic},
        )
    return graph.getvalue()


def read_onnx_header(path: str | Path) -> dict[str, Any]:
    """The header of a file of :func:`export_onnx`, as ``model.read_header`` gives that of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not ONNX, or not of this project, or see :func:`config.check_header`.
        ImportError: onnx is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    onnx = _extra("onnx")
    from google.protobuf.message import DecodeError  # comes with onnx

    try:
        proto = onnx.load(path)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        if FORMAT in metadata:
            onnx.checker.check_model(proto)
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{path}: not a whole ONNX file ({str(error).splitlines()[0]})") from None
    if FORMAT not in metadata:
        raise ValueError(f"{path}: ONNX, but not written by this project (no {FORMAT!r} in its metadata)")
    for name, array in arrays.items():
        check_finite(path, name, bool(np.isfinite(array).all()))
    return parse_header(metadata[FORMAT], path, data=Path(path).read_bytes())


def open_graph(graph: bytes, backend: str, *, bf16: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that computes an ONNX graph on the CPU, with as many threads as PyTorch would take.

    Args:
        graph: what :func:`to_onnx` gives, or the content of a file of :func:`export_onnx`.
        backend: ``onnxruntime`` or ``openvino``.
        bf16: let OpenVINO compute in bfloat16. ONNX Runtime computes in the graph's own float32.

    Returns:
        ``films`` float32 ``(B, 1, H, W)`` → ``logits`` float32 ``(B, C, H, W)``, both on the CPU.

    Raises:
        ValueError: no such backend.
        ImportError: the backend is not installed.
    """
    if backend == "onnxruntime":
        onnxruntime = _extra("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4  # errors are raised
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda films: torch.from_numpy(session.run(None, {"films": films.numpy()})[0])
    if backend == "openvino":
        # Else the import alone reports to the vendor over the network.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        core = _extra("openvino").Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        network = core.compile_model(core.read_model(graph), "CPU", settings)
        return lambda films: torch.from_numpy(network(films.numpy())[0])
    raise ValueError(f"backend is torch, onnxruntime or openvino, not {backend!r}")


def _difference(model: nn.Module, graph: bytes) -> float:
    """The largest difference between the logits, over batches and sizes other than the traced ones."""
    run, noise = open_graph(graph, "onnxruntime"), torch.Generator().manual_seed(0)
    batches = [torch.randn(shape, generator=noise) for shape in ((1, 1, 256, 256), (3, 1, 203, 261), (1, 1, 320, 133))]
    with torch.inference_mode():
        return torch.stack([(run(films) - model(films)).abs().max() for films in batches]).max().item()


def _extra(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise ImportError(f"{package} is not installed: pip install {package}") from None
