"""model.py: shapes, gradients, the untrained network, and weights on disk."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from damaged_headers import BAD_ARCHITECTURE, DAMAGED, each
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kaggle_utils import model as models
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import score
from kaggle_utils.model import UNet, count_parameters, fold_norm, load_weights, read_header, save_weights, update_header
from kaggle_utils.quality.flags import REASONS
from kaggle_utils.synthetic import AppearanceModel

NORMS, UPS = ("batch", "group", "instance"), ("bilinear", "transposed")


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(base_channels=2, depth=2).eval()


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (64, 50), (16, 100), (5, 7), (1, 1)], ids=str)
def test_logits_have_the_films_shape_whatever_it_is(shape):
    assert UNet(base_channels=2, depth=4).eval()(torch.zeros(2, 1, *shape)).shape == (2, 1, *shape)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("dims, size", [(2, (16, 20)), (3, (8, 12, 9))], ids=["2-D", "3-D"])
def test_every_norm_and_up_in_2_and_3_dimensions(norm, up, dims, size):
    net = UNet(2, 3, base_channels=2, depth=2, dims=dims, norm=norm, up=up)
    logits = net(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("dims, size", [(2, (16, 20)), (3, (8, 12, 9))], ids=["2-D", "3-D"])
def test_separable_convolutions_have_about_a_ninth_of_the_weights_and_learn(dims, size):
    net = UNet(1, 2, base_channels=16, depth=1, dims=dims, conv="separable")
    plain = UNet(1, 2, base_channels=16, depth=1, dims=dims)
    assert count_parameters(net) < count_parameters(plain) / 4
    net(torch.randn(2, 1, *size)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (5, 7)], ids=str)
def test_patches_still_give_a_logit_to_every_pixel(patch, shape):
    logits = UNet(2, 3, base_channels=2, depth=2, patch=patch).eval()(torch.randn(1, 2, *shape))
    assert logits.shape == (1, 3, *shape)


def test_patches_put_every_pixel_back_in_its_place():
    """With the identity between them, folding pixels into channels and back moves none."""
    net = UNet(base_channels=2, depth=1, patch=2).eval()
    net.inc, net.down, net.up, net.outc = nn.Identity(), nn.ModuleList(), nn.ModuleList(), nn.Identity()
    film = torch.randn(1, 1, 9, 6)
    torch.testing.assert_close(net(film), film)


def test_padding_reaches_only_the_far_edges_of_the_film(unet):
    """A film of odd size gives the logits of the same film padded by hand: cropping takes the right corner."""
    film = torch.randn(1, 1, 30, 29)
    by_hand = unet(nn.functional.pad(film, (0, 3, 0, 2), mode="replicate"))[..., :30, :29]
    torch.testing.assert_close(unet(film), by_hand)


def test_default_has_at_most_2_million_parameters():
    assert count_parameters(UNet()) <= 2_000_000


def test_parameters_are_counted_by_hand():
    # 1→2 channels, depth 1: convolutions 3·3 without bias, two numbers a normalised channel, 1×1 with bias.
    def double(i: int, o: int) -> int:
        return 9 * i * o + 2 * o + 9 * o * o + 2 * o

    assert count_parameters(UNet(base_channels=2, depth=1)) == double(1, 2) + double(2, 4) + (4 * 2 + 2) + double(
        4, 2
    ) + (2 + 1)


def test_output_bias_is_the_logit_of_the_prior():
    assert UNet(base_channels=2, depth=1).outc.bias.item() == pytest.approx(math.log(0.25 / 0.75))


def test_untrained_networks_predict_about_the_prior():
    def share(seed):
        torch.manual_seed(seed)
        return UNet(base_channels=4, depth=2).train()(torch.randn(2, 1, 32, 32)).sigmoid().mean().item()

    assert sum(map(share, range(20))) / 20 == pytest.approx(0.25, abs=0.1)


def test_he_initialisation():
    torch.manual_seed(0)
    weight = UNet(base_channels=32, depth=1).down[0][1][0].weight  # 32 → 64 channels
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_of_one_trains(norm):
    torch.manual_seed(0)
    net = UNet(base_channels=4, depth=2, norm=norm).train()
    film = torch.randn(1, 1, 16, 16)
    truth = (film > 0.3).float()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    values = []
    for _ in range(30):
        value = nn.functional.binary_cross_entropy_with_logits(net(film), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_without_running_statistics_see_each_film_alone(norm):
    torch.manual_seed(0)
    net = UNet(base_channels=4, depth=2, norm=norm).train()
    films = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(net(films)[:1], net(films[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 8, 8), (1, 1, 8, 8, 8)], ids=str)
def test_wrong_input_shape_is_refused_in_words(unet, shape):
    with pytest.raises(ValueError, match=r"takes \(B, C, H, W\) with C = 1"):
        unet(torch.zeros(shape))


@pytest.mark.parametrize("setting", [{"norm": "layer"}, {"up": "nearest"}, {"dims": 4}], ids=str)
def test_unknown_choice_is_refused_with_the_choices(setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name} is one of .*{value}"):
        UNet(**setting)


# --- for inference ---------------------------------------------------------------------------------------------------


def filled(**architecture) -> UNet:
    """A network whose running statistics aren't the initial ones either."""
    torch.manual_seed(1)
    net = UNet(base_channels=2, depth=2, **architecture).train()
    with torch.no_grad():
        net(torch.randn(2, 1, *[16] * net.architecture["dims"]))
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum("Norm" in type(module).__name__ for module in net.modules())


