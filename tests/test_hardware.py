"""hardware.py: the device, and the fastest number format that it computes in itself."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident

import pytest
import torch

from kaggle_utils import hardware
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import confusion, overlap
from kaggle_utils.synthetic.model import AppearanceModel


@pytest.fixture(autouse=True)
def no_precision_is_named(monkeypatch):
    """conftest.py names float32 for the tests."""
    monkeypatch.delenv("UNET_LUNG_PRECISION", raising=False)


@pytest.fixture
def threads():
    """``threads(count)``: so many for PyTorch, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("there, expected", [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert hardware.choose_device("auto").type == expected


def test_device_that_is_named_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["xpu", "meta", "hpu", "vulkan", "cpu:3", "abacus", "", "cuda:x", "cuda:-1"])
def test_device_that_the_project_does_not_know_is_refused_in_a_line(name):
    with pytest.raises(ValueError) as error:
        hardware.choose_device(name)
    assert str(error.value) == f"device is auto, cpu, cuda, cuda:N or mps, not {name!r}"


def test_a_macs_gpu_is_taken_where_there_is_one_and_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (
        hardware.choose_device("mps") == torch.device("mps")
        and hardware.choose_precision(torch.device("mps")) == "fp32"
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^no mps here"):
        hardware.choose_device("mps")


@pytest.mark.parametrize(
    "flags, expected", [("fma avx2 avx512f", "fp32"), ("avx512f avx512_bf16", "bf16"), ("amx_bf16 amx_tile", "bf16")]
)
def test_precision_on_a_cpu_follows_its_flags(monkeypatch, tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    path = hardware.Path
    monkeypatch.setattr(hardware, "Path", lambda p: path(tmp_path / "cpuinfo" if p == "/proc/cpuinfo" else p))
    assert hardware.choose_precision(torch.device("cpu")) == expected


def test_precision_on_a_machine_without_cpuinfo_is_float32(monkeypatch, tmp_path):
    path = hardware.Path
    monkeypatch.setattr(hardware, "Path", lambda p: path(tmp_path / "none"))
    assert hardware.choose_precision(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(
    "gpu, capability, expected",
    [("T4", (7, 5), "fp16"), ("P100", (6, 0), "fp16"), ("A100", (8, 0), "bf16"), ("H100", (9, 0), "bf16")],
)
def test_precision_on_a_gpu_follows_its_generation(monkeypatch, gpu, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.choose_precision(torch.device("cuda")) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("named", hardware.PRECISIONS)
def test_a_precision_that_is_named_is_taken(monkeypatch, device, named):
    monkeypatch.setenv("UNET_LUNG_PRECISION", named)
    assert hardware.choose_precision(torch.device(device)) == named


def test_a_precision_that_does_not_exist_is_told(monkeypatch):
    monkeypatch.setenv("UNET_LUNG_PRECISION", "float32")
    with pytest.raises(ValueError, match="UNET_LUNG_PRECISION is auto, fp32, bf16, fp16, not 'float32'"):
        hardware.choose_precision(torch.device("cpu"))


def test_bfloat16_draws_the_lungs_that_float32_draws(monkeypatch):
    """Emulated where the processor doesn't have it: the numbers are other ones than float32's, the masks nearly the
    same."""
    films, found = [film.image for film in AppearanceModel.load().sample(2, seed=77)], {}
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("UNET_LUNG_PRECISION", precision)
        segmenter = LungSegmenter(device="cpu")
        found[precision] = segmenter.probabilities(films), segmenter.masks(films)
    difference = abs(found["fp32"][0] - found["bf16"][0])
    assert difference.max() > 1e-4 and difference.mean() < 0.005
    assert all(overlap(confusion(*pair))["dice"] > 0.99 for pair in zip(found["fp32"][1], found["bf16"][1]))


def test_a_gpu_tries_its_kernels_and_computes_float32_as_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    try:
        hardware.prepare(torch.device("cuda"))
        assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_lone_threads_compute_alone_and_others_as_before(threads):
    threads(3)
    together = Barrier(3)

    def compute(_) -> tuple[int, int]:
        together.wait(30)
        torch.ones(2).sum()
        return get_ident(), torch.get_num_threads()

    who, counts = zip(*hardware.lone_threads().map(compute, range(3)))
    assert len(set(who)) == 3 and set(counts) == {1}
    with ThreadPoolExecutor(1) as later:
        assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 3


def test_one_thread_needs_no_others(threads):
    threads(1)
    assert hardware.lone_threads() is None


def test_each_film_of_a_batch_has_a_thread_and_a_head(threads):
    threads(2)
    segmenter, films = LungSegmenter(device="cpu"), [film.image for film in AppearanceModel.load().sample(3, seed=7)]
    heads, model, seen = segmenter.heads, segmenter.model, []

    def watched(images: torch.Tensor) -> torch.Tensor:
        seen.append((len(images), torch.get_num_threads()))
        return model(images)

    segmenter.model = watched
    wanted = [heads[0], heads[-1], heads[0]]
    together = segmenter.probabilities(films, wanted)
    assert seen == [(1, 1)] * 3
    alone = [segmenter.probabilities([film], [head])[0] for film, head in zip(films, wanted)]
    assert seen[3:] == [(1, 2)] * 3
    segmenter.threads = None
    for found in (alone, segmenter.probabilities(films, wanted)):
        assert abs(together - found).max() < 0.05 and abs(together - found).mean() < 1e-3
    assert seen[6:] == [(3, 2)]
