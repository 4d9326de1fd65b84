"""The page of `dgmn app` in a real browser.

Screenshots are kept in the folder that the environment variable DGMN_SCREENSHOTS names.
"""

import base64
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from untrained import checkpoint

# Not imported here: gradio takes seconds and 80 MB of every test worker, and the page is another process.
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(MISSING != [], reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
SHOTS = os.environ.get("DGMN_SCREENSHOTS")


class Server:
    """`dgmn app` in a process of its own, with its temporary files in `folder`."""

    def __init__(self, folder, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.folder = folder / "tmp"
        self.folder.mkdir()
        command = [sys.executable, "-m", "dgmn_cli", "app", *arguments, "--port", str(port), "--device", "cpu"]
        environment = {**os.environ, "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "2", "COVERAGE_PROCESS_START": ""}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment)
        self.said = self.process.stdout.readline()
        assert self.url in self.said

    def files(self):
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    models = []
    for task in ("detection", "segmentation", "classification"):
        (folder / task).mkdir()
        models.append(checkpoint(task, folder / task))
    server = Server(folder, *models)
    yield server
    server.end()
    assert list(server.folder.iterdir()) == [], "nothing stays on the disk"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server, request):
    """A tab with the page. It fails the test if the page asks another machine for anything, or reports an error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    wrong = []
    page.on("request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else wrong.append(r.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector("#examples button")
    yield page
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SHOTS) / f"{request.node.name}.png", full_page=True)
    page.close()
    assert wrong == []


def choose(page, example="two digits"):
    """Chooses an example, and waits for its nodes."""
    page.click(f"#examples button[data-name='{example}']")
    page.wait_for_selector("#numbers td")


def model(page, name):
    page.click("#model input")
    page.get_by_role("option", name=name).click()


def eventually(page, read, wanted):
    """What `read` returns once it is as wanted: the parts of the page do not change at the same instant."""
    for _ in range(600):
        value = read()
        if wanted(value):
            return value
        page.wait_for_timeout(100)
    pytest.fail(f"still {str(value)[:500]}")


CONTENT = """selector => {
    const part = document.querySelector(selector).cloneNode(true);
    part.querySelectorAll("[data-testid=status-tracker]").forEach(clock => clock.remove());
    return part.innerHTML;
}"""


def changed(page, selector, action):
    """The text or picture of a part of the page after an action changed it; its clock while it waits is neither."""

    def read():
        return page.evaluate(CONTENT, selector)

    before = read()
    action()
    return eventually(page, read, lambda value: value != before)


def click(page, x, y):
    box = page.locator("#view img").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def shown(page, selector="#view img"):
    """A picture of the page, and the bytes of its file."""
    source = page.locator(selector).get_attribute("src")
    content = base64.b64decode(source.partition("base64,")[2])
    return Image.open(BytesIO(content)), content


def rows(page):
    """The nodes that the page lists: point, head, x, y and so on."""
    return page.locator("#numbers tbody tr").all_inner_texts()


def test_a_click_shows_the_nodes(page):
    choose(page)
    middle = rows(page)
    assert len(middle) == 36, "nine nodes of four heads"
    click(page, 0.2, 0.3)
    first = eventually(page, lambda: rows(page), lambda found: found != middle)
    for x in (0.3, 0.4, 0.5, 0.8):  # quicker than the answers: the last one counts
        click(page, x, 0.7)
    eventually(page, lambda: page.inner_text("#message"), lambda text: re.search("x = 7[67], y = 45", text))
    last = eventually(page, lambda: rows(page), lambda found: found not in (first, middle))
    page.get_by_label("second").check()
    click(page, 0.2, 0.3)
    both = eventually(page, lambda: rows(page), lambda found: len(found) == 72)
    assert both == last + [row.replace("1", "2", 1) for row in first]
    assert page.locator("#view .mark.second").is_visible()
    page.get_by_text("Remove the second point").click()
    eventually(page, lambda: rows(page), lambda found: found == last)
    layer = page.locator("#layer input[type=range]")
    layer.focus()
    changed(page, "#numbers", lambda: layer.press("ArrowLeft"))
    page.get_by_label("where all look").check()
    eventually(page, lambda: page.locator("#sheet img").get_attribute("alt"), lambda alt: "where all look" in alt)


def test_keyboard(page):
    """Tab reaches an example and the picture, and arrow keys move the point."""
    focus = "document.activeElement.closest('#examples, #view')?.id"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(focus) == "examples":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#numbers td")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(focus) == "view":
            break
    changed(page, "#numbers", lambda: [page.keyboard.press("ArrowRight") for _ in range(8)])
    assert page.evaluate(focus) == "view", "the focus stays"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0, "every picture says what it is"


def turned():
    """A red and blue JPEG, 30 x 20 as stored, that its EXIF entry turns upright."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0] = pixels[:, 15:, 2] = 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    content = BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", exif=exif, quality=95)
    return content.getvalue()


DROP = """([selector, content, name]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, {type: "image/jpeg"}));
    const target = document.querySelector(selector);
    for (const type of ["dragenter", "dragover", "drop"])
        target.dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: data}));
}"""


def drop(page, content, name="photo.jpg"):
    page.wait_for_selector("#photo button:has-text('Drop')")  # while the page takes a file, it takes no other
    page.evaluate(DROP, ["#photo button", base64.b64encode(content).decode(), name])


def test_dropped_image(page, server):
    model(page, "classification")
    changed(page, "#view", lambda: drop(page, turned()))
    picture, content = shown(page)
    assert picture.size == (20, 30), "upright"
    assert picture.getpixel((10, 5))[0] > 200 > 100 > picture.getpixel((10, 25))[0]
    assert b"camera" not in content
    assert not picture.getexif()
    page.wait_for_selector("#numbers td")
    page.wait_for_selector("#photo button:has-text('Drop')")
    assert server.files() == [], "the file is gone when it has been read"


def test_bad_files(page, server):
    inputs = [b"no image", turned()[:200], b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    for number, content in enumerate(inputs):
        drop(page, content, f"photo{number}.jpg")
        alert = page.wait_for_selector("#message [role=alert]").inner_text()
        assert "image" in alert
        assert str(server.folder) not in alert
        choose(page)  # the page goes on, and the next message is the next file's
        page.wait_for_selector("#message [role=status]")
    assert server.files() == []
    assert server.process.poll() is None


def test_score(page):
    model(page, "detection")
    choose(page, "a scene")
    slider = page.locator("#score input[type=range]")
    slider.wait_for()

    def findings():
        return page.inner_text("#findings")

    slider.focus()
    slider.press("Home")
    eventually(page, findings, lambda text: re.match(r"[1-9]\d* objects? with a score of at least 0.05", text))
    slider.press("End")
    eventually(page, findings, lambda text: "0 objects with a score of at least 1.00" in text)


def test_segmentation_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    model(page, "segmentation")
    choose(page)
    assert "cat" in page.inner_text("#findings")
    page.wait_for_selector("#view .mark.first")
    plain = shown(page)[0].tobytes()
    slider = page.get_by_label("range slider for Opacity of the classes")
    slider.focus()
    slider.press("Home")
    eventually(page, lambda: shown(page)[0].tobytes(), lambda picture: picture != plain)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "no scrolling to the side"
    for part in ("#view", "#sheet", "#numbers", "#photo", "#model"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_what_the_server_says(server):
    with urllib.request.urlopen(server.url) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        text = answer.read().decode()
    sources = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", text) + re.findall(r"url\((https?://[^)]+)\)", text)
    assert [source for source in sources if not source.startswith(server.url)] == []
    port = int(server.url.rstrip("/").rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", port))  # it listens on 127.0.0.1 alone


def asked(server, path, content=None, **headers):
    """What the server answers to a client that is no browser."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url.rstrip("/") + path, content, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def given_as_photo(server, photo, session):
    """What the page says of a photo that a client names."""
    parts = json.loads(asked(server, "/config")[1])
    ids = {part["id"]: part["props"].get("elem_id") for part in parts["components"]}
    step = next(x for x in parts["dependencies"] if "photo" in [ids[i] for i in x["inputs"]])
    source = next(x for x in parts["components"] if x["props"].get("elem_id") == "model")["props"]["value"]
    call = {"data": [source, photo, 0.3, 0.5], "fn_index": step["id"], "session_hash": session}
    call["trigger_id"] = step["targets"][0][0]
    assert asked(server, "/gradio_api/queue/join", json.dumps(call).encode(), Content_Type="application/json")[0] == 200
    return asked(server, f"/gradio_api/queue/data?session_hash={session}")[1]


def test_files_of_this_machine_are_left_alone(server, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "private.png")
    (tmp_path / "thesis.txt").write_text("important")
    for number, photo in enumerate(
        (
            {"path": str(tmp_path / "private.png")},
            {"path": str(tmp_path / "thesis.txt")},
            {"path": f"{server.folder}/../{tmp_path}/thesis.txt"},
            {"path": str(server.folder)},
            {"url": f"{server.url}config"},
        )
    ):
        said = given_as_photo(server, photo, f"session{number}")
        assert "data:image" not in said
        assert "process_completed" in said
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Host": "localhost:80"}, 200),
        ({"Host": "evil.example"}, 403),  # a name that leads here (DNS rebinding)
        ({"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_pages_are_refused(server, headers, code):
    assert asked(server, "/config", **headers)[0] == code


@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}])
def test_uploads_of_other_pages_are_refused(server, header):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n1\r\n--x--\r\n'
    form = {"Content_Type": "multipart/form-data; boundary=x", **header}
    assert asked(server, "/gradio_api/upload", body, **form)[0] == 403
    assert server.files() == []


@pytest.mark.slow
def test_camera(page):
    page.get_by_label("Capture from camera").click()
    for _ in range(20):  # a click before the page knows the camera does nothing
        asks = page.get_by_role("button", name="Click to Access Webcam")
        if asks.count() == 0:
            break
        asks.click()
        page.wait_for_timeout(1000)
    page.wait_for_timeout(1000)  # the video starts
    page.get_by_role("button", name="capture photo").dispatch_event("click")
    page.wait_for_selector("#numbers td")


@pytest.mark.slow
def test_200_bad_files(page, server):
    random = np.random.default_rng(0)
    good = turned()
    for number in range(200):
        broken = bytearray(good)
        for _ in range(int(random.integers(1, 20))):
            broken[int(random.integers(len(broken)))] = int(random.integers(256))
        content = bytes(broken[: int(random.integers(len(broken)))])
        drop(page, content, f"photo{number}.jpg")
        page.wait_for_function("() => document.querySelector('#photo button')?.innerText.includes('Drop')")
    choose(page)
    assert server.process.poll() is None
    assert server.files() == []
