"""web/: the page in headless Chromium says of a film what the package says, and asks no other machine for anything."""

import base64
import json
import os
import re
import shutil
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from dicoms import LOSSLESS, dicom
from pydicom import uid
from web_browser import CHROMIUM, segment_in, served
from web_films import make_films

from kaggle_utils.image import encode_image
from kaggle_utils.infer import LungSegmenter, Unsegmented, read_checked, segment
from kaggle_utils.page.words import PLAIN, plain
from kaggle_utils.quality import MEASUREMENTS, flags, measure
from kaggle_utils.synthetic import AppearanceModel
from kaggle_utils.tables import read_csv
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
def play(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield play


@pytest.fixture(scope="module")
def browser(play, site, folder):
    """Chromium, and the page's address in it, where what lies in the folder is served too."""
    options = {"executable_path": CHROMIUM, "timeout": 120_000, "args": ["--no-sandbox"]}
    with served(site, folder) as address, play.chromium.launch(**options) as chromium:
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
def segmenter():
    return LungSegmenter(backend="onnxruntime")


@pytest.fixture(scope="module")
def compared(browser, folder, segmenter):
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


def dice(pred, truth):
    total = int(pred.sum()) + int(truth.sum())
    return 2 * int((pred & truth).sum()) / total if total else 1.0


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
        found = dice(seen["mask"], result.mask)
        assert found >= LEAST_DICE, (name, found)


def test_flags_and_reasons_are_the_same(compared):
    for name, seen, result, _ in masks_of(compared):
        quality, ours = seen["quality"], result.quality
        assert abs(quality["estimate"] - ours.estimate) < 0.005, name
        at_a_limit = min(abs(ours.estimate - limit) for limit in (flags.OK, flags.REJECT)) < 0.002
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


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def radiograph():
    return AppearanceModel.load().film(2, 5, size=512).image


def pick(page, *files):
    """Gives the page files as a reader picks them: each a name and bytes."""
    page.set_input_files("#files", [{"name": name, "mimeType": "", "buffer": data} for name, data in files])


def png(image):
    return encode_image(image, ".png")


def drop(page, *paths):
    """Drops files or folders on the page as a reader does."""
    chromium = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        chromium.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})


