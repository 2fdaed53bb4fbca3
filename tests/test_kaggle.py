"""Kaggle: metadata and its check; Kaggle's own command line against a stand-in on loopback, which is all that it can reach."""

import contextlib
import io
import json
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
from kaggle_utils.cli import main
from kaggle_utils.kaggle.metadata import FILE, KERNELS, OWNER, choose, derive, problems, read_metadata

ROOT = Path(__file__).parents[1]
NOTEBOOK = {"cells": [{"cell_type": "code", "source": ["1"], "metadata": {}, "outputs": [], "execution_count": None}],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            "nbformat": 4, "nbformat_minor": 5}
SLUGS = [kernel.ref("nobody").split("/")[1] for kernel in KERNELS.values()]


def missing() -> str:
    """Why these tests can't run here; not by an import, which would log in."""
    if sys.version_info < (3, 11):
        return "Kaggle's command line needs Python 3.11"
    try:
        version("kaggle"), version("six")
    except PackageNotFoundError as error:
        return f"{error}: pip install -e '.[dev]'"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "all there")
WALLS = """
import socket, requests.utils as u, kagglesdk.kaggle_env as e
print(e.get_endpoint(e.get_env()))
for url in ("http://localhost/api", "https://api.kaggle.com", "https://www.kaggle.com"):
    print(u.select_proxy(url, u.get_environ_proxies(url)))
for reach in (lambda: socket.create_connection(("192.0.2.1", 443), 1), lambda: socket.getaddrinfo("kaggle.invalid", 443)):
    try:
        print("reached", reach())
    except OSError as error:
        print(error)
"""


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """The stand-in, and around every test of this module the fence, in a clone with notebooks of one cell."""
    clone, server = tmp_path_factory.mktemp("clone"), Kaggle()
    shutil.copy(ROOT / FILE, clone)
    (clone / "notebooks").mkdir()
    for kernel in KERNELS.values():
        kernel.path(clone).write_text(json.dumps(NOTEBOOK))
    for name in ("kaggle_utils", "results", "LICENSE"):
        (clone / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(tmp_path_factory.mktemp("fence"), server).items():
            patch.delenv(name, raising=False) if value is None else patch.setenv(name, value)
        patch.setattr(kaggle, "POLL", 0)
        patch.chdir(clone)
        dead = "http://127.0.0.1:9"
        assert python("-c", WALLS).stdout.splitlines() == [  # no test runs unless every wall stands
            "http://localhost", f"http://127.0.0.1:{server.server_port}", dead, dead,
            "fenced in: 192.0.2.1 is not loopback", "fenced in: kaggle.invalid is not loopback"]
        yield server
    server.shutdown()


def run(*arguments) -> SimpleNamespace:
    """A command's status, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["kaggle", *arguments])
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)


# --- nothing leaves the machine --------------------------------------------------------------------------------------

@pytest.mark.parametrize("gone, said", [(["KAGGLE_API_ENVIRONMENT"], "127.0.0.1"),
                                        (["KAGGLE_API_ENVIRONMENT", "https_proxy", "HTTPS_PROXY"], "fenced in: api.kaggle.com")],
                         ids=["dead proxy", "fence"])
def test_command_line_that_turns_to_the_real_service_fails(gone, said, server, monkeypatch):
    for name in gone:
        monkeypatch.delenv(name)
    before = len(server.calls)
    done = python("-m", "kaggle", "kernels", "status", "nobody/some-kernel")
    assert done.returncode and said in done.stderr and len(server.calls) == before


# --- metadata --------------------------------------------------------------------------------------------------------

def test_file_at_the_root_is_good_for_a_T4_without_internet():
    metadata = read_metadata(FILE)
    assert metadata["code_file"] == "notebooks/02_training.ipynb" and metadata["machine_shape"] == "NvidiaTeslaT4"
    assert metadata["enable_gpu"] is metadata["is_private"] is True and metadata["enable_internet"] is False
    assert metadata["dataset_sources"] == ["kmader/pulmonary-chest-xray-abnormalities", "yoctoman/shcxr-lung-mask",
                                           f"{OWNER}/{kaggle.CODE.slug}"]


@pytest.mark.skipif(not any(kernel.path(ROOT).is_file() for kernel in KERNELS.values()), reason="no notebooks yet")
def test_notebooks_of_this_repository_can_be_pushed():
    assert len(kaggle.check(ROOT)) > 1


WRONG = {  # what is changed, what is said
    "a typo": ({"enable_gpuu": True}, "enable_gpuu: no such key, Kaggle would ignore it; did you mean enable_gpu?"),
    "an unknown key": ({"zzz": 1}, "zzz: no such key, Kaggle would ignore it; known are id, "),
    "U-Net in the title": ({"title": "Lung U-Net 02 Training"}, "lung-u-net-02-training at Kaggle, but id ends in lung-unet-02-training; a dash"),
    "another title": ({"title": "Something else"}, "title: 'Something else' becomes something-else"),
    "a short title": ({"title": "Lung"}, 'title: 5 to 50 characters, not "Lung"'),
    "a long title": ({"title": "L" * 51}, "title: 5 to 50 characters"),
    "no title": ({"title": None}, "title: 5 to 50 characters, not null"),
    "no owner": ({"id": "lung-unet-02-training"}, "id: owner/slug"),
    "a version": ({"id": "nobody/lung-unet-02-training/3"}, "id: owner/slug"),
    "a short slug": ({"id": "nobody/lung"}, "the slug of 5 characters or more"),
    "no such notebook": ({"code_file": "notebooks/20_training.ipynb"}, "code_file: no such file notebooks/20_training.ipynb"),
    "a folder": ({"code_file": "notebooks"}, "code_file: no such file notebooks"),
    "no code": ({"code_file": None}, "code_file: which notebook?"),
    "not a notebook": ({"code_file": "LICENSE"}, "code_file: LICENSE is not a notebook"),
    "JSON, no notebook": ({"code_file": FILE}, f"code_file: {FILE} is not a notebook"),
    "an integer": ({"enable_gpu": 1}, "enable_gpu: true or false, not 1"),
    "a zero": ({"is_private": 0}, "is_private: true or false, not 0"),
    "a word": ({"enable_tpu": "yes"}, 'enable_tpu: true or false, not "yes"'),
    "a language": ({"language": "Python"}, 'language: one of python, r, rmarkdown, not "Python"'),
    "a type": ({"kernel_type": "book"}, "kernel_type: one of script, notebook"),
    "an image": ({"docker_image_pinning_type": "new"}, "docker_image_pinning_type: one of original, latest"),
    "a string of sources": ({"dataset_sources": "kmader/films"}, "dataset_sources: a list, each entry owner/slug"),
    "a dataset without owner": ({"dataset_sources": ["films"]}, 'dataset_sources: owner/slug or owner/slug/version, not "films"'),
    "a dataset too deep": ({"dataset_sources": ["a/b/1/2"]}, 'not "a/b/1/2"'),
    "a dataset's address": ({"dataset_sources": ["https://www.kaggle.com/datasets/a/b"]}, "dataset_sources: owner/slug"),
    "a number": ({"dataset_sources": [3]}, "dataset_sources: owner/slug or owner/slug/version, not 3"),
    "a kernel's short slug": ({"kernel_sources": ["nobody/prep"]}, "kernel_sources: owner/slug"),
    "a model without version": ({"model_sources": ["a/b/pytorch/c"]}, "model_sources: owner/model/framework/variation/version"),
    "a competition's address": ({"competition_sources": ["c/tb"]}, "competition_sources: a competition's slug"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_key(case):
    change, said = WRONG[case]
    found = problems(json.loads(Path(FILE).read_text()) | change, Path("."))
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize("key", ["language", "kernel_type", "enable_internet", "title", "id", "code_file"])
def test_a_key_that_is_missing_is_said(key):
    metadata = json.loads(Path(FILE).read_text())
    del metadata[key]
    assert [found for found in problems(metadata, Path(".")) if found.startswith(f"{key}: ")]


def test_notebook_without_a_kernel_is_said(tmp_path):
    (tmp_path / "n.ipynb").write_text(json.dumps(NOTEBOOK | {"metadata": {}}))
    assert "metadata.kernelspec" in problems(json.loads(Path(FILE).read_text()) | {"code_file": "n.ipynb"}, tmp_path)[0]


def test_other_forms_that_kaggle_takes_are_good():
    metadata = json.loads(Path(FILE).read_text()) | {
        "is_private": "true", "enable_tpu": "false", "id_no": 7, "dataset_sources": ["a/b", "a/b/3"], "kernel_sources": ["a/prep1/2"],
        "model_sources": ["a/b/pytorch/c-d/1"], "competition_sources": ["titanic"], "keywords": ["lungs"],
        "docker_image_pinning_type": "latest"}
    assert problems(metadata, Path(".")) == []


@pytest.mark.parametrize("text, said", [("{", "not JSON"), ("[]", "found a list"), ('{"id": 1, "enable_gpu": 1}', "enable_gpu: true or false")])
def test_file_with_problems_is_named_with_all_of_them(text, said, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError) as error:
        read_metadata(tmp_path / FILE)
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path / FILE)) and "\n" not in str(error.value)


def test_notebook_02_is_pushed_as_the_root_says():
    root = read_metadata(FILE)
    assert derive(root, "02", OWNER) == root | {"code_file": str(Path("notebooks/02_training.ipynb").resolve()),
                                                "kernel_sources": [f"{OWNER}/lung-unet-01-prep"]}


def test_notebooks_read_earlier_ones_and_take_a_GPU_only_to_train():
    root = read_metadata(FILE) | {"id_no": 5}
    for number, kernel in KERNELS.items():
        metadata = derive(root, number, "nobody")
        assert all(other < number for other in kernel.reads) and kernel.notebook.startswith(number) and "id_no" not in metadata
        assert metadata["enable_gpu"] is kernel.gpu and ("machine_shape" in metadata) == kernel.gpu
        assert metadata["dataset_sources"][-1] == "nobody/lung-unet-code"


def test_all_means_those_that_are_there_in_their_order(tmp_path):
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(FileNotFoundError, match="none of 01_prep, "):
        choose(["all"], tmp_path)
    for name in ("04_inference", "02_training"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    assert choose(["all"], tmp_path) == ["02", "04"] and choose(["05", "01", "05"], tmp_path) == ["01", "05"]


# --- the whole way: refused, published, published again, pushed, failed ------------------------------------------------

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


@pytest.mark.parametrize("step, status", [("too early", 1), ("publish", 0), ("publish again", 0), ("push", 0), ("fail", 1),
                                          ("no wait", 0)])
def test_each_command_ends_with_its_status(journey, step, status):
    assert journey.done[step].status == status, journey.done[step].err
    assert (journey.done[step].err == "") == (status == 0)


def test_a_dataset_that_kaggle_refuses_is_an_error_with_advice(journey):
    lines = journey.done["too early"].err.splitlines()
    assert len(lines) == 1 and "not valid dataset sources" in lines[0] and lines[0].endswith("publish comes first")
    assert "nobody/lung-unet-code" in lines[0] and "kmader" not in lines[0]


def test_published_code_is_found_as_notebooks_look_for_it(journey, server, tmp_path):
    for name, data in server.datasets["nobody/lung-unet-code"][0].items():
        if name.endswith(".zip"):  # Kaggle unpacks it into a folder of its name
            zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path / Path(name).stem)
    (package,) = (path.parent for path in tmp_path.glob("**/kaggle_utils/__init__.py"))
    shipped = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"kaggle_utils/{name}" for name in ("__main__.py", "weights/lungs.safetensors", "assets/appearance.npz",
                                                "splits/suspect_masks.csv")} | {"results/protocols.csv"} <= shipped
    assert (package / "train.py").read_bytes() == (ROOT / "kaggle_utils" / "train.py").read_bytes()
    assert not [name for name in shipped if "__pycache__" in name]


def test_published_weights_and_licences(journey, server):
    files = server.datasets["nobody/lung-unet-weights"][0]
    assert set(files) == {"lungs.safetensors", "README.md"}
    assert files["lungs.safetensors"] == (ROOT / "kaggle_utils" / "weights" / "lungs.safetensors").read_bytes()
    made = {request["slug"]: request for request in server.asked("CreateDataset")}
    assert made["lung-unet-weights"]["licenseName"] == "CC-BY-NC-SA-4.0" and made["lung-unet-code"]["licenseName"] == "other"
    assert all(request["isPrivate"] for request in made.values()) and "CC BY-NC-SA" in made["lung-unet-code"]["description"]


def test_publishing_again_makes_new_versions(journey, server):
    assert [len(versions) for versions in server.datasets.values()] == [2, 2]
    assert not [p for p, _ in journey.calls["publish again"] if p == "CreateDataset"]
    assert [f"version {n} ready" in journey.done[step].out for n, step in ((1, "publish"), (2, "publish again"))] == [True, True]


def test_all_notebooks_run_in_their_order_each_complete_before_the_next(journey):
    assert journey.pushed["push"] == SLUGS
    procedures = [p for p, _ in journey.calls["push"]]
    ask, fetch = "GetKernelSessionStatus", "ListKernelSessionOutput"
    assert procedures == ["SaveKernel", ask, ask, fetch, *["SaveKernel", ask, fetch] * 4]


def test_notebooks_attach_what_they_read(journey):
    read = {r["slug"]: r.get("kernelDataSources", []) for p, r in journey.calls["push"] if p == "SaveKernel"}
    assert list(read.values()) == [[f"nobody/{SLUGS[int(n) - 1]}" for n in kernel.reads] for kernel in KERNELS.values()]
    assert read["nobody/lung-unet-04-inference"] == ["nobody/lung-unet-01-prep", "nobody/lung-unet-02-training"]


def test_kaggle_gets_the_notebook_private_without_internet(journey):
    request = next(r for p, r in journey.calls["push"] if r.get("slug") == "nobody/lung-unet-02-training")
    assert json.loads(request["text"])["cells"][0]["source"] == "1" and request["newTitle"] == "Lung UNet 02 Training"
    assert request["machineShape"] == "NvidiaTeslaT4" and request["enableGpu"] and request["isPrivate"]
    assert request["enableInternet"] is False and "machineShape" not in next(r for p, r in journey.calls["push"] if p == "SaveKernel")


def test_pushing_again_is_a_new_version(journey):
    assert "01_prep: version 2 pushed, https://www.kaggle.com/code/nobody/lung-unet-01-prep" in journey.done["push"].out


def test_outputs_are_fetched(journey):
    for kernel, slug in zip(KERNELS.values(), SLUGS):
        assert (Path("out") / kernel.notebook / "tables" / f"{slug}.csv").read_text() == f"ran,{slug}\n"
        assert f"{kernel.notebook}: complete after 0." in journey.done["push"].out
        assert f"{kernel.notebook}: outputs in {Path('out') / kernel.notebook}\n" in journey.done["push"].out


def test_kernel_that_fails_ends_the_chain_with_its_log(journey):
    assert journey.pushed["fail"] == [SLUGS[1]] and not Path("failed").exists()
    first, *log = journey.done["fail"].err.splitlines()
    assert "nobody/lung-unet-02-training ended with ERROR" in first and log == [f"line {n}" for n in range(20, 40)]


def test_without_waiting_nothing_is_asked_for(journey):
    assert [p for p, _ in journey.calls["no wait"]] == ["SaveKernel"]
    assert "04_inference: version 2 pushed" in journey.done["no wait"].out


def test_kaggles_own_push_takes_the_file_at_the_root(journey, tmp_path, server):
    (tmp_path / "notebooks").mkdir()
    shutil.copy("notebooks/02_training.ipynb", tmp_path / "notebooks")
    (tmp_path / FILE).write_text(Path(FILE).read_text().replace(OWNER, "nobody"))
    done = python("-m", "kaggle", "kernels", "push", "-p", str(tmp_path))
    assert done.returncode == 0 and done.stdout.startswith("Kernel version ") and "not valid" not in done.stdout
    assert server.calls[-1][1]["slug"] == "nobody/lung-unet-02-training"


# --- errors ----------------------------------------------------------------------------------------------------------

def error_of(*arguments) -> str:
    """The one line on stderr of a command that fails."""
    done = run(*arguments)
    assert done.status == 1 and len(done.err.splitlines()) == 1 and done.err.startswith("kaggle_utils kaggle: ") and not done.out
    return done.err


PUSH = ("push", "01", "--owner", "nobody")


@pytest.mark.parametrize("variables", [{"KAGGLE_KEY": "wrong"}, {"KAGGLE_USERNAME": None, "KAGGLE_KEY": None}], ids=["refused", "none"])
def test_without_credentials_it_says_where_to_get_them(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    assert "https://www.kaggle.com/settings/api" in error_of(*PUSH)


@pytest.mark.parametrize("reply, said", [
    ((409, {"code": 409, "message": "A notebook with this title exists"}), "kaggle kernels push: A notebook with this title exists"),
    ((200, {"error": "Maximum batch GPU session count of 2 reached."}), "Kernel push error: Maximum batch GPU session count of 2 reached.")],
    ids=["409", "error with status 0"])
def test_push_that_the_server_refuses(reply, said, server):
    server.faults["SaveKernel"] = [reply]
    assert said in error_of(*PUSH)


def test_dataset_that_the_server_refuses(server, monkeypatch):
    monkeypatch.setattr(kaggle, "CODE", kaggle.WEIGHTS)
    server.faults["CreateDataset"] = [(200, {"status": "error", "error": "You have no space left"})]
    assert "Dataset creation error: You have no space left" in error_of("publish", "--owner", "somebody")


@pytest.mark.parametrize("arguments, said", [
    (["push", "06", "--owner", "nobody"], "no kernel 06: choose of 01, 02, 03, 04, 05 or all"),
    (["push", "--owner", "no body"], "id: owner/slug"),
    (["push", "01", "02", "--owner", "nobody", "--no-wait"], "02 reads what another of these writes: push them without --no-wait")])
def test_wrong_push_is_refused_before_kaggle_is_asked(arguments, said, server):
    before = len(server.calls)
    assert said in error_of(*arguments) and len(server.calls) == before


@pytest.mark.parametrize("command", ["check", "push", "publish"])
def test_elsewhere_than_in_the_clone(command, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kaggle, "_dataset_status", lambda ref: {"current_version_number": 1})
    assert "run this in the folder of the clone" in error_of(command, *([] if command == "check" else ["--owner", "nobody"]))


@pytest.mark.parametrize("found", [None, "1.7.4.5"])
def test_command_line_that_is_missing_or_old_is_one_line_with_pip(found, monkeypatch):
    def version(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found
    monkeypatch.setattr(kaggle, "version", version)
    assert "pip install 'kaggle>=2.2.4,<3' six" in error_of(*PUSH)


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
    assert kaggle._wait("01_prep", ask, kaggle.ENDED) == "COMPLETE"
    assert "\r01_prep: running 00:00" in screen.getvalue() and "\n" not in screen.getvalue()
    monkeypatch.setattr(kaggle, "POLL", 0)
    replies = iter([OSError] * kaggle.PATIENCE)
    with pytest.raises(OSError, match="bad gateway"):
        kaggle._wait("01_prep", ask, kaggle.ENDED)


def test_check_names_what_it_checked():
    assert run("check").out == f"nothing wrong with {FILE}, 01_prep, 02_training, 03_tuning, 04_inference, 05_tb_screening\n"


@pytest.mark.parametrize("action", ["check", "publish", "push"])
def test_help_has_a_sentence_for_every_option(action, capsys):
    with pytest.raises(SystemExit) as end:
        main(["kaggle", action, "--help"])
    assert end.value.code == 0 and ("--owner OWNER  your name on Kaggle" in capsys.readouterr().out) == (action != "check")


def test_the_stand_in_knew_everything_it_was_asked(journey, server):
    assert server.foreign == []
