"""Journals: what was finished before a kill is neither lost nor done again, by predict and by screen."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from phantoms import phantom, write_raw

import kaggle_utils
from kaggle_utils.cli import main
from kaggle_utils.files import Journal
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.predictions import predict
from kaggle_utils.tb.screening import TBScreener, screen

N = 7


class Killed(BaseException):
    """Stands for the signal: nothing in the code may catch it."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = UNet(base_channels=2, depth=2)
    torch.nn.init.constant_(model.outc.bias, 3.0)  # lung wherever it isn't sure that there is none
    save_weights(path, model, {"size": 32, "sources": ["montgomery"]})
    return path


@pytest.fixture
def films(tmp_path):
    for n in range(N):
        write_raw(tmp_path / "films" / f"film{n}.png", phantom(96 + n, 80, seed=n).image)
    (tmp_path / "films" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return tmp_path / "films"


def counting(segmenter, fails_at=None):
    """The segmenter, and a list that gets the number of films of each batch that it is given; it dies in one of
    them."""
    seen, real = [], segmenter.probabilities

    def probabilities(films, *heads):
        if len(seen) == fails_at:
            raise Killed
        seen.append(len(films))
        return real(films, *heads)

    segmenter.probabilities = probabilities
    return segmenter, seen


def run(films, out, weights, fails_at=None, **options):
    segmenter, seen = counting(LungSegmenter(weights, device="cpu"), fails_at)
    try:
        return predict([films], out, segmenter, batch=2, force=True, **options), seen
    except Killed:
        return pd.read_csv(out / "predictions.csv"), seen


def tables(out):
    """What is in the results, the folder's own name left out."""
    return {path.name: path.read_text().replace(str(out), "OUT") for path in sorted(out.glob("*.csv"))}


@pytest.mark.parametrize("formats", [["png"], ["png", "coco"]], ids=" ".join)
def test_predict_goes_on_where_it_was_stopped(films, tmp_path, weights, formats):
    _, whole = run(films, tmp_path / "whole", weights, formats=formats)
    rows, before = run(films, tmp_path / "stopped", weights, fails_at=2, formats=formats)
    assert 0 < len(rows) < N + 1 and list((tmp_path / "stopped" / "masks").iterdir())
    table, after = run(films, tmp_path / "stopped", weights, formats=formats)
    assert sum(before) + sum(after) == sum(whole) == N and before and after
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole") and len(table) == N + 1
    if "coco" in formats:
        one, two = (pd.read_parquet(tmp_path / name / "coco.parquet") for name in ("whole", "stopped"))
        pd.testing.assert_frame_equal(one, two)
        assert len(one) >= N


def test_a_second_run_does_what_has_changed_alone(films, tmp_path, weights):
    out = tmp_path / "out"
    run(films, out, weights)
    before = tables(out)
    (out / "masks" / "film1.png").unlink()
    image = phantom(120, 100, seed=50).image
    write_raw(films / "film3.png", image)
    table, seen = run(films, out, weights)
    assert sum(seen) == 2 and (out / "masks" / "film1.png").exists()
    assert table.set_index("name").loc["film3", ["height", "width"]].tolist() == [120, 100]
    assert tables(out) != before
    write_raw(films / "broken.png", image)
    table, seen = run(films, out, weights)
    assert sum(seen) == 1 and (table["error"] == "").all()


def test_other_settings_start_afresh(films, tmp_path, weights):
    run(films, tmp_path / "out", weights)
    _, seen = run(films, tmp_path / "out", weights, formats=["png", "coco"])
    assert sum(seen) == N and len(pd.read_parquet(tmp_path / "out" / "coco.parquet")) >= N


def test_screen_goes_on_where_it_was_stopped(films, tmp_path, monkeypatch):
    def screened(out, fails_at=None):
        screener = TBScreener(device="cpu")
        screener.segmenter, seen = counting(screener.segmenter, fails_at)
        try:
            screen([films], out, screener, batch=2)
        except Killed:
            assert 0 < len(pd.read_csv(out / "screening.csv")) < N + 1
        return sum(seen)

    for n in range(N):
        write_raw(films / f"film{n}.png", np.tile(phantom(96, 80, seed=n).image, (2, 2)))
    whole = screened(tmp_path / "whole")
    assert screened(tmp_path / "stopped", fails_at=1) + screened(tmp_path / "stopped") == whole
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole")


def command(films, out, weights):
    return [
        "predict",
        str(films),
        "--out",
        str(out),
        "--weights",
        str(weights),
        "--device",
        "cpu",
        "--force",
        "--batch-size",
        "1",
    ]


def segmented(films, out, weights, monkeypatch):
    """How many films the command segments now."""
    seen, real = [], LungSegmenter.probabilities
    with monkeypatch.context() as patched:
        patched.setattr(
            LungSegmenter,
            "probabilities",
            lambda self, films, *heads: seen.append(len(films)) or real(self, films, *heads),
        )
        assert main(command(films, out, weights)) == 3  # for the one that is broken
    return sum(seen)


def test_a_full_disk_ends_predict_in_a_line_and_the_same_command_goes_on(
    films, tmp_path, weights, full_disk, monkeypatch, capfd
):
    run(films, tmp_path / "whole", weights)
    out = tmp_path / "out"
    full_disk(6)  # the journal, mask and overlay of two films, and the third one's mask
    assert main(command(films, out, weights)) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"unet-lung predict: {out}") and said.endswith(
        "No space left on device: make room there; the same command resumes it\n"
    )
    assert said.count("\n") == 1 and not list(out.rglob(".*.part"))
    full_disk(None)
    assert segmented(films, out, weights, monkeypatch) == N - 2
    assert tables(out) == tables(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_journal_that_a_full_disk_cuts_is_named_and_the_same_command_goes_on(films, tmp_path, weights, monkeypatch):
    run(films, tmp_path / "whole", weights)
    opened = Path.open

    def full(path, mode="r", *rest, **options):
        return (
            open("/dev/full", mode)
            if (path.name, mode) == ("predictions.jsonl", "a")
            else opened(path, mode, *rest, **options)
        )

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left on device: .*predictions.jsonl"):
            run(films, tmp_path / "out", weights)
    run(films, tmp_path / "out", weights)
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_ctrl_c_ends_predict_in_a_line_and_the_same_command_goes_on(
    films, tmp_path, weights, ctrl_c, monkeypatch, capfd
):
    out = tmp_path / "out"
    ctrl_c(Journal, "add", calls=3)
    assert main(command(films, out, weights)) == 130
    assert capfd.readouterr().err == "unet-lung predict: stopped; the same command resumes it\n"
    assert set(pd.read_csv(out / "predictions.csv")["name"]) >= {"film0", "film1"}
    assert segmented(films, out, weights, monkeypatch) == N - 3


@pytest.mark.slow
def test_a_process_that_is_killed_loses_no_film_that_it_has_finished(films, tmp_path, weights):
    code = """
import os, signal, sys
from pathlib import Path
from kaggle_utils import files as journal
from kaggle_utils.cli import main
add, done = journal.Journal.add, []
def dies(self, *film, **found):
    add(self, *film, **found)
    done.append(film)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.add = dies
main(sys.argv[1:])
"""
    arguments = [
        "predict",
        str(films),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        str(weights),
        "--device",
        "cpu",
        "--force",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(kaggle_utils.__file__).parents[1])}
    assert (
        subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True).returncode == -9
    )
    segmenter, seen = counting(LungSegmenter(weights, device="cpu"))
    predict([films], tmp_path / "out", segmenter, force=True)
    assert sum(seen) == N - 3


