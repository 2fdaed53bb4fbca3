"""web/: the page in headless Chromium says of a film what the package says, and asks no other machine for anything."""

import json
import re
import shutil

import numpy as np
import pytest
from web_browser import CHROMIUM, segment_in, served
from web_films import make_films

from kaggle_utils.infer import LungSegmenter, Unsegmented, read_checked, segment
from kaggle_utils.page.words import PLAIN, plain
from kaggle_utils.quality import estimate, measure
from web import make

LEAST_DICE = 0.999
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page as it is built, where there is all that it takes."""
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM:
        pytest.skip("no browser: apt-get install chromium")
    if not shutil.which("npm"):
        pytest.skip("no npm: apt-get install npm")
    try:
        make.fetch_libraries()
    except OSError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("web") / "site"
    make.make_page(out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def browser(site, folder):
    """Chromium, and the page's address in it, where what lies in the folder is served too."""
    from playwright.sync_api import sync_playwright

    options = {"executable_path": CHROMIUM, "timeout": 120_000, "args": ["--no-sandbox"]}
    with served(site, folder) as address, sync_playwright() as play, play.chromium.launch(**options) as chromium:
        yield chromium, address


@pytest.fixture
def page(browser):
    """A page of its own; its errors fail the test."""
    chromium, address = browser
    with chromium.new_context(viewport={"width": 1400, "height": 1000}) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        yield page
        assert not errors


# --- as the package --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(browser, folder):
    """Of a hundred films what the page's worker finds, and what the package does: by name."""
    chromium, address = browser
    films = make_films()
    for name, data in films.items():
        (folder / name).write_bytes(data)
    page = chromium.new_page()
    page.set_default_timeout(600_000)
    page.goto(address)
    found = segment_in(page, list(films))
    page.close()
    segmenter = LungSegmenter(backend="onnxruntime")
    return {name: (seen, by_package(name, data, segmenter)) for (name, data), seen in zip(films.items(), found)}


def by_package(name, data, segmenter):
    """Why there is no mask, or a mask for each convention with its measurements."""
    film = read_checked(data, name)
    if isinstance(film, Unsegmented):
        return film, {}
    masks = {}
    for convention, head in segmenter.conventions.items():
        own = segmenter.with_head(head)
        result = segment(film, own.probabilities([film.checked.image])[0], own)
        measured = None if isinstance(result, Unsegmented) else measure(result.upright, film.spacing_mm)
        masks[convention] = result, measured
    return film, masks


def masks_of(compared):
    """The page's and the package's results of each mask that both have."""
    for name, (seen, (_, masks)) in compared.items():
        for convention, (result, measured) in masks.items():
            if not isinstance(result, Unsegmented):
                yield f"{name}, {convention}", seen["masks"][convention], result, measured


def test_hundred_films_are_compared(compared):
    assert len(compared) >= 100
    assert sum(1 for _ in masks_of(compared)) >= 170


def test_same_films_are_refused_for_the_same_reasons(compared):
    for name, (seen, (film, masks)) in compared.items():
        said = film.error if isinstance(film, Unsegmented) else None
        assert seen.get("error") == (said and said.removeprefix(f"{name}: ")), (name, seen)
        for convention, (result, _) in masks.items():
            error = result.error.removeprefix(f"{name}: ") if isinstance(result, Unsegmented) else None
            assert seen["masks"][convention].get("error") == error, name


def test_masks_are_the_same(compared):
    for name, seen, result, _ in masks_of(compared):
        total = int(seen["mask"].sum()) + int(result.mask.sum())
        dice = 2 * int((seen["mask"] & result.mask).sum()) / total if total else 1.0
        assert dice >= LEAST_DICE, (name, dice)


def test_flags_and_reasons_are_the_same(compared):
    for name, seen, result, _ in masks_of(compared):
        quality, ours = seen["quality"], result.quality
        assert abs(quality["estimate"] - ours.estimate) < 0.005, name
        at_a_limit = min(abs(ours.estimate - limit) for limit in (estimate.OK, estimate.REJECT)) < 0.002
        assert at_a_limit or (quality["flag"], tuple(quality["reasons"])) == (ours.flag, ours.reasons), name


def test_notes_are_the_same_up_to_the_last_digit(compared):
    for name, seen, result, _ in masks_of(compared):
        assert [NUMBER.sub("#", note) for note in seen["notes"]] == [NUMBER.sub("#", note) for note in result.notes], (
            name
        )
        for note, ours in zip(seen["notes"], result.notes):
            found, expected = ([float(number) for number in NUMBER.findall(text)] for text in (note, ours))
            np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.1, err_msg=name)


def test_measurements_are_within_a_hundredth(compared):
    for name, seen, result, measured in masks_of(compared):
        for column, ours in measured.items():
            value = seen["measured"][column]
            value = np.nan if value is None else value
            # A position's hundredth is that of the film, a tilt's that of a right angle; and a pixel is a pixel.
            size = (
                max(result.upright.shape)
                if column.endswith(("_row", "_column"))
                else 90
                if column == "tilt_deg"
                else abs(ours)
            )
            near = max(0.01 * size, 1 if column.endswith("_px") else 0)
            assert np.isnan(ours) == np.isnan(value) and not abs(value - ours) > near, (name, column, ours, value)


# --- words -----------------------------------------------------------------------------------------------------------


def test_every_reason_and_every_correction_has_plain_words():
    for note in (*estimate.REASONS.values(), "no lung found", "a negative: inverted", "upside down: turned by 180°"):
        assert plain(note) != note
    assert plain("lungs cut by the frame (top, left)") == "The film ends before the lungs do, at its top, left edge."
    assert plain("something else") == "something else"


def test_plain_words_are_those_that_a_browser_understands_too():
    for pattern, text in PLAIN.items():
        assert not re.search(r"\(\?[^:]|\\[AZg]", pattern)
        assert max(map(int, re.findall(r"\\(\d)", text)), default=0) <= re.compile(pattern).groups


@pytest.mark.parametrize("weights", ["lungs", "lungs-ccby"])
def test_page_has_the_conventions_of_the_weights_each_with_its_estimate(weights):
    segmenter = LungSegmenter(weights)
    found = make.find_conventions(segmenter.header)
    heads = {convention: segmenter.heads[each["channel"]] for convention, each in found.items()}
    assert heads == segmenter.conventions
    for convention, head in segmenter.conventions.items():
        assert found[convention]["fit"] == segmenter.with_head(head).quality


def test_lock_names_no_registry():
    lock = json.loads((make.HERE / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