def save_as(page, label):
    """What a button of the page saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return Path(download.value.path()).read_bytes()


KINDS = {
    "film.png": png,
    "deep.png": lambda image: png(image.astype(np.uint16) * 9 + 300),
    "film.jpg": lambda image: encode_image(image, ".jpg"),
    "film.webp": lambda image: encode_image(image, ".webp"),
    "film.dcm": lambda image: dicom(image, PixelSpacing=[0.7, 0.7]),
    "lossless.dcm": lambda image: dicom(image, LOSSLESS["JPEG lossless"], PixelSpacing=[0.7, 0.7]),
    "ls.dcm": lambda image: dicom(image, LOSSLESS["JPEG-LS"], PixelSpacing=[0.7, 0.7]),
    "2000.dcm": lambda image: dicom(image, LOSSLESS["JPEG 2000"], PixelSpacing=[0.7, 0.7]),
    "runs.dcm": lambda image: dicom(255 - image, LOSSLESS["RLE"], photometric="MONOCHROME1", PixelSpacing=[0.7, 0.7]),
}


@pytest.mark.parametrize("name", KINDS)
def test_dropped_file_of_each_kind_has_the_mask_and_area_of_the_package(page, tmp_path, radiograph, segmenter, name):
    data = KINDS[name](radiograph)
    (tmp_path / name).write_bytes(data)
    drop(page, tmp_path / name)
    report = page.locator("article.report")
    report.wait_for()
    assert report.locator("h2").inner_text() == name
    _, masks = by_package(name, data, segmenter)
    ours, measured = masks["lung-field"]
    assert dice(decoded(save_as(page, "Mask (PNG)")) // 255, ours.mask) >= LEAST_DICE
    row, right = report.locator("tbody tr").first.inner_text().split("\t")[:2]
    in_cm = name.endswith(".dcm")
    assert row == ("Area, cm²" if in_cm else "Area, px")
    area = measured["right_area_mm2"] / 100 if in_cm else measured["right_area_px"]
    assert float(right.replace(",", "")) == pytest.approx(area, rel=0.01)


def test_dropped_folder_is_listed_with_what_lies_in_its_folders(page, tmp_path, radiograph):
    (tmp_path / "films/deeper").mkdir(parents=True)
    (tmp_path / "films/a.png").write_bytes(png(radiograph))
    (tmp_path / "films/deeper/b.dcm").write_bytes(dicom(radiograph))
    drop(page, tmp_path / "films")
    page.locator("#status", has_text="2 of 2 films are done").wait_for()
    names = page.locator("#films button span:first-child").all_inner_texts()
    assert sorted(names) == ["a.png", "b.dcm"]


def test_pasted_picture_is_outlined(browser, radiograph):
    chromium, address = browser
    with chromium.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        page = context.new_page()
        page.goto(address)
        page.evaluate(
            """async (film) => {
              const bytes = Uint8Array.from(atob(film), (letter) => letter.charCodeAt(0));
              const blob = new Blob([bytes], {type: "image/png"});
              await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
            }""",
            base64.b64encode(png(radiograph)).decode(),
        )
        page.keyboard.press("Control+V")
        page.locator("article.report").wait_for(timeout=120_000)


def test_keyboard_alone_takes_an_example_another_convention_and_opacity(page):
    page.locator("#status", has_text="Ready.").wait_for()
    reached = tab_to(page, "document.activeElement.closest('#examples')")
    assert {"files", "folder"} <= reached  # what is picked with a mouse is on the way
    page.keyboard.press("Enter")
    page.locator("article.report").wait_for()
    page.locator("#status", has_text=re.compile("^$")).wait_for(state="attached")
    tab_to(page, "document.activeElement.name === 'convention'")
    page.keyboard.press("ArrowRight")
    page.get_by_text("The lungs, with what the heart hides.").wait_for()
    before = pixels(page)
    tab_to(page, "document.activeElement.id === 'opacity'")
    page.keyboard.press("End")
    assert (pixels(page) != before).any()
    with page.expect_download():
        tab_to(page, "document.activeElement.textContent === 'Mask (PNG)'")
        page.keyboard.press("Enter")


def tab_to(page, is_there):
    """Moves the focus on until something is true; the names of what it passed, each of which shows that it has it."""
    passed = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        passed.add(page.evaluate("document.activeElement.id"))
        shown = "getComputedStyle(document.activeElement.closest('.button') ?? document.activeElement).outlineStyle"
        assert page.evaluate(shown) != "none"
        if page.evaluate(f"!!({is_there})"):
            return passed
    raise AssertionError(f"the keyboard doesn't reach it: {is_there}")


def test_example_is_outlined_in_two_colours_that_opacity_fades(page):
    page.locator("#examples button").first.click()
    page.locator("article.report").wait_for()
    assert {"#e69f00", "#56b4e9"} <= colours(page)
    for side, colour in (("right", "rgb(230, 159, 0)"), ("left", "rgb(86, 180, 233)")):  # the same in the key
        assert page.locator(f".key.{side}").evaluate("(key) => getComputedStyle(key).backgroundColor") == colour
    page.locator("#opacity").fill("100")
    faded = pixels(page)
    page.locator("#opacity").fill("0")
    assert (pixels(page) != faded).any(-1).mean() > 0.15  # of the picture is lung


def colours(page):
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels(page).reshape(-1, 3), axis=0)}


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def pixels(page):
    page.wait_for_timeout(200)  # until it is painted
    data = page.evaluate("document.querySelector('#result canvas').toDataURL('image/png').split(',')[1]")
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_heart_changes_mask_and_numbers(page):
    page.locator("#examples button").nth(3).click()
    report = page.locator("article.report")
    report.wait_for()
    page.locator("#status", has_text=re.compile("^$")).wait_for(state="attached")
    without = report.inner_text()
    page.get_by_label("With the heart").check()
    report.get_by_text("The lungs, with what the heart hides.").wait_for()
    assert report.inner_text() != without


def test_downloads_are_mask_overlay_and_table(page, radiograph):
    pick(page, ("=a film.png", png(radiograph)))
    page.locator("article.report").wait_for()
    mask, overlay = (decoded(save_as(page, label)) for label in ("Mask (PNG)", "Overlay (PNG)"))
    assert mask.shape == radiograph.shape and set(np.unique(mask)) == {0, 255}
    assert overlay.shape[:2] == radiograph.shape
    head, row = save_as(page, "Measurements (CSV)").decode().splitlines()
    assert head == ",".join(("name", *MEASUREMENTS)) and row.startswith("'=a film,2,")


def test_folder_is_listed_and_saved_as_a_table_and_an_archive(page, radiograph):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    pick(page, ("a.png", png(radiograph)), ("b.png", png(noise)), ("a.jpg", encode_image(radiograph, ".jpg")))
    page.locator("#status", has_text="3 of 3 films are done").wait_for()
    assert page.locator("#films button").count() == 3
    page.locator("#films button").nth(1).click()
    page.locator(".refusal", has_text="b.png").wait_for()
    with page.expect_download() as table:
        page.get_by_role("button", name="All measurements").click()
    rows = read_csv(Path(table.value.path()))
    assert rows["name"].tolist() == ["a", "b", "a"] and rows["flag"].tolist()[::2] == ["ok", "ok"]
    with page.expect_download() as archive:
        page.get_by_role("button", name="All masks").click()
    with ZipFile(archive.value.path()) as masks:
        assert masks.namelist() == ["a.png", "a_2.png"] and masks.testzip() is None


def big():
    film = AppearanceModel.load().film(2, 5, size=512).image
    return png(cv2.resize(film, (4000, 5000)))


def bomb():
    """A PNG of a few hundred kilobytes whose pixels unpack to far more than it declares."""
    packed = zlib.compress(bytes(300_000_000), 9)
    head = struct.pack(">IIBBBBB", 100, 100, 8, 0, 0, 0, 0)
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def declared_bomb():
    return bomb()[:16] + struct.pack(">II", 60_000, 60_000) + bomb()[24:]


def flipped(data):
    """Another byte in the middle of a file."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