def test_results_of_other_films_are_not_replaced(films, tmp_path, weights):
    out = tmp_path / "out"
    run(films, out, weights)
    before = {path.name: path.read_bytes() for path in out.glob("*/*.png")}
    write_raw(tmp_path / "others" / "film0.png", phantom(200, 180, seed=9).image)
    for formats in (["png"], ["png", "coco"]):  # other settings are no excuse
        with pytest.raises(
            ValueError,
            match=f"^{out}: results of {films / 'film0.png'} are there, which those of .*others/film0.png would "
            "replace",
        ):
            run(tmp_path / "others", out, weights, formats=formats)
    assert {path.name: path.read_bytes() for path in out.glob("*/*.png")} == before
    films.rename(tmp_path / "moved")
    table, seen = run(tmp_path / "moved", out, weights)
    assert len(table) == N + 1 and sum(seen) == N


def test_results_of_other_films_are_told_where_names_differ_in_case_alone(tmp_path):
    for name in ("a/Film.png", "b/film.png"):
        write_raw(tmp_path / name, phantom(40, 32, seed=len(name)).image)
        os.utime(tmp_path / name, ns=(0, ord(name[0])))
    Journal(tmp_path / "j.jsonl", {}, {"Film": tmp_path / "a" / "Film.png"}).add(
        "Film", tmp_path / "a" / "Film.png", found={}
    )
    with pytest.raises(ValueError, match="results of .*Film.png are there"):
        Journal(tmp_path / "j.jsonl", {}, {"film": tmp_path / "b" / "film.png"})