@pytest.mark.parametrize("conv", ["plain", "separable"])
@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("dims", [2, 3])
def test_folded_network_has_no_batch_normalisation_and_the_same_logits(dims, up, conv):
    net = filled(dims=dims, up=up, conv=conv)
    for norm in (module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded, films = fold_norm(net), torch.randn(2, 1, *[16] * dims)
    torch.testing.assert_close(folded(films), net(films), rtol=1e-4, atol=1e-4)
    assert norms(net) == 10 and norms(folded) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_that_need_the_film_are_not_folded(norm):
    net, films = filled(norm=norm), torch.randn(2, 1, 16, 16)
    folded = fold_norm(net)
    assert norms(folded) == norms(net) and torch.equal(folded(films), net(films))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shipped_network_is_folded_and_its_masks_stay(precision, monkeypatch):
    monkeypatch.setenv("UNET_LUNG_PRECISION", precision)
    films = [film.image for film in AppearanceModel.load().sample(4, seed=0, size=256)]
    segmenter = LungSegmenter(device="cpu")
    assert norms(segmenter.model) == 0
    masks, segmenter.model = segmenter.masks(films), load_weights(segmenter.path)
    dice = [score(mask, truth)["dice"] for mask, truth in zip(masks, segmenter.masks(films))]
    assert sum(dice) / len(dice) > 0.999 and min(dice) > (0.9999 if precision == "fp32" else 0.998)


# --- weights on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture", [{}, {"norm": "group", "up": "transposed"}, {"dims": 3, "norm": "instance"}], ids=str
)
def test_weights_come_back_bit_equal_with_their_architecture(tmp_path, architecture):
    net = filled(**architecture)
    save_weights(tmp_path / "w.safetensors", net)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.architecture == net.architecture and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_half_is_half_the_bytes_and_loads_as_float32(tmp_path):
    net = UNet(base_channels=16, depth=2)
    save_weights(tmp_path / "full.safetensors", net)
    save_weights(tmp_path / "half.safetensors", net, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * (tmp_path / "full.safetensors").stat().st_size
    loaded = load_weights(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.inc[0].weight, net.inc[0].weight, rtol=1e-3, atol=1e-4)


def test_header_comes_back_as_it_was(tmp_path, unet):
    header = {"size": 256, "sources": ["montgomery"], "validation": {"dice": 0.97}, "licence": ["CC BY-NC-SA 4.0"]}
    save_weights(tmp_path / "w.safetensors", unet, header)
    assert read_header(tmp_path / "w.safetensors") == {"architecture": unet.architecture, **header}


@pytest.mark.parametrize("name, value", each(DAMAGED), ids=repr)
def test_header_of_wrong_types_and_sizes_is_refused_in_a_line(tmp_path, unet, name, value):
    path = tmp_path / "w.safetensors"
    save_weights(path, unet, {"size": 32, "sources": ["a"], name: value})
    with pytest.raises(ValueError, match=rf"w\.safetensors: .*{name[:-1]}") as raised:
        read_header(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    with pytest.raises(ValueError, match=f"w.safetensors: .*{name[:-1]}"):
        load_weights(path)


@pytest.mark.parametrize("name, value", each(BAD_ARCHITECTURE), ids=repr)
def test_architecture_that_no_network_has_is_refused_in_a_line(tmp_path, unet, name, value):
    unet.architecture = {**unet.architecture, name: value}
    save_weights(tmp_path / "w.safetensors", unet)
    with pytest.raises(ValueError, match=rf"w\.safetensors: .*{name}"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "bias, doubt",
    [(float("nan"), [0, 1]), (1, [0, -1]), (1, [0]), (1, ["0", 1]), (1, 5), (10**9, [0, 1]), (True, [0, 1])],
    ids=repr,
)
def test_estimate_with_other_coefficients_is_refused(tmp_path, unet, bias, doubt):
    fit = {"bias": bias, "features": {**{name: [0.0, 1.0] for name in REASONS}, "doubt": doubt}}
    save_weights(tmp_path / "w.safetensors", unet, {"quality": fit})
    with pytest.raises(ValueError, match="w.safetensors: .*of quality"):
        read_header(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        "{",
        "[" * 100_000,
        '{"architecture": 3}',
        '{"architecture": {"base_channels": ' + "9" * 5000 + "}}",
        "{}",
    ],
    ids=lambda text: text[:20],
)
def test_header_that_is_no_object_is_refused(tmp_path, unet, text):
    save_file(unet.state_dict(), tmp_path / "w.safetensors", {models.FORMAT: text})
    with pytest.raises(ValueError, match="w.safetensors: "):
        read_header(tmp_path / "w.safetensors")


def test_entry_of_the_header_is_written_and_nothing_else_changes(tmp_path):
    net, path = filled(), tmp_path / "w.safetensors"
    save_weights(path, net, {"size": 32, "sources": ["a"]}, half=True)
    before = load_file(path)
    update_header(path, quality={"why_not": "too few"})
    assert read_header(path) == {
        "architecture": net.architecture,
        "size": 32,
        "sources": ["a"],
        "quality": {"why_not": "too few"},
    }
    after = load_file(path)
    assert all(
        torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before | after
    )


def test_a_flipped_bit_anywhere_in_weights_is_noticed(tmp_path):
    net, path, chance = filled(), tmp_path / "w.safetensors", random.Random(0)
    save_weights(path, net, {"size": 32, "sources": ["a"], "quality": {"why_not": "too few"}})
    data, header = path.read_bytes(), read_header(path)
    name = data.index(b"checksum")
    for _ in range(200):
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
        if name <= at < name + 8:  # then it is taken for a file of an older version, and all else is as it was
            assert read_header(path).items() >= header.items()
        else:
            with pytest.raises(ValueError, match="w.safetensors: ") as raised:
                load_weights(path)
            assert "\n" not in str(raised.value)


def test_weights_without_a_checksum_still_load(tmp_path, unet):
    save_file(
        unet.state_dict(),
        tmp_path / "w.safetensors",
        {models.FORMAT: json.dumps({"architecture": unet.architecture, "size": 32})},
    )
    assert load_weights(tmp_path / "w.safetensors").architecture == unet.architecture
    assert read_header(tmp_path / "w.safetensors")["size"] == 32


@pytest.mark.parametrize("checksum", ["", "0" * 64, "f" * 64, 3, None, [1], "\u2028"], ids=repr)
def test_another_checksum_is_refused(tmp_path, unet, checksum):
    save_file(
        unet.state_dict(),
        tmp_path / "w.safetensors",
        {models.FORMAT: json.dumps({"architecture": unet.architecture, "checksum": checksum})},
    )
    with pytest.raises(ValueError, match="w.safetensors: damaged or edited, as its checksum doesn't fit"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name, members", [("lungs", False), ("tb", True)])
def test_shipped_weights_have_a_checksum(name, members):
    path = Path(models.__file__).parent / "weights" / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        assert len(json.loads(file.metadata()[models.FORMAT])["checksum"]) == 64
    assert read_header(path, members=members)["size"]


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["empty", "4 bytes", "in the header", "one byte short"])
def test_truncated_weights_are_refused(tmp_path, unet, kept):
    path = tmp_path / "w.safetensors"
    save_weights(path, unet)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="w.safetensors: not a whole safetensors file"):
        load_weights(path)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, unet, wrong, half):
    unet.inc[0].weight.data[0, 0, 0, 0] = wrong
    save_weights(tmp_path / "w.safetensors", unet, half=half)
    with pytest.raises(ValueError, match=r"w\.safetensors: inc\.0\.weight holds NaN or infinity"):
        load_weights(tmp_path / "w.safetensors")


