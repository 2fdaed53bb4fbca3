"""Kaggle: notebooks' and datasets' metadata; pushing and publishing against a stand-in on loopback, behind a fence."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
from kaggle_server import Kaggle, environment

from kaggle_utils.kaggle import publish as kaggle
from kaggle_utils.kaggle import weights
from kaggle_utils.model import read_header

ROOT = Path(__file__).parents[1]
HOME = ROOT / kaggle.HOME
NOTEBOOK = {
    "cells": [{"cell_type": "code", "source": ["1"], "metadata": {}, "outputs": [], "execution_count": None}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
NAMES = kaggle.choose(["all"], ROOT)
METADATA = {name: json.loads((HOME / name / "kernel-metadata.json").read_text()) for name in NAMES}
SLUGS = [metadata["id"].split("/")[1] for metadata in METADATA.values()]
KEYS = {
    "id",
    "title",
    "code_file",
    "language",
    "kernel_type",
    "is_private",
    "enable_gpu",
    "machine_shape",
    "enable_tpu",
    "enable_internet",
    "dataset_sources",
    "kernel_sources",
    "competition_sources",
    "model_sources",
}


def missing() -> str:
    """Why these tests can't run here; not by an import, which would log in."""
    if sys.version_info < (3, 11):
        return "Kaggle's package needs Python 3.11"
    try:
        version("kaggle"), version("kagglehub"), version("six")
    except PackageNotFoundError as error:
        return f"{error}: pip install -e '.[dev]'"
    return ""


with_kaggle = pytest.mark.skipif(bool(missing()), reason=missing() or "all there")

WALLS = """
import socket, requests.utils as u, kagglesdk.kaggle_env as e
print(e.get_endpoint(e.get_env()))
for url in ("http://localhost/api", "https://api.kaggle.com", "https://www.kaggle.com"):
    print(u.select_proxy(url, u.get_environ_proxies(url)))
for reach in (
    lambda: socket.create_connection(("192.0.2.1", 443), 1),
    lambda: socket.getaddrinfo("kaggle.invalid", 443),
):
    try:
        print("reached", reach())
    except OSError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The stand-in, and around every test of this module the fence, in a clone with notebooks of one cell."""
    clone, server = tmp_path_factory.mktemp("clone"), Kaggle()
    shutil.copytree(HOME, clone / kaggle.HOME)
    for name in NAMES:
        (clone / "notebooks" / f"{name}.ipynb").write_text(json.dumps(NOTEBOOK))
    for name in ("kaggle_utils", "benchmarks", "results", "LICENSE"):
        (clone / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("fence"), server).items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        patch.chdir(clone)
        dead = "http://127.0.0.1:9"
        assert python("-c", WALLS).stdout.splitlines() == [  # no test runs unless every wall stands
            "http://localhost",
            f"http://127.0.0.1:{server.server_port}",
            dead,
            dead,
            "fenced in: 192.0.2.1 is not loopback",
            "fenced in: kaggle.invalid is not loopback",
        ]
        yield server
    server.shutdown()


def python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)


RUN = (
    "import sys; from kaggle_utils.kaggle import publish; publish.POLL = 0; {}; "
    "from kaggle_utils.cli import main; sys.exit(main(['kaggle', *sys.argv[1:]]))"
)


def run(*arguments, before: str = "pass") -> SimpleNamespace:
    """A command's status, output and errors, in a process behind the fence that doesn't wait between questions."""
    done = python("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); " + RUN.format(before), *arguments)
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)


# --- nothing leaves the machine --------------------------------------------------------------------------------------


