"""export.py: the ONNX graph computes what PyTorch computes, and the runtimes give PyTorch's masks."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from damaged_headers import BAD_ARCHITECTURE, DAMAGED, each
from phantoms import phantom, with_prior

from kaggle_utils import export
from kaggle_utils.export import export_onnx, open_graph, read_onnx_header, to_onnx
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import FORMAT, UNet, read_header, save_weights

RUNTIMES = ("onnxruntime", "openvino")
HEADER = {
    "size": 32,
    "sources": ["montgomery", "shenzhen"],
    "heads": ["montgomery", "shenzhen"],
    "licence": "CC BY-NC-SA 4.0, “so”",
}


def network(prior=0.5, **architecture) -> UNet:
    """A small U-Net whose normalisation does something: random running mean and variance."""
    torch.manual_seed(0)
    model = with_prior(UNet(**{"base_channels": 4, "depth": 2} | architecture), prior)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def weights(tmp_path):
    save_weights(tmp_path / "w.safetensors", network(classes=2), HEADER)
    return tmp_path / "w.safetensors"


@pytest.fixture
def exported(weights):
    export_onnx(weights, weights.with_suffix(".onnx"))
    return weights.with_suffix(".onnx")


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"patch": 2, "classes": 3},
        {"up": "transposed"},
        {"norm": "group"},
        {"norm": "instance"},
        {"conv": "separable"},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", RUNTIMES)
def test_any_batch_and_size_gives_pytorchs_logits(backend, architecture):
    model = network(**architecture)
    run = open_graph(to_onnx(model), backend)
    for shape in ((1, 1, 64, 64), (3, 1, 64, 48), (1, 1, 67, 93), (3, 1, 33, 130), (2, 1, 19, 64)):
        films = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(run(films), model(films), atol=1e-4, rtol=0)


def test_names_types_and_free_axes_are_as_documented(exported):
    session = onnxruntime.InferenceSession(exported)
    (films,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (films.name, films.type, films.shape) == ("films", "tensor(float)", ["batch", 1, "height", "width"])
    assert (logits.name, logits.type) == ("logits", "tensor(float)") and len(logits.shape) == 4


def test_half_precision_weights_become_a_float32_graph(tmp_path):
    save_weights(tmp_path / "half.safetensors", network(classes=2), HEADER, half=True)
    export_onnx(tmp_path / "half.safetensors", tmp_path / "half.onnx")
    assert {tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }


def test_bfloat16_of_openvino_is_near_float32():
    films, graph = torch.randn(1, 1, 64, 64), to_onnx(network())
    logits = open_graph(graph, "openvino", bf16=True)(films)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, open_graph(graph, "openvino")(films), atol=0.2, rtol=0)


# --- the file --------------------------------------------------------------------------------------------------------


def test_header_travels_along(weights, exported):
    assert read_onnx_header(exported) == read_header(weights)
    assert read_onnx_header(exported)["architecture"]["classes"] == 2


def test_a_flipped_bit_anywhere_in_a_graph_is_noticed(exported, tmp_path):
    data, chance = Path(exported).read_bytes(), random.Random(0)
    name = data.index(b"checksum")
    for _ in range(100):
        at = chance.randrange(len(data))
        if not name <= at < name + 8:
            (tmp_path / "w.onnx").write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
            with pytest.raises(ValueError, match="w.onnx: "):
                read_onnx_header(tmp_path / "w.onnx")


def test_other_programs_find_the_header_as_json_in_the_metadata(exported):
    metadata = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    assert json.loads(metadata[FORMAT]).items() >= HEADER.items()


@pytest.mark.parametrize(
    "wrong", [network(prior=0.25), network(prior=float("nan"))], ids=["another network", "not a number"]
)
def test_graph_that_is_not_the_network_is_refused_and_no_file_is_left(wrong, weights, tmp_path, monkeypatch):
    graph = to_onnx(wrong)
    monkeypatch.setattr(export, "to_onnx", lambda model: graph)
    with pytest.raises(ValueError, match="w.safetensors.*away from PyTorch"):
        export_onnx(weights, tmp_path / "w.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_network_for_volumes_is_refused(tmp_path):
    save_weights(tmp_path / "v.safetensors", UNet(base_channels=2, depth=1, classes=2, dims=3), HEADER)
    with pytest.raises(ValueError, match=r"\(B, C, D, H, W\)"):
        export_onnx(tmp_path / "v.safetensors", tmp_path / "v.onnx")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: b"", "not written by this project"),
        (lambda data: data[: len(data) // 2], "not a whole ONNX"),
        (lambda data: data[:-3], "not a whole ONNX"),
        (lambda data: b"something else", "not a whole ONNX"),
        (lambda data: data.replace(b"Relu", b"Rule"), "not a whole ONNX"),
    ],
    ids=["empty", "half", "end missing", "text", "no such operator"],
)
@pytest.mark.parametrize("backend", RUNTIMES)
def test_damaged_file_is_named(backend, damage, message, exported):
    exported.write_bytes(damage(exported.read_bytes()))
    with pytest.raises(ValueError, match=f"w.onnx: .*{message}"):
        LungSegmenter(exported, backend=backend)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """An exported graph, to write with other headers."""
    path = tmp_path_factory.mktemp("graph") / "w.safetensors"
    save_weights(path, network(classes=2), HEADER)
    export_onnx(path, path.with_suffix(".onnx"))
    return path.with_suffix(".onnx").read_bytes()


def write_header(path, graph, header):
    proto = onnx.load_model_from_string(graph)
    onnx.helper.set_model_props(proto, {FORMAT: header if isinstance(header, str) else json.dumps(header)})
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path, about):
    """What is said of a file, in a line that names it."""
    with pytest.raises(ValueError, match=f"{path.name}: .*{about}") as raised:
        LungSegmenter(path, backend="onnxruntime")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    return str(raised.value)


ARCHITECTURE = network(classes=2).architecture


@pytest.mark.parametrize("name, value", each(DAMAGED), ids=repr)
def test_header_of_wrong_types_and_sizes_is_refused_in_a_line(graph, tmp_path, name, value):
    refused(write_header(tmp_path / "w.onnx", graph, {"architecture": ARCHITECTURE, **HEADER, name: value}), name[:-1])


@pytest.mark.parametrize("name, value", each(BAD_ARCHITECTURE), ids=repr)
def test_architecture_that_no_network_has_is_refused_in_a_line(graph, tmp_path, name, value):
    refused(write_header(tmp_path / "w.onnx", graph, {**HEADER, "architecture": {**ARCHITECTURE, name: value}}), name)


@pytest.mark.parametrize(
    "header, about",
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "no architecture"),
        ({"architecture": ARCHITECTURE}, "no size and no sources"),
        (
            {**HEADER, "architecture": {**ARCHITECTURE, "classes": 1}, "heads": ["montgomery"]},
            "names 1 classes, its graph gives 2",
        ),
        ({**HEADER, "architecture": {**ARCHITECTURE, "members": 2}}, "tuberculosis"),
        ({**HEADER, "architecture": {**ARCHITECTURE, "dims": 3}}, "dims 3"),
        ({**HEADER, "architecture": {**ARCHITECTURE, "in_channels": 3}}, "in_channels 3"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_header_of_another_file_is_refused_in_a_line(graph, tmp_path, header, about):
    refused(write_header(tmp_path / "w.onnx", graph, header), about)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(graph, tmp_path, wrong):
    proto = onnx.load_model_from_string(graph)
    tensor = proto.graph.initializer[0]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = wrong
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    (tmp_path / "w.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "w.onnx", "holds NaN or infinity")


@pytest.mark.parametrize("backend", RUNTIMES)
def test_graph_that_no_runtime_computes_is_refused(graph, tmp_path, backend):
    """As another program, or a flipped bit in a file without a checksum, leaves it, which the format's own check
    doesn't see."""
    proto = onnx.load_model_from_string(graph)
    next(node for node in proto.graph.node if node.op_type == "Concat" and "up" in node.name).attribute[0].i = 9
    header = json.loads(proto.metadata_props[0].value)
    onnx.helper.set_model_props(
        proto, {FORMAT: json.dumps({name: value for name, value in header.items() if name != "checksum"})}
    )
    (tmp_path / "w.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=f"w.onnx: {backend} can't compute it .*export it again$"):
        LungSegmenter(tmp_path / "w.onnx", backend=backend)


@pytest.mark.parametrize(
    "damage",
    [lambda tensor: tensor.dims.append(7), lambda tensor: tensor.ClearField("raw_data")],
    ids=["dims", "no data"],
)
def test_damaged_tensor_is_refused(graph, tmp_path, damage):
    proto = onnx.load_model_from_string(graph)
    damage(proto.graph.initializer[0])
    (tmp_path / "w.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "w.onnx", "not a whole ONNX file")


def test_flipped_bits_bring_no_traceback(graph, tmp_path):
    path, chance = tmp_path / "w.onnx", random.Random(0)
    for _ in range(150):
        damaged = bytearray(graph)
        for _ in range(4):
            damaged[chance.randrange(len(graph))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            read_onnx_header(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_foreign_onnx_file_is_named(tmp_path):
    (tmp_path / "foreign.onnx").write_bytes(to_onnx(network()))
    with pytest.raises(ValueError, match="foreign.onnx: ONNX, but not written by this project"):
        read_onnx_header(tmp_path / "foreign.onnx")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.onnx"):
        LungSegmenter(tmp_path / "none.onnx", backend="onnxruntime")


# --- the backends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", RUNTIMES)
@pytest.mark.parametrize("head", HEADER["heads"])
def test_masks_are_those_of_pytorch_from_weights_and_from_the_exported_file(backend, head, weights, exported):
    films = [phantom(90, 60).image, phantom(50, 71, 1).image]
    switches = {"device": "cpu", "head": head, "flip": True, "clean": False}
    switches["threshold"] = float(LungSegmenter(weights, **switches).probabilities(films).mean())  # both lung and not
    expected = LungSegmenter(weights, **switches).masks(films)
    for path in (weights, exported):
        for mask, truth in zip(LungSegmenter(path, backend=backend, **switches).masks(films), expected):
            assert 0.1 < truth.mean() < 0.9 and (mask != truth).mean() < 1e-3  # a pixel may lie on the threshold


def test_unknown_backend_is_an_error_that_lists_them(weights):
    with pytest.raises(ValueError, match="torch, onnxruntime or openvino, not 'abacus'"):
        LungSegmenter(weights, backend="abacus")


def test_onnx_weights_choose_a_runtime_that_computes_them(exported):
    films = [phantom().image]
    chosen, named = LungSegmenter(exported), LungSegmenter(exported, backend="onnxruntime")
    np.testing.assert_array_equal(chosen.masks(films), named.masks(films))


@pytest.mark.parametrize(
    "package, backend", [("onnx", "openvino"), ("onnxruntime", "onnxruntime"), ("openvino", "openvino")]
)
def test_missing_package_says_what_to_install(package, backend, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # what import finds where there is none
    with pytest.raises(ImportError, match=f"pip install {package}$"):
        LungSegmenter(weights, backend=backend)


def test_openvino_reports_to_nobody():
    open_graph(to_onnx(network()), "openvino")
    assert sys.modules["openvino_telemetry"] is None


def test_nothing_but_an_earlier_export_is_replaced(tmp_path):
    weights, out = tmp_path / "w.safetensors", tmp_path / "w.onnx"
    save_weights(weights, UNet(base_channels=2, depth=1), {"size": 32, "sources": ["montgomery"]})
    before = weights.read_bytes()
    with pytest.raises(ValueError, match="w.safetensors: it is there, and the weights themselves: choose another file"):
        export_onnx(weights, weights)
    out.write_text("a stranger's")
    with pytest.raises(ValueError, match="w.onnx: it is there, and no earlier export: choose another file"):
        export_onnx(weights, out)
    assert weights.read_bytes() == before and out.read_text() == "a stranger's"
    out.unlink()
    export_onnx(weights, out)
    export_onnx(weights, out)
    assert read_onnx_header(out)["size"] == 32
