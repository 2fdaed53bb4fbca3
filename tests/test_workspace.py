"""A notebook's folders, on Kaggle, in a clone, or with nothing."""

import shutil
import sys

import pytest

from kaggle_utils.data import read_manifest
from kaggle_utils.files import find_weights
from kaggle_utils.kaggle import weights, workspace
from kaggle_utils.synthetic.model import write_raw


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_raw(folder, 12, seed=3, size=64)
    return folder


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch):
    monkeypatch.delenv("UNET_LUNG_INPUT", raising=False)
    monkeypatch.setattr(workspace, "CLONE", tmp_path / "clone")
    monkeypatch.setattr(workspace, "KAGGLE", tmp_path / "nowhere")
    return tmp_path / "clone"


@pytest.fixture
def kaggle(clone, tmp_path, monkeypatch):
    for name in ("input", "working"):
        (tmp_path / "kaggle" / name).mkdir(parents=True)
    monkeypatch.setattr(workspace, "KAGGLE", tmp_path / "kaggle")
    return tmp_path / "kaggle"


def test_with_nothing_films_are_drawn_once(clone, monkeypatch):
    place = workspace.open_workspace(films=9)
    assert place.synthetic and place.work == clone / "runs/notebooks/built_in" and "nobody" in str(place)
    monkeypatch.setattr(workspace, "write_raw", None)
    assert workspace.open_workspace(films=9) == place
    assert len(read_manifest(place.prepared())) == 9


def test_drawing_that_was_killed_is_done_again(clone, monkeypatch):
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr(workspace, "write_raw", lambda *args, **kwargs: 1 / 0)
        workspace.open_workspace()
    place = workspace.open_workspace(films=9)
    assert len(list(place.raw.rglob("*CXR_9*_[01].png"))) >= 9


def test_a_named_folder_comes_first(clone, drawn, kaggle, monkeypatch):
    monkeypatch.setenv("UNET_LUNG_INPUT", str(drawn))
    assert workspace.open_workspace() == workspace.Workspace(drawn, kaggle / "working", False)
    monkeypatch.setenv("UNET_LUNG_INPUT", str(kaggle))
    with pytest.raises(FileNotFoundError, match="no film of Montgomery"):
        workspace.open_workspace()
    monkeypatch.setenv("UNET_LUNG_INPUT", str(drawn))
    monkeypatch.setattr(workspace, "KAGGLE", clone / "nowhere")
    assert workspace.open_workspace().work.match(f"clone/runs/notebooks/{drawn.name}-*")


@pytest.mark.parametrize("mount", ["chest", "datasets/kmader/chest"])
def test_attached_sets_are_found_in_either_layout(kaggle, drawn, mount):
    shutil.copytree(drawn, kaggle / "input" / mount)
    place = workspace.open_workspace()
    assert (place.raw, place.work, place.synthetic) == (kaggle / "input", kaggle / "working", False)


def test_a_prepared_set_of_real_films_is_enough_and_synthetic_ones_are_not(kaggle, clone):
    folder = kaggle / "input" / "notebooks" / "somebody" / "lung-unet-01-prep" / "segmentation"
    folder.mkdir(parents=True)
    for name, synthetic in (("MCUCXR_9001_0", True), ("MCUCXR_0001_0", False)):
        (folder / "manifest.csv").write_text(f"name\n{name}\n")
        place = workspace.open_workspace(films=9)
        assert place.synthetic == synthetic and place.prepared() == folder


def test_an_interrupted_preparation_goes_on(drawn, kaggle):
    place = workspace.Workspace(drawn, kaggle / "working", False)
    (place.work / "segmentation" / "train").mkdir(parents=True)
    assert len(read_manifest(place.prepared())) == 12


def test_a_training_goes_on_from_an_attached_output(drawn, kaggle):
    place = workspace.Workspace(drawn, kaggle / "working", False)
    place.restore("training")
    assert not (place.work / "training").exists()
    attached = kaggle / "input" / "lung-unet-02-training" / "training"
    attached.mkdir(parents=True)
    for epoch in "12":
        (attached / "last.pt").write_text(epoch)
        place.restore("training")
        assert (place.work / "training" / "last.pt").read_text() == "1"  # what is there is newer


def test_on_kaggle_with_nothing_attached_films_are_drawn_into_the_output(kaggle):
    place = workspace.open_workspace(films=9)
    assert place.synthetic and place.work == kaggle / "working/built_in"


@pytest.mark.parametrize(
    "mount",
    ["lung-unet-01-prep", "notebooks/somebody/lung-unet-01-prep", "notebooks/somebody/lung-unet-01-prep/built_in"],
)
def test_an_earlier_kernels_output_is_found(kaggle, drawn, mount):
    place = workspace.Workspace(drawn, kaggle / "working", False)
    with pytest.raises(FileNotFoundError, match="run 02_training first"):
        place.find("training/best.safetensors", made_by="02_training")
    for folder in (kaggle / "input" / mount, place.work):
        (folder / "training").mkdir(parents=True)
        (folder / "training" / "best.safetensors").touch()
        assert (
            place.find("training/best.safetensors", made_by="02_training") == folder / "training" / "best.safetensors"
        )


def test_where_the_library_cannot_be_written_the_notebooks_folder_is_used(clone, drawn, tmp_path, monkeypatch):
    clone.write_text("a file, so that no folder can be made below it")
    monkeypatch.setenv("UNET_LUNG_INPUT", str(drawn))
    monkeypatch.chdir(tmp_path)
    assert workspace.open_workspace().work.match(f"{tmp_path.name}/runs/{drawn.name}-*")


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["unet-lung/pytorch", "models/somebody/unet-lung/pytorch"])
def test_weights_of_an_attached_model_are_taken_and_of_two_versions_the_newer(mount, kaggle, monkeypatch):
    monkeypatch.setattr(weights, "KAGGLE", kaggle)
    for version in (9, 10):
        path = kaggle / "input" / mount / "lungs" / str(version) / "lungs.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
    assert weights.find_model() == weights.find_model(owner="somebody") == path
    assert weights.find_model("lungs-ccby") == find_weights("lungs-ccby")


def test_without_a_model_and_an_owner_weights_are_those_of_the_package(kaggle, monkeypatch):
    monkeypatch.setattr(weights, "KAGGLE", kaggle)
    assert weights.find_model() == find_weights("lungs") and weights.find_model().is_file()


def test_weights_that_are_not_published_are_not_looked_for():
    with pytest.raises(ValueError, match="lung is no Kaggle Model of this project: choose of lungs, lungs-ccby"):
        weights.find_model("lung")


def test_kagglehub_that_is_missing_is_one_line_with_pip(kaggle, monkeypatch):
    monkeypatch.setattr(weights, "KAGGLE", kaggle)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ImportError, match=r"kagglehub is missing.*pip install 'kagglehub>=1'"):
        weights.find_model(owner="somebody")