@with_kaggle
@pytest.mark.parametrize(
    "gone, said",
    [
        (["KAGGLE_API_ENVIRONMENT"], "127.0.0.1"),
        (["KAGGLE_API_ENVIRONMENT", "https_proxy", "HTTPS_PROXY"], "fenced in: api.kaggle.com"),
    ],
    ids=["dead proxy", "fence"],
)
def test_what_turns_to_the_real_service_fails(gone, said, server, monkeypatch):
    for name in gone:
        monkeypatch.delenv(name)
    before = len(server.calls)
    done = run("push", "01", "--owner", "nobody", "--no-wait")
    assert done.status == 1 and said in done.err and len(server.calls) == before


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [ROOT / "kernel-metadata.json", *sorted(HOME.glob("*/kernel-metadata.json"))],
    ids=lambda path: path.parent.name,
)
def test_metadata_is_what_kaggle_takes(path):
    """Source: kernels_metadata.md of Kaggle's package 2.2.4, which ignores keys that it doesn't know."""
    metadata = json.loads(path.read_text())
    assert set(metadata) <= KEYS and (path.parent / metadata["code_file"]).resolve().is_file()
    owner, slug = metadata["id"].split("/")
    assert owner == kaggle.OWNER and 5 <= len(metadata["title"]) <= 50
    assert re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower()) == slug  # else Kaggle makes another notebook of it
    assert (metadata["language"], metadata["kernel_type"]) == ("python", "notebook")
    assert metadata["is_private"] is True and metadata["enable_internet"] is metadata["enable_tpu"] is False
    assert metadata.get("machine_shape", "") == (
        "NvidiaTeslaT4" if metadata["enable_gpu"] else ""
    )  # it would win over enable_gpu
    assert metadata["dataset_sources"] == [
        "kmader/pulmonary-chest-xray-abnormalities",
        "yoctoman/shcxr-lung-mask",
        "paultimothymooney/chest-xray-pneumonia",
        f"{kaggle.OWNER}/lung-unet-code",
    ]
    assert all(re.fullmatch(rf"{kaggle.OWNER}/[a-z0-9-]{{5,}}", source) for source in metadata["kernel_sources"])


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_that_segment_attach_the_model(name):
    """Source: kernels_metadata.md: {owner}/{model-slug}/{framework}/{variation-slug}/{version-number}."""
    wanted = [f"{weights.model_handle('lungs')}/1"] if name[:2] in ("04", "05") else []
    assert METADATA[name]["model_sources"] == wanted


def test_the_model_has_a_card_that_says_what_each_variation_may_be_used_for():
    model = json.loads((HOME / "model" / "model-metadata.json").read_text())
    assert (model["ownerSlug"], model["slug"]) == tuple(weights.model_handle("lungs").split("/")[:2])
    assert model["isPrivate"] is True and "not a medical device" in model["description"]
    for name, licence in weights.LICENCES.items():
        line = next(line for line in model["description"].splitlines() if line.startswith(f"- `{name}`"))
        assert re.search(r"CC BY(-NC-SA)? 4\.0", licence)[0] in line
        labels = " ".join(read_header(weights.find_weights(name))["licence"])  # the strictest of them counts
        assert ("CC BY-NC-SA 4.0" in licence) == ("CC BY-NC-SA 4.0" in labels) and "CC BY" in labels


@pytest.mark.parametrize("path", [ROOT / "kernel-metadata.json", *sorted(HOME.glob("*/*.json"))], ids=str)
def test_another_owner_takes_all_that_is_ours_and_nothing_else(path):
    theirs, ours = kaggle._given_to("nobody", json.loads(path.read_text())), json.loads(path.read_text())
    names = [name for value in theirs.values() for name in (value if isinstance(value, list) else [value])]
    public = ("kmader/", "yoctoman/", "paultimothymooney/")
    owned = [name for name in names if isinstance(name, str) and re.fullmatch(r"[\w-]+(/[\w-]+)+", name)]
    assert all(name.startswith(("nobody/", *public)) for name in owned)
    assert theirs.get("ownerSlug", "nobody") == "nobody" and theirs.get("slug") == ours.get("slug")
    assert kaggle._given_to(kaggle.OWNER, ours) == ours


