"""page: the page in a browser that reaches this machine alone, and reports without one."""

import base64
import csv
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from dicoms import dicom
from phantoms import phantom
from test_infer import DarkIsLung

from kaggle_utils import image as files
from kaggle_utils.infer import DEFAULT_WEIGHTS, LungSegmenter
from kaggle_utils.model import UNet, load_weights, read_header, save_weights
from kaggle_utils.page import report as report_module
from kaggle_utils.page import uploads as app_uploads
from kaggle_utils.page.app import CAUTION, MAX_UPLOAD, serve
from kaggle_utils.page.examples import CHILDREN, SOURCE, SYNTHETIC, make_examples
from kaggle_utils.page.report import choice, report
from kaggle_utils.page.words import plain
from kaggle_utils.pictures.overlay import LEFT, RIGHT
from kaggle_utils.quality.measurements import measure
from kaggle_utils.synthetic.model import AppearanceModel
from kaggle_utils.tb.screening import TBScreener

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 180  # s, on a machine that trains meanwhile
EXAMPLES = len(SYNTHETIC) + len(CHILDREN)
BOTH = ["montgomery", "kermany"]  # heads, one of each convention
# The command line, with a note of every host that its process asks for or connects to, and of every file it writes.
LAUNCH = """
import os, sys
log, written = open(sys.argv.pop(1), "a", buffering=1), open(sys.argv.pop(1), "a", buffering=1)
def hook(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        print(args[0], file=written)
    elif event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=log)
    elif event == "socket.getaddrinfo" and args[0]:
        print(args[0], file=log)
sys.addaudithook(hook)
from kaggle_utils.cli import main
sys.exit(main())
"""


class Server:
    """The page's process, in a temporary folder of its own."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.temporary = f"http://127.0.0.1:{port}", folder / "tmp"
        self.hosts, self.written = folder / "hosts", folder / "written"
        self.temporary.mkdir()
        env = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "NO_PROXY": "*", "no_proxy": "*"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(self.hosts), str(self.written), "app", "--port", str(port), *options],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.line = self.process.stdout.readline()

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=PATIENCE)[0]

    def uploads(self) -> list[Path]:
        """What lies there besides the placeholder, which is empty."""
        return [path for path in self.temporary.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio is not installed")
    server = Server(tmp_path_factory.mktemp("app"))
    assert server.line.startswith(server.address), server.line + server.stop()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def both_server(tmp_path_factory):
    """The page with a network of both conventions."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("both")
    server = Server(folder, "--weights", str(of_both(folder / "both.safetensors")), "--device", "cpu")
    assert server.line.startswith(server.address), server.line + server.stop()
    yield server
    server.stop()


def of_both(path: Path) -> Path:
    """The shipped network, whose last head is said to be of the other convention, if none is."""
    header = read_header(DEFAULT_WEIGHTS)
    if "kermany" not in header["heads"]:
        header["heads"] = header["sources"] = [*header["heads"][:-1], "kermany"]
    save_weights(path, load_weights(DEFAULT_WEIGHTS), header)
    return path


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs a browser: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(
            executable_path=CHROMIUM,
            timeout=PATIENCE * 1000,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        ) as browser,
    ):
        yield browser


@pytest.fixture
def page(browser, server):
    yield from opened(browser, server)


@pytest.fixture
def both_page(browser, both_server):
    yield from opened(browser, both_server)


