"""app.py: the page in a browser that reaches this machine alone, and reports without one."""

import csv
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from kaggle_utils import app as page_module
from kaggle_utils import image as files
from kaggle_utils.app import CAUTION, EXAMPLES, MAX_UPLOAD, report, serve
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.measure import measure
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.synthetic import AppearanceModel
from kaggle_utils.tb import TBScreener
from dicoms import dicom
from phantoms import phantom
from test_infer import DarkIsLung

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 180  # s, on a machine that trains meanwhile
# The command line, with a note of every host that its process asks for or connects to.
LAUNCH = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)
def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=log)
    elif event == "socket.getaddrinfo" and args[0]:
        print(args[0], file=log)
sys.addaudithook(hook)
from kaggle_utils.__main__ import main
sys.exit(main())
"""


class Server:
    """The page's process, in a temporary folder of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.temporary, self.hosts = f"http://127.0.0.1:{port}", folder / "tmp", folder / "hosts"
        self.temporary.mkdir()
        env = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "NO_PROXY": "*", "no_proxy": "*"}
        self.process = subprocess.Popen([sys.executable, "-c", LAUNCH, str(self.hosts), "app", "--port", str(port)], cwd=ROOT, env=env,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.line = self.process.stdout.readline()

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=PATIENCE)[0]

    def uploads(self) -> list[Path]:
        """What lies there besides the films to try, Gradio's copies of them, and the empty file it leaves of an upload."""
        return [path for path in self.temporary.rglob("*") if path.is_file() and path.stat().st_size and not path.name.startswith("nobody_")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed")
    server = Server(tmp_path_factory.mktemp("app"))
    assert server.line.startswith(server.address), server.line + server.stop()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs a browser: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play, play.chromium.launch(
            executable_path=CHROMIUM, timeout=PATIENCE * 1000,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]) as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    """The page, loaded; it fails a test whose page asked for anything that was not forbidden before it left the browser."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    asked, forbidden, errors = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: forbidden.append(request.url) if request.failure == "csp" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    page.wait_for_function(f"document.querySelectorAll('#examples img').length == {len(EXAMPLES)}")
    yield page
    others = {url for url in asked if not url.startswith((server.address, "data:", "blob:"))}
    page.context.close()
    assert not others - set(forbidden) and not errors


def drop(page, path: Path) -> None:
    page.set_input_files("#drop input[type=file]", path)


def download(page, text: str) -> tuple[str, bytes]:
    with page.expect_download() as info:
        page.get_by_text(text).click()
    return info.value.suggested_filename, Path(info.value.path()).read_bytes()


# --- in a browser ----------------------------------------------------------------------------------------------------

def test_page_says_what_it_is_not_and_fits_a_phone(page):
    assert CAUTION in page.inner_text("#head")
    page.locator("#examples button").first.click()
    page.wait_for_selector(".report")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [page.locator(part).bounding_box() for part in (".report figure", ".report > div")]
        assert (boxes[0]["x"] == boxes[1]["x"]) is (width == 390)  # one below the other, or beside it


def test_film_that_is_dropped_is_outlined_and_measured(page, server, tmp_path):
    film = AppearanceModel.load().film(7, 0, size=600, tb=0)
    files.write_image(tmp_path / "new film.png", film.image)
    drop(page, tmp_path / "new film.png")
    page.wait_for_selector(".report h2:text-is('new film.png')")
    name, data = download(page, "Mask (PNG)")
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    truth = LungSegmenter(device="cpu").masks([film.image])[0]
    assert name == "new film_mask.png" and set(np.unique(mask)) == {0, 255}
    assert mask.shape == truth.shape and (mask // 255 != truth).mean() < 1e-4
    found = measure(mask // 255)
    cells = {row[0]: row[1:] for row in (line.split("\t") for line in page.inner_text(".report table >> nth=0").splitlines())}
    assert cells["Area, px"] == [f"{found['right_area_px']:,}", f"{found['left_area_px']:,}"]
    assert page.inner_text("tr:has-text('Lungs found') td") == "2" and page.inner_text("tr:has-text('Film') >> nth=0").endswith("600 × 600 px")
    name, data = download(page, "Measurements (CSV)")
    row, = csv.DictReader(io.StringIO(data.decode()))
    assert name == "new film_measurements.csv" and row["name"] == "new film"
    assert row["right_area_px"] == str(found["right_area_px"]) and float(row["tilt_deg"]) == pytest.approx(found["tilt_deg"], abs=1e-4)
    assert page.locator("#drop input[type=file]").count(), "the next film can't be dropped"
    assert server.uploads() == []


def test_each_built_in_film_has_two_lungs(page):
    screener = TBScreener(device="cpu")
    for n, (seed, index, tb) in enumerate(EXAMPLES):
        page.locator("#examples button").nth(n).click()
        page.wait_for_selector(f".report h2:text-is('nobody_{n + 1}.png')")
        assert page.inner_text("tr:has-text('Lungs found') td") == "2"
        image = AppearanceModel.load().film(seed, index, size=512, tb=tb).image
        probability, said = page.inner_text("tr:has-text('Tuberculosis') td").split(" ", 1)
        assert float(probability) == pytest.approx(screener.probabilities([image], screener.segmenter.masks([image]))[0], abs=0.01)
        assert said == ("(suspect)" if float(probability) >= screener.threshold else "(not suspect)")


def test_dicom_film_is_measured_in_mm_with_its_notes(page, tmp_path):
    film = AppearanceModel.load().film(7, 1, size=512, tb=0)
    (tmp_path / "IM0001").write_bytes(dicom(255 - film.image, photometric="MONOCHROME1", ImagerPixelSpacing=[0.7, 0.7]))
    drop(page, tmp_path / "IM0001")
    page.wait_for_selector(".report h2:text-is('IM0001')")
    text = page.inner_text(".report")
    assert "Area, cm²" in text and "Height, mm" in text and "MONOCHROME1 inverted" in text and "spacing from ImagerPixelSpacing" in text


def test_broken_file_is_answered_with_the_readers_message(page, server, tmp_path):
    files.write_image(tmp_path / "whole.png", phantom().image)
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    (tmp_path / "letter.txt").write_text("Dear colleague")
    for name, message in (("half.png", "half.png: the file is truncated"), ("letter.txt", "letter.txt: not an image: it begins as no PNG")):
        drop(page, tmp_path / name)
        page.wait_for_function("message => document.querySelector('.refusal')?.innerText.startsWith(message)", arg=message)
        assert str(server.temporary) not in page.inner_text("body") and "Traceback" not in page.inner_text("body")
    assert server.uploads() == []


def test_film_over_the_limit_is_refused_by_the_page_and_by_the_server(page, server, tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_UPLOAD + 1)
    drop(page, tmp_path / "huge.png")
    page.wait_for_function("/exceed the maximum/.test(document.body.innerText)")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="huge.png"\r\n\r\n' + bytes(MAX_UPLOAD + 1) + b"\r\n--x--\r\n"
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(f"{server.address}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}),
                    timeout=PATIENCE)
    assert refused.value.code == 413 and server.uploads() == []


def test_nothing_is_kept_in_the_browser(page):
    page.locator("#examples button").first.click()
    page.wait_for_selector(".report")
    assert page.evaluate("async () => (await indexedDB.databases()).map(found => found.name).concat(Object.keys(localStorage))") == []


def test_answers_forbid_other_machines_whatever_the_page_would_load(page):
    assert page.evaluate("async () => { try { await fetch('http://127.0.0.2:9/'); return 'sent' } catch { return 'not sent' } }") == "not sent"
    assert page.evaluate("""() => new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));
      document.head.append(Object.assign(document.createElement('script'), {src: 'https://example.org/x.js'})) })""").startswith("https://example.org")


# The last one: it stops the server.
@pytest.mark.slow
def test_stopped_server_leaves_nothing_and_has_asked_no_other_machine(server):
    output = server.stop()
    assert server.process.returncode == 0 and "Traceback" not in output, output
    assert list(server.temporary.glob("unet-lung-*")) == [] and server.uploads() == []
    assert set(server.hosts.read_text().split()) <= {"127.0.0.1", "localhost", "::1"}


# --- without one -----------------------------------------------------------------------------------------------------

@pytest.fixture
def screener(tmp_path) -> TBScreener:
    save_weights(tmp_path / "w.safetensors", UNet(width=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    segmenter = LungSegmenter(tmp_path / "w.safetensors", device="cpu")
    segmenter.model, segmenter.dtype = DarkIsLung(), None
    return TBScreener(segmenter=segmenter, device="cpu")


@pytest.fixture(scope="module")
def film():
    return AppearanceModel.load().film(7, 0, size=200, tb=0)


def test_report_of_a_film_without_lungs_has_dashes_and_the_flag_says_so(tmp_path, screener, film):
    screener.segmenter.threshold = 1.0
    files.write_image(tmp_path / "film.png", film.image)
    text = report(tmp_path / "film.png", screener)
    assert "<th scope='row'>Lungs found</th><td>0</td>" in text and "<td>–</td>" in text and "nan" not in text.split("<h2>")[1].split("<p class")[0]
    assert "<td>0.00 (reject)</td>" in text and "<li>no lung found</li>" in text
    assert "<th scope='row'>Tuberculosis, for research</th><td>no lung found</td>" in text


def test_name_of_a_file_is_no_html(tmp_path, screener, film):
    name = "<img src=x onerror='alert(1)'>.png"
    files.write_image(tmp_path / name, film.image)
    assert "<img src=x" not in report(tmp_path / name, screener)
    (tmp_path / name).write_bytes(b"")
    assert "<img src=x" not in report(tmp_path / name, screener)


def test_large_film_is_shown_small_and_its_mask_is_whole(tmp_path, screener, film, monkeypatch):
    monkeypatch.setattr(page_module, "SHOWN", 50)
    drawn = []
    monkeypatch.setattr(page_module, "encode_image", lambda image, suffix: drawn.append((suffix, image.shape)) or b"")
    files.write_image(tmp_path / "film.png", film.image[:, 20:180])
    report(tmp_path / "film.png", screener)
    assert drawn == [(".jpg", (50, 40, 3)), (".png", (200, 160))]


def test_film_that_lay_on_its_side_is_shown_upright_and_its_mask_lies_as_it_did(tmp_path, film, monkeypatch):
    screener, drawn = TBScreener(device="cpu"), []
    monkeypatch.setattr(page_module, "encode_image", lambda image, suffix: drawn.append(image) or b"")
    for name, image in (("upright", film.image[:, 20:180]), ("turned", np.rot90(film.image[:, 20:180]))):
        files.write_image(tmp_path / f"{name}.png", image)
        assert ("lay on its side" in report(tmp_path / f"{name}.png", screener)) == (name == "turned")
    shown, mask, shown_turned, mask_turned = drawn
    np.testing.assert_array_equal(shown_turned, shown)
    np.testing.assert_array_equal(mask_turned, np.rot90(mask))


def test_film_of_another_orientation_or_of_a_spacing_that_can_not_be_is_shown_upright_with_its_notes(tmp_path, film, monkeypatch):
    screener, drawn = TBScreener(device="cpu"), []
    monkeypatch.setattr(page_module, "encode_image", lambda image, suffix: drawn.append(image) or b"")
    (tmp_path / "plain.dcm").write_bytes(dicom(film.image))
    (tmp_path / "mirrored.dcm").write_bytes(dicom(film.image[:, ::-1], PatientOrientation=["R", "F"], PixelSpacing=[0.7, 0.7]))
    plain, mirrored = (report(tmp_path / f"{name}.dcm", screener) for name in ("plain", "mirrored"))
    assert "put right as its file says" in mirrored and "a small child, or is the spacing wrong?" in mirrored and "spacing wrong" not in plain
    shown, mask, shown_mirrored, mask_mirrored = drawn
    np.testing.assert_array_equal(shown_mirrored, shown)
    np.testing.assert_array_equal(mask_mirrored, mask[:, ::-1])


def test_what_is_no_film_is_refused_without_saying_where_it_lies(tmp_path, screener):
    files.write_image(tmp_path / "page.png", phantom().image)
    text = report(tmp_path / "page.png", screener)
    assert text.startswith("<p class='refusal' role='alert'>page.png: refused: no frontal chest film") and str(tmp_path) not in text


def test_page_without_gradio_is_one_line(screener, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="the page needs gradio: pip install gradio"):
        serve(screener)