def test_no_placeholder_is_left_in_what_is_tracked():
    found = subprocess.run(["git", "grep", "-l", "INSERT_" + "OWNER"], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == ""


def test_every_notebook_has_metadata_and_reads_earlier_ones():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES
    for n, metadata in enumerate(METADATA.values()):
        assert metadata["enable_gpu"] == (NAMES[n][:2] in ("02", "03", "05"))
        assert {source.split("/")[1] for source in metadata["kernel_sources"]} <= set(SLUGS[:n])


def test_the_file_at_the_root_is_the_training_notebook_alone():
    root, beside = json.loads((ROOT / "kernel-metadata.json").read_text()), METADATA["02_training"]
    assert root == beside | {"code_file": "notebooks/02_training.ipynb", "kernel_sources": []}


def test_notebooks_are_chosen_by_number_in_their_order(tmp_path):
    assert kaggle.choose(["05", "01", "05"], ROOT) == ["01_prep", "05_tb_screening"]
    with pytest.raises(ValueError, match="no notebook 06: choose of 01, 02, 03, 04, 05 or all"):
        kaggle.choose(["06"], ROOT)
    with pytest.raises(FileNotFoundError, match="run this in the folder of the clone"):
        kaggle.choose(["all"], tmp_path)


# --- the whole way: refused, published, published again, pushed, failed -----------------------------------------------


@pytest.fixture(scope="module")
def journey(server):
    """Each command's end, and what the server was asked meanwhile."""
    done, calls = {}, {}

    def step(name, *arguments):
        before = len(server.calls)
        done[name] = run(*arguments)
        calls[name] = server.calls[before:]

    step("too early", "push", "01", "--owner", "nobody")
    step("publish", "publish", "--owner", "nobody")
    step("publish again", "publish", "--owner", "nobody")
    server.scripts[SLUGS[0]] = ["RUNNING", "COMPLETE"]
    step("push", "push", "--owner", "nobody", "--out", "out")
    server.scripts[SLUGS[1]] = ["ERROR"]
    server.logs[SLUGS[1]] = [f"line {n}\n" for n in range(40)]
    step("fail", "push", "04", "02", "--owner", "nobody", "--out", "failed")
    step("no wait", "push", "04", "--owner", "nobody", "--no-wait")
    pushed = {name: [r["slug"].split("/")[1] for p, r in made if p == "SaveKernel"] for name, made in calls.items()}
    return SimpleNamespace(done=done, calls=calls, pushed=pushed)


@with_kaggle
@pytest.mark.parametrize(
    "step, status", [("too early", 1), ("publish", 0), ("publish again", 0), ("push", 0), ("fail", 1), ("no wait", 0)]
)
def test_each_command_ends_with_its_status(journey, step, status):
    assert journey.done[step].status == status, journey.done[step].err
    assert (journey.done[step].err == "") == (status == 0)


@with_kaggle
def test_a_dataset_that_kaggle_does_not_know_is_an_error_with_advice(journey):
    lines = journey.done["too early"].err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("doesn't know nobody/lung-unet-code: `kaggle publish` comes first")


@with_kaggle
def test_published_code_is_found_as_notebooks_look_for_it(journey, server, tmp_path):
    for name, data in server.datasets["nobody/lung-unet-code"][0].items():
        if name.endswith(".zip"):  # Kaggle unpacks it into a folder of its name
            zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path / Path(name).stem)
    (package,) = (path.parent for path in tmp_path.glob("**/kaggle_utils/__init__.py"))
    shipped = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        f"kaggle_utils/{name}"
        for name in ("__main__.py", "weights/lungs.safetensors", "assets/appearance.npz", "splits/flagged_masks.csv")
    } | {"results/protocols.csv", "benchmarks/gpu.py"} <= shipped
    assert (package / "trainer.py").read_bytes() == (ROOT / "kaggle_utils" / "trainer.py").read_bytes()
    assert not [name for name in shipped if "__pycache__" in name]


@with_kaggle
def test_published_weights_their_card_and_licences(journey, server):
    for name in weights.LICENCES:
        files = server.models[f"nobody/unet-lung/{name}"][0]
        assert set(files) == {f"{name}.safetensors", "README.md"}
        for file, data in files.items():
            assert data == (ROOT / "kaggle_utils" / "weights" / file).read_bytes()
    first = {r["body"]["instanceSlug"]: r["body"]["licenseName"] for r in server.asked("CreateModelInstance")[:2]}
    assert first == weights.LICENCES
    assert all(request["isPrivate"] for request in server.asked("CreateModel"))
    card = server.asked("UpdateModel")[0]
    assert card["title"] == "Lung UNet" and card["isPrivate"] and "not for commercial use" in card["description"]


@with_kaggle
def test_published_code_is_private_and_says_its_licences(journey, server):
    (made,) = server.asked("CreateDataset")[:1]
    assert (made["slug"], made["licenseName"], made["isPrivate"]) == ("lung-unet-code", "other", True)
    assert "CC BY-NC-SA" in made["description"]


@with_kaggle
def test_publishing_again_makes_new_versions(journey, server):
    assert [len(versions) for versions in (*server.datasets.values(), *server.models.values())] == [2, 2, 2]
    again = [procedure for procedure, _ in journey.calls["publish again"]]
    assert again.count("CreateModelInstanceVersion") == 2 and not {"CreateDataset", "CreateModel"} & set(again)
    assert all(f"version {n} ready" in journey.done[step].out for n, step in ((1, "publish"), (2, "publish again")))