def test_foreign_safetensors_are_refused(tmp_path, unet):
    save_file(unet.state_dict(), tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="foreign.safetensors: .*not written by this project"):
        load_weights(tmp_path / "foreign.safetensors")


def test_a_pickle_is_refused(tmp_path, unet):
    torch.save(unet.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: not a whole safetensors file"):
        load_weights(tmp_path / "model.pt")


def test_tensors_of_another_architecture_are_refused(tmp_path, unet):
    unet.architecture = {**unet.architecture, "base_channels": 3}
    save_weights(tmp_path / "w.safetensors", unet)
    with pytest.raises(ValueError, match="w.safetensors: the tensors don't fit the architecture"):
        load_weights(tmp_path / "w.safetensors")


def test_architecture_this_version_does_not_know_is_refused_with_the_files_name(tmp_path, unet):
    unet.architecture = {**unet.architecture, "norm": "layer"}
    save_weights(tmp_path / "w.safetensors", unet)
    with pytest.raises(ValueError, match="w.safetensors"):
        load_weights(tmp_path / "w.safetensors")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        load_weights(tmp_path / "nowhere.safetensors")


def test_failed_save_leaves_the_old_weights(tmp_path, unet, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, unet, {"version": 1})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError):
        save_weights(path, filled(), {"version": 2})
    assert read_header(path)["version"] == 1
    load_file(path)


def test_equal_weights_are_equal_files(tmp_path, unet):
    header = {f"key {i}": i for i in range(20)}
    for name in ("a", "b"):
        save_weights(tmp_path / name, unet, header)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_of_another_format_are_refused_by_name(tmp_path, unet):
    save_file(unet.state_dict(), tmp_path / "old.safetensors", {"format": "unet-lung/1", "architecture": "{}"})
    with pytest.raises(ValueError, match=models.FORMAT):
        read_header(tmp_path / "old.safetensors")