@pytest.mark.parametrize("now", ["unreadable", "blank"])
def test_a_film_that_gets_no_mask_any_more_keeps_no_old_one(films, tmp_path, weights, now):
    out = tmp_path / "out"
    segmenter = LungSegmenter(weights, device="cpu")
    predict([films], out, segmenter, force=True)
    assert (out / "masks" / "film1.png").exists()
    if now == "unreadable":
        (films / "film1.png").write_bytes(b"damaged since")
    else:
        write_raw(films / "film1.png", np.full((90, 80), 7, np.uint8))
    table = predict([films], out, segmenter, force=now == "unreadable").set_index("name")
    assert table.loc["film1", "error"] and not list(out.glob("*/film1.*"))
    assert bool(list(out.glob("masks/*"))) == (now == "unreadable")  # without force none of these is a chest film


def test_files_of_the_users_own_are_never_removed(films, tmp_path, weights):
    truth = tmp_path / "out" / "masks" / "film1.png"
    write_raw(truth, np.full((9, 9), 255, np.uint8))
    before = truth.read_bytes()
    for _ in range(2):
        run(films, tmp_path / "out", weights, formats=["coco"])
        (films / "film1.png").write_bytes(b"damaged since")
    assert truth.read_bytes() == before


def test_a_journal_that_names_other_files_removes_none(tmp_path):
    for name in ("film.png", "theirs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "out").mkdir()
    Journal(tmp_path / "out" / "j.jsonl", {}, {}).add("film", tmp_path / "film.png", found={}, outputs=["../theirs"])
    Journal(tmp_path / "out" / "j.jsonl", {}, {}).remove("film", ["masks/film.png"])
    assert (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]\n", '{"a": 1}\n{"film": "x"', '{"a": 1}\n3\n', '{"a": 1}\n{"film": "x"}\n', "\0\xff"]
)
def test_a_damaged_journal_is_begun_anew(tmp_path, text):
    (tmp_path / "j.jsonl").write_bytes(text.encode("latin-1"))
    film = tmp_path / "film.png"
    film.write_bytes(b"x")
    journal = Journal(tmp_path / "j.jsonl", {"a": 1}, {})
    assert journal.find("film", film) is None
    journal.add("film", film, found={"row": {}})
    assert Journal(tmp_path / "j.jsonl", {"a": 1}, {}).find("film", film) == {"row": {}}


def test_a_cut_last_line_costs_one_film(tmp_path):
    films = [tmp_path / name for name in "abc"]
    journal = Journal(tmp_path / "j.jsonl", {"sizes": (1, 2)}, {})
    for film in films:
        film.write_bytes(b"x")
        journal.add(film.name, film, found={"row": {"name": film.name}})
    (tmp_path / "j.jsonl").write_bytes((tmp_path / "j.jsonl").read_bytes()[:-9])
    again = Journal(tmp_path / "j.jsonl", {"sizes": (1, 2)}, {})
    assert [again.find(film.name, film) is None for film in films] == [False, False, True]
    assert again.find("other name", films[0]) is None


def test_a_second_run_into_the_folder_says_whose_rows_it_leaves_out(tmp_path, caplog):
    """--out has a default: this is anybody's second command."""
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    segmenter = LungSegmenter(tmp_path / "w.safetensors", device="cpu")
    for n in range(2):
        write_raw(tmp_path / f"film{n}.png", phantom(96, 80, n).image)
    predict([tmp_path / "film0.png"], tmp_path / "out", segmenter, force=True)
    assert not caplog.text
    predict([tmp_path / "film1.png"], tmp_path / "out", segmenter, force=True)
    assert "without the rows of 1 radiographs of an earlier run, whose masks stay" in caplog.text
    assert (tmp_path / "out" / "masks" / "film0.png").exists()
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["name"].tolist() == ["film1"]