@with_kaggle
def test_published_weights_are_downloaded_where_none_are_attached(journey, server, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    code = "from kaggle_utils.kaggle import find_model; print(find_model('lungs-ccby', 'nobody'))"
    done = python("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}")
    path = Path(done.stdout.splitlines()[-1])
    assert path.is_relative_to(tmp_path / "cache") and path.parent.name == "2"
    assert path.read_bytes() == weights.find_weights("lungs-ccby").read_bytes()


@with_kaggle
def test_all_notebooks_run_in_their_order_each_complete_before_the_next(journey):
    assert journey.pushed["push"] == SLUGS
    procedures = [p for p, _ in journey.calls["push"]]
    ask, fetch = "GetKernelSessionStatus", "ListKernelSessionOutput"
    assert procedures == ["SaveKernel", ask, ask, fetch, *["SaveKernel", ask, fetch] * 4]


@with_kaggle
def test_notebooks_attach_what_they_read(journey):
    read = {r["slug"]: r.get("kernelDataSources", []) for p, r in journey.calls["push"] if p == "SaveKernel"}
    assert list(read.values()) == [
        [source.replace(kaggle.OWNER, "nobody", 1) for source in metadata["kernel_sources"]]
        for metadata in METADATA.values()
    ]
    assert read["nobody/lung-unet-04-inference"] == ["nobody/lung-unet-01-prep", "nobody/lung-unet-02-training"]
    models = {r["slug"]: r.get("modelDataSources") for p, r in journey.calls["push"] if p == "SaveKernel"}
    assert models["nobody/lung-unet-04-inference"] == ["nobody/unet-lung/pyTorch/lungs/1"]


@with_kaggle
def test_kaggle_gets_the_notebook_private_without_internet(journey):
    request = next(r for p, r in journey.calls["push"] if r.get("slug") == "nobody/lung-unet-02-training")
    assert json.loads(request["text"])["cells"][0]["source"] == "1" and request["newTitle"] == "Lung UNet 02 Training"
    assert request["machineShape"] == "NvidiaTeslaT4" and request["enableGpu"] and request["isPrivate"]
    assert request["enableInternet"] is False and "machineShape" not in next(
        r for p, r in journey.calls["push"] if p == "SaveKernel"
    )


@with_kaggle
def test_pushing_again_is_a_new_version(journey):
    assert "01_prep: version 2 pushed, https://www.kaggle.com/code/nobody/lung-unet-01-prep" in journey.done["push"].out


@with_kaggle
def test_outputs_are_fetched(journey):
    for name, slug in zip(NAMES, SLUGS):
        assert (Path("out") / name / "tables" / f"{slug}.csv").read_text() == f"ran,{slug}\n"
        assert f"{name}: complete after 0." in journey.done["push"].out
        assert f"{name}: outputs in {Path('out') / name}\n" in journey.done["push"].out


@with_kaggle
def test_kernel_that_fails_ends_the_chain_with_its_log(journey):
    assert journey.pushed["fail"] == [SLUGS[1]] and not Path("failed").exists()
    done = journey.done["fail"]
    assert (
        done.err.endswith("nobody/lung-unet-02-training ended with ERROR; the last lines of its log are above\n")
        and done.err.count("\n") == 1
    )
    assert done.out.splitlines()[-20:] == [f"line {n}" for n in range(20, 40)]


@with_kaggle
def test_without_waiting_nothing_is_asked_for(journey):
    assert [p for p, _ in journey.calls["no wait"]] == ["SaveKernel"]
    assert "04_inference: version 2 pushed" in journey.done["no wait"].out


@with_kaggle
def test_kaggles_own_push_takes_the_file_at_the_root(journey, tmp_path, server):
    (tmp_path / "notebooks").mkdir()
    shutil.copy("notebooks/02_training.ipynb", tmp_path / "notebooks")
    (tmp_path / "kernel-metadata.json").write_text(
        (ROOT / "kernel-metadata.json").read_text().replace(f'"{kaggle.OWNER}/', '"nobody/')
    )
    done = python("-m", "kaggle", "kernels", "push", "-p", str(tmp_path))
    assert done.returncode == 0 and done.stdout.startswith("Kernel version ") and "not valid" not in done.stdout
    assert server.calls[-1][1]["slug"] == "nobody/lung-unet-02-training"


# --- errors ----------------------------------------------------------------------------------------------------------


def error_of(*arguments, before: str = "pass") -> str:
    """The one line on stderr of a command that fails."""
    done = run(*arguments, before=before)
    assert (
        done.status == 1
        and len(done.err.splitlines()) == 1
        and done.err.startswith("unet-lung kaggle: ")
        and not done.out
    ), done
    return done.err


PUSH = ("push", "01", "--owner", "nobody")


@with_kaggle
@pytest.mark.parametrize(
    "variables", [{"KAGGLE_KEY": "wrong"}, {"KAGGLE_USERNAME": None, "KAGGLE_KEY": None}], ids=["refused", "none"]
)
def test_without_credentials_it_says_where_to_get_them(variables, monkeypatch, server):
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    assert "https://www.kaggle.com/settings/api" in error_of(*PUSH)


@with_kaggle
@pytest.mark.parametrize(
    "reply, said",
    [
        (
            (409, {"code": 409, "message": "A notebook with this title exists"}),
            "01_prep: Kaggle refused: A notebook with this title exists",
        ),
        (
            (200, {"error": "Maximum batch GPU session count of 2 reached."}),
            "01_prep: Maximum batch GPU session count of 2 reached.",
        ),
    ],
    ids=["409", "error with status 0"],
)
def test_push_that_the_server_refuses(reply, said, server):
    server.faults["SaveKernel"] = [reply]
    assert said in error_of(*PUSH)


@with_kaggle
def test_dataset_that_the_server_refuses(server):
    server.faults["CreateDataset"] = [(200, {"status": "error", "error": "You have no space left"})]
    assert "somebody/lung-unet-code: You have no space left" in error_of("publish", "--owner", "somebody")


@with_kaggle
def test_model_that_the_server_refuses(journey, server):
    server.faults["CreateModelInstance"] = [(200, {"error": "You have no space left", "code": 400})]
    lines = run("publish", "--owner", "nobody").err.splitlines()
    assert len(lines) == 1 and "nobody/unet-lung/pyTorch/lungs: " in lines[0] and "no space left" in lines[0]


@with_kaggle
def test_the_code_as_a_wheel(journey, server):
    built = "publish._build_wheel = lambda stage: (stage / 'unet_lung-1-py3-none-any.whl').write_bytes(b'wheel')"
    assert run("publish", "--owner", "wheels", "--wheel", before=built).status == 0
    assert server.datasets["wheels/lung-unet-code"] == [{"unet_lung-1-py3-none-any.whl": b"wheel"}]


@with_kaggle
def test_a_wheel_that_cannot_be_built_is_one_line_and_nothing_is_sent(server):
    before = len(server.calls)
    said = error_of("publish", "--owner", "wheels", "--wheel")  # in a clone without pyproject.toml
    assert "pip can't build the wheel" in said and "pyproject.toml" in said and len(server.calls) == before


@with_kaggle
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["push", "06", "--owner", "nobody"], "no notebook 06: choose of 01, 02, 03, 04, 05 or all"),
        (
            ["push", "01", "02", "--owner", "nobody", "--no-wait"],
            "02_training reads what another of these writes: push them without --no-wait",
        ),
    ],
)
def test_wrong_push_is_refused_before_kaggle_is_asked(arguments, said, server):
    before = len(server.calls)
    assert said in error_of(*arguments) and len(server.calls) == before