BAD = {
    "empty.png": (lambda: b"", "the file is empty"),
    "paper.pdf": (lambda: b"%PDF-1.7\n" + bytes(2000), "not an image"),
    "slice.dcm": (lambda: dicom(np.zeros((64, 64), np.uint16), Modality="CT"), "modality CT"),
    "bomb.png": (bomb, "many more pixels than it declares"),
    "declared.png": (declared_bomb, "60000 x 60000 pixels, more than 64 million"),
    "half.png": (lambda: png(np.arange(40_000, dtype=np.uint8).reshape(200, 200))[:-100], "truncated"),
    "bent.png": (lambda: flipped(png(np.arange(40_000, dtype=np.uint8).reshape(200, 200))), "damaged in the middle"),
    "half.jpg": (lambda: encode_image(np.eye(200, dtype=np.uint8) * 255, ".jpg")[:-100], "truncated"),
    "twelve.dcm": (
        lambda: dicom(
            np.zeros((48, 64), np.uint16),
            uid.JPEGExtended12Bit,
            bits=12,
            frame=b"\xff\xd8\xff\xc1\0\x08\x0c\0\x30\0\x40\0\xff\xda\xff\xd9",
        ),
        "JPEG Extended of 12 bits is not read: convert it",
    ),
    "half.dcm": (lambda: dicom(np.zeros((64, 64), np.uint16))[:-500], "damaged DICOM"),
    "mask.png": (lambda: png(np.eye(200, dtype=np.uint8) * 255), "a mask or a drawing"),
    "noise.png": (
        lambda: png(np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)),
        "no frontal chest film",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_film_gets_a_sentence_and_the_next_film_is_segmented(page, radiograph, name):
    make_file, sentence = BAD[name]
    pick(page, (name, make_file()))
    page.locator(".refusal", has_text=sentence).wait_for()
    pick(page, ("film.png", png(radiograph)))
    page.locator("article.report").wait_for()


def test_film_that_comes_before_the_page_knows_its_words_is_segmented(browser, radiograph):
    """A slow network: nobody would see why the film that was picked is nowhere."""
    chromium, address = browser
    with chromium.new_context() as context:
        page, held = context.new_page(), []
        page.route("**/model.json", lambda route: held.append(route))
        with page.expect_request("**/model.json"):
            page.goto(address)
        pick(page, ("film.png", png(radiograph)))
        page.wait_for_timeout(200)
        for route in held:
            route.continue_()
        page.unroute("**/model.json")
        page.locator("article.report").wait_for(timeout=60_000)


def test_film_of_20_megapixels_is_outlined(page):
    pick(page, ("large.png", big()))
    page.locator("article.report", has_text="4000 × 5000 px").wait_for()


def test_page_asks_its_own_host_alone_and_works_without_one(browser, radiograph):
    chromium, address = browser
    with chromium.new_context() as context:
        asked = []
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(address)
        page.locator("#status", has_text="on one thread").wait_for(timeout=120_000)
        pick(page, ("film.dcm", dicom(radiograph, LOSSLESS["JPEG 2000"])))
        page.locator("article.report").wait_for(timeout=120_000)
        assert all(url.startswith((address, f"blob:{address}", "data:")) for url in asked), asked
        assert any("openjpeg" in url for url in asked)  # what the worker asks for is seen too
        page.evaluate("navigator.serviceWorker.ready.then(() => 1)")
        assert not any("gpu" in url for url in asked + page.evaluate(KEPT))  # there is no graphics card
        with context.new_page() as other:
            assert other.goto(f"{address}examples").url == f"{address}examples/"  # where the server sends it on
        context.set_offline(True)
        page.reload()
        # From now on the page is isolated, whatever its server sends, and computes with threads.
        page.get_by_text("on one thread" if os.cpu_count() == 1 else " threads of ").wait_for(timeout=120_000)
        assert page.evaluate("crossOriginIsolated")
        pick(page, ("film.png", png(radiograph)))
        page.locator("article.report").wait_for(timeout=120_000)
        assert all(url.startswith((address, f"blob:{address}", "data:")) for url in asked), asked


# --- on a graphics card ----------------------------------------------------------------------------------------------

# The addresses of what the page keeps for when there is no network.
KEPT = """async () => {
  const found = await Promise.all((await caches.keys()).map(async (name) => (await caches.open(name)).keys()));
  return found.flat().map(({url}) => url);
}"""
SOFTWARE = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")  # an adapter without a card, and slow
# The module that computes on a card. Its calls are seen among the requests: it compiles, it is tried, it gets films.
CARD = """export async function openOnCard(...files) {
  const run = await (%s)(...files);
  let calls = 0;
  return (pixels) => { fetch(new URL("call-" + ++calls, import.meta.url)); return run(pixels, calls); };
}"""


@contextmanager
def with_card(play, site, tmp_path, wish="", module=None, size=None):
    """A page in a browser with a card, for which it has a module of its own; and the addresses that it asks for."""
    own = tmp_path / "site"
    shutil.copytree(site, own)
    (own / "gpu.js").rename(own / "gpu_real.js")
    (own / "gpu.js").write_text(CARD % (module or '(await import("./gpu_real.js")).openOnCard'))
    model = json.loads((own / "model.json").read_text())
    (own / "model.json").write_text(json.dumps({**model, "size": size or model["size"]}))
    options = {"executable_path": CHROMIUM, "timeout": 120_000, "args": ["--no-sandbox", *SOFTWARE]}
    with served(own, tmp_path) as address, play.chromium.launch(**options) as chromium:
        page, asked = chromium.new_page(), []
        page.context.on("request", lambda request: asked.append(request.url.removeprefix(address)))
        page.set_default_timeout(300_000)
        page.goto(f"{address}?gpu={wish}")
        yield page, asked


def outline(page, data):
    """Has the page outline a film; its mask."""
    pick(page, ("film.png", data))
    page.locator("article.report").wait_for()
    page.locator("#status", has_text=re.compile("^(?!film.png)")).wait_for(state="attached")
    return decoded(save_as(page, "Mask (PNG)")) // 255


def called(page, asked, times):
    while f"call-{times}" not in asked:
        page.wait_for_timeout(100)


LOSERS = {
    "other lungs": "() => (pixels) => Promise.resolve(new Float32Array(3 * pixels.length).fill(1))",
    "late": "() => (pixels, calls) => (calls > 1 ? new Promise(() => {}) : null)",
    "broken": "() => (pixels, calls) => (calls > 1 ? Promise.reject(new Error()) : null)",
}


@pytest.mark.parametrize("module", LOSERS.values(), ids=LOSERS)
def test_card_that_loses_its_trial_computes_no_film(play, site, tmp_path, radiograph, module):
    with with_card(play, site, tmp_path, "software", module) as (page, asked):
        called(page, asked, 1)
        masks = [outline(page, png(radiograph)) for _ in range(3)]
        assert "call-2" in asked and "call-3" not in asked
        assert page.locator("#status").inner_text() == "" and (masks[0] == masks[2]).all()


def test_card_that_is_but_software_is_left_alone(play, site, tmp_path, radiograph):
    with with_card(play, site, tmp_path) as (page, asked):
        page.locator("#status", has_text="Ready. The network runs on").wait_for()
        outline(page, png(radiograph))
        assert not any(name.startswith(("gpu", "call")) for name in asked)


@pytest.mark.slow
def test_card_that_wins_finds_the_same_lungs_and_the_processor_goes_on_when_it_fails(play, site, tmp_path, radiograph):
    module = """async (...files) => {
      const run = await (await import("./gpu_real.js")).openOnCard(...files);
      return (pixels, calls) => (calls > 3 ? Promise.reject(new Error("lost")) : run(pixels));
    }"""
    with with_card(play, site, tmp_path, "forced", module, size=128) as (page, asked):
        page.locator("#status", has_text="Ready. The network runs on").wait_for()
        before = outline(page, png(radiograph))
        page.get_by_text("The network runs on this computer's graphics card from now on.").wait_for()
        on_card = outline(page, png(radiograph))
        assert "call-3" in asked and dice(on_card, before) >= LEAST_DICE
        after = outline(page, png(radiograph))
        page.get_by_text("of this computer from now on.").wait_for()
        assert "call-4" in asked and (after == before).all()
        page.evaluate("navigator.serviceWorker.ready.then(() => 1)")
        asked.clear()
        page.reload()
        called(page, asked, 1)
        assert {"gpu.bin", "gpu.js"} <= {url.rpartition("/")[2] for url in page.evaluate(KEPT)}


@pytest.mark.slow
def test_memory_of_a_hundred_films_stays_flat(play, site, tmp_path, radiograph):
    pytest.importorskip("psutil", reason="pip install psutil")
    from benchmarks.web import in_a_row

    (tmp_path / "film.png").write_bytes(png(cv2.resize(radiograph, (1024, 1024))))
    with served(site, tmp_path) as address:
        found = in_a_row(play, address, tmp_path / "film.png", 100)
    assert found["growth_mb"] < 150  # a picture has 4 MB, a mask 1


def test_page_that_is_opened_as_a_file_says_how_to_serve_it(browser, site):
    chromium, _ = browser
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto((site / "index.html").as_uri())
        page.locator("#status", has_text="python -m http.server").wait_for()
        assert not page.locator("#drop").is_visible()


def test_policy_keeps_page_and_worker_from_other_hosts(page):
    ask = "fetch('http://127.0.0.2:9/').then(() => 'sent', () => 'kept')"
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    assert page.evaluate(ask) == "kept"
    in_worker = f"onmessage = () => {ask}.then((answer) => postMessage(answer))"
    assert (
        page.evaluate(
            """(source) => new Promise((resolve) => {
              const worker = new Worker(URL.createObjectURL(new Blob([source])));
              worker.onmessage = ({data}) => resolve(data);
              worker.postMessage(0);
            })""",
            in_worker,
        )
        == "kept"
    )
    assert sum("Content Security Policy" in text for text in refused) >= 2


def test_page_fits_a_phone_and_every_control_has_a_name(browser, radiograph):
    chromium, address = browser
    with chromium.new_context(viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        page.goto(address)
        pick(page, ("a very long name of a film that would not fit a phone at all.png", png(radiograph)))
        page.locator("article.report").wait_for(timeout=120_000)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        top = page.locator("article.report canvas").bounding_box()["y"]
        assert 0 <= top < 0.75 * 844  # it is in sight, though it lies below all else
        for role in ("button", "radio", "slider", "img"):
            named = page.get_by_role(role, name=re.compile("."))
            assert named.count() == page.get_by_role(role).count() > 0, role


# --- words -----------------------------------------------------------------------------------------------------------


def test_every_reason_and_every_correction_has_plain_words():
    for note in (*flags.REASONS.values(), "no lung found", "a negative: inverted", "upside down: turned by 180°"):
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