def opened(browser, server):
    """The page, loaded; it fails a test whose page asked for anything that was not forbidden before it left the
    browser."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    asked, forbidden, errors = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: forbidden.append(request.url) if request.failure == "csp" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    page.wait_for_function(f"document.querySelectorAll('#examples img').length == {EXAMPLES}")
    yield page
    others = {url for url in asked if not url.startswith((server.address, "data:", "blob:"))}
    page.context.close()
    assert not others - set(forbidden) and not errors


def drop(page, path: Path) -> None:
    page.set_input_files("#drop input[type=file]", path)


def download(page, text: str) -> tuple[str, bytes]:
    with page.expect_download() as info:
        page.locator("a:visible", has_text=text).click()
    return info.value.suggested_filename, Path(info.value.path()).read_bytes()


# --- in a browser ----------------------------------------------------------------------------------------------------


def test_page_says_what_it_is_not_and_fits_a_phone(page):
    assert CAUTION in page.inner_text("#head")
    page.locator("#examples button").first.click()
    page.wait_for_selector(".report")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tables = "[...document.querySelectorAll('.report table')].map(t => [t.offsetWidth, t.parentNode.clientWidth])"
        assert all(table <= room for table, room in page.evaluate(tables)), "a table is cut off"
        boxes = [page.locator(part).bounding_box() for part in (".report:visible figure", ".report:visible > div")]
        assert (boxes[0]["x"] == boxes[1]["x"]) is (width == 390)  # one below the other, or beside it


def test_film_that_is_dropped_is_outlined_and_measured(page, server, tmp_path):
    film = AppearanceModel.load().film(7, 0, size=600, tb=0)
    files.write_image(tmp_path / "new film.png", film.image)
    drop(page, tmp_path / "new film.png")
    page.wait_for_selector(".report h2:text-is('new film.png')")
    name, data = download(page, "Mask (PNG)")
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    truth = LungSegmenter(device="cpu").masks([film.image])[0]
    assert name.replace("_lung-field", "") == "new film_mask.png" and set(np.unique(mask)) == {0, 255}
    assert mask.shape == truth.shape and (mask // 255 != truth).mean() < 1e-4
    found = measure(mask // 255)
    cells = {
        row[0]: row[1:] for row in (line.split("\t") for line in page.inner_text(".report table >> nth=0").splitlines())
    }
    assert cells["Area, px"] == [f"{found['right_area_px']:,}", f"{found['left_area_px']:,}"]
    assert page.inner_text("tr:has-text('Lungs found') td") == "2" and page.inner_text(
        "tr:has-text('Film') >> nth=0"
    ).endswith("600 × 600 px")
    name, data = download(page, "Measurements (CSV)")
    (row,) = csv.DictReader(io.StringIO(data.decode()))
    assert name.replace("_lung-field", "") == "new film_measurements.csv" and row["name"] == "new film"
    assert row["right_area_px"] == str(found["right_area_px"]) and float(row["tilt_deg"]) == pytest.approx(
        found["tilt_deg"], abs=1e-4
    )
    assert page.locator("#drop input[type=file]").count(), "the next film can't be dropped"
    assert server.uploads() == []


def test_each_synthetic_radiograph_has_two_lungs(page):
    screener = TBScreener(device="cpu")
    for n, (seed, index, tb) in enumerate(SYNTHETIC.values()):
        page.locator("#examples button").nth(n).click()
        page.wait_for_selector(f".report h2:text-is('nobody_{n + 1}.png')")
        assert page.inner_text("tr:has-text('Lungs found') td") == "2"
        image = AppearanceModel.load().film(seed, index, size=512, tb=tb).image
        probability, said = page.inner_text("tr:has-text('Tuberculosis') td").split(" ", 1)
        assert float(probability) == pytest.approx(
            screener.probabilities([image], screener.segmenter.masks([image]))[0], abs=0.01
        )
        label = "presumptive" if float(probability) >= screener.threshold else "not presumptive"
        assert said == f"({label}, from {screener.threshold:.2f} on it is presumptive)"
        page.locator(".report:visible summary").click()
        assert page.locator(".report:visible details img").bounding_box()["height"] > 100


def test_examples_say_what_they_show_and_whose_they_are(page):
    buttons = page.locator("#examples").get_by_role("button")
    captions = [*SYNTHETIC, *CHILDREN.values()]
    assert [buttons.nth(n).inner_text() for n in range(buttons.count())] == captions
    assert all(page.get_by_role("button", name=caption, exact=True).count() == 1 for caption in captions)
    assert page.inner_text("#source") == SOURCE and page.locator("a[href^=http]:visible").count() == 0
    page.get_by_role("button", name="Child, healthy", exact=True).press("Enter")
    page.wait_for_selector(".report h2:text-is('IM-0553-0001.jpg')")
    assert "not for children" in page.inner_text("tr:has-text('Tuberculosis') td")


def test_choice_of_a_convention_shows_the_other_mask_without_asking_again(both_page, both_server, tmp_path):
    page = both_page
    fields, heart = (page.get_by_role("radio", name=name) for name in ("Lung fields", "With the heart"))
    page.locator("#examples button").first.click()
    page.wait_for_selector(".report:visible")
    assert fields.is_checked() and page.locator(".report:visible").get_attribute("class") == "report lung-field"
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    fields.press("ArrowRight")
    assert heart.is_checked() and page.locator(".report:visible").get_attribute("class") == "report with-heart"
    assert "with what the heart hides" in page.locator("figcaption:visible").inner_text()
    assert [url for url in asked if not url.startswith("data:")] == []
    film = AppearanceModel.load().film(7, 0, size=300, tb=0)
    files.write_image(tmp_path / "film.png", film.image)
    drop(page, tmp_path / "film.png")
    page.wait_for_selector(".report:visible h2:text-is('film.png')")
    assert heart.is_checked(), "the choice holds for the next film"
    segmenter = LungSegmenter(of_both(tmp_path / "both.safetensors"), device="cpu")
    for button, convention, head in ((heart, "with-heart", "kermany"), (fields, "lung-field", "montgomery")):
        button.check()
        name, data = download(page, "Mask (PNG)")
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert name == f"film_{convention}_mask.png"
        assert (mask // 255 != segmenter.masks([film.image], [head])[0]).mean() < 1e-4
    assert both_server.uploads() == []


def test_dicom_film_is_measured_in_mm_with_its_notes(page, tmp_path):
    film = AppearanceModel.load().film(7, 1, size=512, tb=0)
    (tmp_path / "IM0001").write_bytes(dicom(255 - film.image, photometric="MONOCHROME1", ImagerPixelSpacing=[0.7, 0.7]))
    drop(page, tmp_path / "IM0001")
    page.wait_for_selector(".report h2:text-is('IM0001')")
    text = page.inner_text(".report")
    assert (
        "Area, cm²" in text
        and "Height, mm" in text
        and plain("MONOCHROME1 inverted") in text
        and "Millimetres are those on the detector" in text
    )


def test_broken_file_is_answered_with_the_readers_message(page, server, tmp_path):
    files.write_image(tmp_path / "whole.png", phantom().image)
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    (tmp_path / "letter.txt").write_text("Dear colleague")
    for name, message in (
        ("half.png", "half.png: the file is truncated"),
        ("letter.txt", "letter.txt: not an image: it begins as no PNG"),
    ):
        drop(page, tmp_path / name)
        page.wait_for_function(
            "message => document.querySelector('.refusal')?.innerText.startsWith(message)", arg=message
        )
        assert str(server.temporary) not in page.inner_text("body") and "Traceback" not in page.inner_text("body")
    assert server.uploads() == []


def test_film_over_the_limit_is_refused_by_the_page_and_by_the_server(page, server, tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_UPLOAD + 1)
    drop(page, tmp_path / "huge.png")
    page.wait_for_function("/exceeds? the maximum/.test(document.body.innerText)")
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="huge.png"\r\n\r\n'
        + bytes(MAX_UPLOAD + 1)
        + b"\r\n--x--\r\n"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(
            urllib.request.Request(
                f"{server.address}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
            ),
            timeout=PATIENCE,
        )
    assert refused.value.code == 413 and server.uploads() == []


def test_nothing_is_kept_in_the_browser(page):
    page.locator("#examples button").first.click()
    page.wait_for_selector(".report")
    assert (
        page.evaluate(
            "async () => (await indexedDB.databases()).map(found => found.name).concat(Object.keys(localStorage))"
        )
        == []
    )


def test_answers_forbid_other_machines_whatever_the_page_would_load(page):
    assert (
        page.evaluate(
            "async () => { try { await fetch('http://127.0.0.2:9/'); return 'sent' } catch { return 'not sent' } }"
        )
        == "not sent"
    )
    assert page.evaluate("""() => new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));
      const script = Object.assign(document.createElement('script'), {src: 'https://example.org/x.js'});
      document.head.append(script) })""").startswith("https://example.org")


# --- a hostile visitor -----------------------------------------------------------------------------------------------


@pytest.fixture
def visitor(server):
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.address, timeout=PATIENCE, trust_env=False) as client:
        yield client


def send(client, data: bytes, name: str = "film.png"):
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def join(client, value: object, session: str = "s", function: int = 0):
    return client.post(
        "/gradio_api/queue/join", json={"data": [value], "fn_index": function, "session_hash": session, "trigger_id": 1}
    )


def named(path: str) -> dict[str, object]:
    return {"path": path, "orig_name": "film.png", "meta": {"_type": "gradio.FileData"}}


def answer(client, session: str) -> str:
    """What the page is told of a film that was asked for."""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
        return next(line for line in lines.iter_lines() if "process_completed" in line)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "attacker.example"}, 400),
        ({"Host": "attacker.example:7860"}, 400),
        ({"Host": ""}, 400),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
def test_request_by_another_name_or_from_another_page_is_refused(visitor, server, headers, status):
    assert visitor.get("/", headers=headers).status_code == status
    assert visitor.post("/gradio_api/upload", files={"files": b"x"}, headers=headers).status_code == status
    assert visitor.get("/", headers={"Origin": server.address}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/proxy=https://attacker.example/",
        "gradio_api/file=https://attacker.example/",
        "gradio_api/file=/etc/hostname",
        "gradio_api/file=../../../../etc/hostname",
        "gradio_api/file=README.md",
        "gradio_api/file/etc/hostname",
        "static/..%2f..%2f..%2fetc/hostname",
        "assets/%2e%2e/%2e%2e/routes.py",
        "gradio_api/openapi.json",
        "monitoring",
        "docs",
        "gradio_api/upload_progress?upload_id=1",
        "gradio_api/vibe-code",
        "gradio_api/deep_link",
    ],
)
def test_no_other_file_and_no_other_machine_is_reached(visitor, server, path):
    found = visitor.get(f"/{path}")
    assert found.status_code in (302, 403, 404) and "root:" not in found.text
    assert "attacker.example" not in server.hosts.read_text()


def test_only_a_film_that_was_sent_here_is_read(visitor, server):
    for value in (
        *map(
            named,
            [
                str(next(server.temporary.rglob("film"))),
                "https://attacker.example/film.png",
                "http://127.0.0.1:9/",
                "/etc/hostname",
                "..",
                "",
            ],
        ),
        {"path": 3},
        {"url": "https://attacker.example/"},
        None,
        [],
        EXAMPLES,
        -1,
        1e9,
        "0",
    ):
        assert join(visitor, value).status_code == 400
    for path in ("run/predict", "call/dropped", "api/predict", "component_server", "stream/1", "run-history/connect"):
        assert (
            visitor.post(f"/gradio_api/{path}", json={"data": [named("/etc/hostname")], "fn_index": 0}).status_code
            == 404
        )
    assert visitor.post("/gradio_api/queue/join", content=b"[" * 9000).status_code == 400
    assert visitor.post("/gradio_api/queue/join", content=b"[" + b" " * 10**6).status_code == 400
    assert "attacker.example" not in server.hosts.read_text()


def test_two_visitors_with_the_same_film_have_one_each_and_none_is_on_the_disk(visitor, server):
    data = files.encode_image(phantom().image, ".png")
    first, second = (send(visitor, data).json()[0] for _ in range(2))
    assert first != second and server.uploads() == []
    for session, ticket in (("one", first), ("two", second)):
        assert join(visitor, named(ticket), session).status_code == 200
        assert "film.png" in answer(visitor, session)
        assert join(visitor, named(ticket), session).status_code == 400  # read, and gone


def test_film_is_not_written_even_while_it_is_sent_and_read(visitor, server):
    before = server.written.read_text()
    assert "/film\n" in before, "the placeholder is a file"
    data = cv2.imencode(".bmp", AppearanceModel.load().film(7, 0, size=1500, tb=0).image)[1].tobytes()
    assert len(data) > 2_000_000
    (ticket,) = send(visitor, data, "film.bmp").json()
    assert join(visitor, named(ticket), "read").status_code == 200
    assert "<article" in answer(visitor, "read")
    assert server.written.read_text() == before and server.uploads() == []


@pytest.mark.parametrize("length", [MAX_UPLOAD + 20_000, 500_000_000, 10**11])
def test_film_that_is_announced_as_too_large_is_refused_before_it_is_sent(server, length):
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.fixture
def gate(tmp_path):
    """A client of the gate alone, and its uploads."""
    testclient = pytest.importorskip("starlette.testclient")
    applications, middleware = (
        pytest.importorskip("starlette.applications"),
        pytest.importorskip("starlette.middleware"),
    )
    uploads = app_uploads.Uploads()
    guard = middleware.Middleware(app_uploads.Gate, uploads=uploads, placeholder=tmp_path / "film", examples=1)
    with testclient.TestClient(applications.Starlette(middleware=[guard])) as client:
        yield client, uploads


def test_films_that_wait_are_bounded_in_number_and_bytes(gate, monkeypatch):
    client, uploads = gate
    answers = [send(client, b"x") for _ in range(100)]
    assert [found.status_code for found in answers] == [200] * app_uploads.MOST_FILMS + [503] * (
        100 - app_uploads.MOST_FILMS
    )
    assert uploads.take(answers[0].json()[0]) == ("film.png", b"x") and uploads.take(answers[0].json()[0]) is None
    assert send(client, b"x").status_code == 200
    monkeypatch.setattr(app_uploads, "MOST_FILMS", 100)
    monkeypatch.setattr(app_uploads, "MOST_BYTES", 5000)
    assert [send(client, bytes(2000)).status_code for _ in range(3)] == [200, 200, 503]


def test_film_that_nobody_asks_for_is_not_kept(gate, monkeypatch):
    client, uploads = gate
    monkeypatch.setattr(app_uploads, "KEPT_SECONDS", 0.05)
    (ticket,) = send(client, b"x").json()
    deadline = time.monotonic() + PATIENCE
    while ticket in uploads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_no_single_film_is_refused(gate):
    client, _ = gate
    for request in (
        {"files": [("files", b"x"), ("files", b"y")]},
        {"data": {"files": "x"}},
        {"content": b"x"},
        {"json": {}},
        {"content": b"--x\r\nrubbish", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    ):
        assert client.post("/gradio_api/upload", **request).status_code == 400
    assert client.post("/gradio_api/upload", content=iter([b"x"])).status_code == 413  # it doesn't say how long it is
    for name, kept in (
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.png", "a.png"),
        ("\x1b[2J.png", "\\x1b[2J.png"),
        ("a" * 500 + ".png", "a" * 196 + ".png"),
    ):
        (ticket,) = send(client, b"x", name).json()
        assert gate[1].take(ticket)[0] == kept


def test_address_that_nothing_can_listen_at_is_one_line_that_says_which(screener):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use: choose another"):
            serve(screener, port=taken.getsockname()[1])
    for host in ("192.0.2.1", "256.1.1.1", "a" * 100, "-"):
        with pytest.raises(OSError, match=f"--host {host}: no address of this machine"):
            serve(screener, host=host, port=40999)
    with pytest.raises(ValueError, match="--port 99999: a port is 1 to 65535"):
        serve(screener, port=99999)


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
    save_weights(tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]})
    segmenter = LungSegmenter(tmp_path / "w.safetensors", device="cpu")
    segmenter.model, segmenter.dtype = DarkIsLung(), None
    return TBScreener(segmenter=segmenter, device="cpu")


@pytest.fixture(scope="module")
def film():
    return AppearanceModel.load().film(7, 0, size=200, tb=0)


def report_of(path, screener):
    return report(path.name, path.read_bytes(), screener)


def test_report_of_a_film_without_lungs_has_dashes_and_the_flag_says_so(tmp_path, screener, film):
    screener.segmenter.threshold = 1.0
    files.write_image(tmp_path / "film.png", film.image)
    text = report_of(tmp_path / "film.png", screener)
    assert (
        "<th scope='row'>Lungs found</th><td>0</td>" in text
        and "<td>–</td>" in text
        and "nan" not in text.split("<h2>")[1].split("<p class")[0]
    )
    assert "<td>0.00 (probably of no use)</td>" in text and f"<li>{plain('no lung found')}</li>" in text
    assert "<th scope='row'>Tuberculosis, for research</th><td>no lung found</td>" in text


def test_name_of_a_file_is_no_html(tmp_path, screener, film):
    name = "<img src=x onerror='alert(1)'>.png"
    files.write_image(tmp_path / name, film.image)
    assert "<img src=x" not in report_of(tmp_path / name, screener)
    (tmp_path / name).write_bytes(b"")
    assert "<img src=x" not in report_of(tmp_path / name, screener)


def test_large_film_is_shown_small_and_its_mask_is_whole(tmp_path, screener, film, monkeypatch):
    monkeypatch.setattr(report_module, "SHOWN", 50)
    drawn = []
    monkeypatch.setattr(report_module, "encode_image", lambda image, suffix: drawn.append((suffix, image.shape)) or b"")
    files.write_image(tmp_path / "film.png", film.image[:, 20:180])
    report_of(tmp_path / "film.png", screener)
    small, whole = (50, 40, 3), (200, 160)  # heat map and outlines; mask and overlay
    assert drawn == [(".jpg", small)] * 2 + [(".png", whole), (".png", (*whole, 3))]


def test_film_that_lay_on_its_side_is_shown_upright_and_its_mask_lies_as_it_did(tmp_path, film, monkeypatch):
    screener, drawn = TBScreener(device="cpu"), []
    monkeypatch.setattr(report_module, "encode_image", lambda image, suffix: drawn.append(image) or b"")
    for name, image in (("upright", film.image[:, 20:180]), ("turned", np.rot90(film.image[:, 20:180]))):
        files.write_image(tmp_path / f"{name}.png", image)
        assert ("turned by" in report_of(tmp_path / f"{name}.png", screener)) == (name == "turned")
    (_, shown, mask, *_), (_, shown_turned, mask_turned, *_) = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    np.testing.assert_array_equal(shown_turned, shown)
    np.testing.assert_array_equal(mask_turned, np.rot90(mask))


def test_film_of_another_orientation_or_of_a_spacing_that_can_not_be_is_shown_upright_with_its_notes(
    tmp_path, film, monkeypatch
):
    screener, drawn = TBScreener(device="cpu"), []
    monkeypatch.setattr(report_module, "encode_image", lambda image, suffix: drawn.append(image) or b"")
    (tmp_path / "plain.dcm").write_bytes(dicom(film.image))
    (tmp_path / "mirrored.dcm").write_bytes(
        dicom(film.image[:, ::-1], PatientOrientation=["R", "F"], PixelSpacing=[0.7, 0.7])
    )
    plain, mirrored = (report_of(tmp_path / f"{name}.dcm", screener) for name in ("plain", "mirrored"))
    assert (
        "put upright as its file says" in mirrored
        and "a small child, or is the spacing wrong?" in mirrored
        and "spacing wrong" not in plain
    )
    (_, shown, mask, *_), (_, shown_mirrored, mask_mirrored, *_) = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    np.testing.assert_array_equal(shown_mirrored, shown)
    np.testing.assert_array_equal(mask_mirrored, mask[:, ::-1])


def test_what_is_no_film_is_refused_without_saying_where_it_lies(tmp_path, screener):
    files.write_image(tmp_path / "page.png", phantom().image)
    text = report_of(tmp_path / "page.png", screener)
    assert text.startswith("<p class='refusal ") and str(tmp_path) not in text
    assert ">page.png: refused: no frontal chest film" in text


def screener_of(tmp_path, sources, **options) -> TBScreener:
    """A screener whose segmenter has a head for each source: the first finds dark pixels, each next one more."""
    path = tmp_path / "heads.safetensors"
    save_weights(path, UNet(classes=len(sources), base_channels=2), {"size": 32, "sources": sources, "heads": sources})
    segmenter, dark = LungSegmenter(path, device="cpu", **options), DarkIsLung()
    segmenter.model = lambda images: torch.cat([dark(images) + 8 * n for n in range(len(sources))], dim=1)
    segmenter.dtype = None
    return TBScreener(segmenter=segmenter, device="cpu")


def cell(text: str, name: str) -> str:
    return text.split(f"<th scope='row'>{name}</th><td>")[1].split("</td>")[0]


@pytest.mark.parametrize("chosen", ["lung-field", "with-heart"])
def test_report_has_the_masks_of_both_conventions_each_with_its_own_numbers(tmp_path, film, chosen):
    screener = screener_of(tmp_path, BOTH, convention=chosen)
    assert f"value='{chosen}' checked" in choice(screener.segmenter) and choice(screener.segmenter).count("<input") == 2
    text = report("film.png", files.encode_image(film.image, ".png"), screener)
    for convention, head in (("lung-field", "montgomery"), ("with-heart", "kermany")):
        (part,) = [part for part in text.split("<article") if part.startswith(f" class='report {convention}'")]
        mask = screener.segmenter.masks([film.image], [head])[0]
        assert cell(part, "Share of the film") == f"{mask.mean():.1%}"
        assert f"download='film_{convention}_mask.png'" in part and f"film_{convention}_measurements.csv" in part
        fields = screener.segmenter.masks([film.image], ["montgomery"])[0]
        probability = screener.probabilities([film.image], [fields])[0]  # of lung fields, whatever is shown
        assert f">{probability:.2f} (" in part
    assert text.count("<article") == 2


@pytest.mark.parametrize(
    "sources, said", [(["montgomery", "shenzhen"], "The lung fields"), (["mine", "montgomery"], "The lungs. ")]
)
def test_network_of_one_convention_or_of_a_set_of_ones_own_has_one_report_and_no_choice(tmp_path, film, sources, said):
    screener = screener_of(tmp_path, sources)
    text = report("film.png", files.encode_image(film.image, ".png"), screener)
    assert choice(screener.segmenter) == "" and text.count("<article") == 1 and f"<figcaption>{said}" in text
    assert "download='film_mask.png'" in text and "presumptive" in cell(text, "Tuberculosis, for research")


def test_overlay_is_the_film_at_its_own_size_with_an_outline_for_each_lung():
    example = make_examples()[0]
    text = report(example.name, example.data, TBScreener(device="cpu"))
    data = re.search(r"_overlay.png' href='data:image/png;base64,([^']+)'", text)[1]
    overlay = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert overlay.shape == (512, 512, 3)
    lungs = [np.argwhere((overlay[..., ::-1] == tuple(bytes.fromhex(colour[1:]))).all(-1)) for colour in (RIGHT, LEFT)]
    assert min(map(len, lungs)) > 100 and lungs[0][:, 1].mean() < 256 < lungs[1][:, 1].mean()


def test_network_that_knows_no_lung_fields_screens_nobody(tmp_path, film):
    text = report("film.png", files.encode_image(film.image, ".png"), screener_of(tmp_path, ["kermany"]))
    assert "<td>screening looks at lung fields" in text


def test_each_example_is_segmented_or_refused_in_words_and_no_child_is_screened():
    screener, examples = TBScreener(device="cpu"), make_examples()
    assert len(examples) == EXAMPLES
    for example in examples:
        text = report(example.name, example.data, screener, example.age)
        assert f"{example.name}: refused: " in text or f"<h2>{example.name}</h2>" in text
        if "<article" in text:
            said = cell(text, "Tuberculosis, for research")
            assert said.startswith("not for children under 15") == (example.name in CHILDREN)
        assert (
            max(cv2.imdecode(np.frombuffer(example.thumbnail, np.uint8), 0).shape) < 450 > len(example.thumbnail) / 40
        )


def test_page_without_gradio_is_one_line(screener, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="the page needs gradio: pip install 'gradio>=5.50,<7'"):
        serve(screener)