@with_kaggle
@pytest.mark.parametrize("command", ["push", "publish"])
def test_elsewhere_than_in_the_clone(command, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    assert "run this in the folder of the clone" in error_of(command, "--owner", "nobody")


@with_kaggle
def test_a_package_that_is_missing_is_one_line_with_pip(server):
    assert "pip install 'kaggle>=2.2.4,<3' six" in error_of(
        *PUSH, before="sys.modules['kaggle.api.kaggle_api_extended'] = None"
    )


def test_waiting_shows_one_line_on_a_terminal_and_forgives_a_few_failures(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def ask():
        reply = next(replies)
        if reply is OSError:
            raise OSError("bad gateway")
        return reply

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setattr(kaggle, "POLL", 0.12)  # s, longer than tqdm's interval between two looks
    replies = iter(["QUEUED", OSError, "RUNNING", OSError, OSError, "COMPLETE"])
    assert kaggle._wait("01_prep", ask) == "COMPLETE"
    assert "\r01_prep: running 00:00" in screen.getvalue() and "\n" not in screen.getvalue()
    monkeypatch.setattr(kaggle, "POLL", 0)
    replies = iter([OSError] * kaggle.PATIENCE)
    with pytest.raises(OSError, match="bad gateway"):
        kaggle._wait("01_prep", ask)


@with_kaggle
def test_the_stand_in_knew_everything_it_was_asked(journey, server):
    assert server.foreign == []
