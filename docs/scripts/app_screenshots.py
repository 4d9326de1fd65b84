"""Takes the two pictures of the page in docs/app.md, after `dgmn quickstart --task detection` and `segmentation`.

uv run python docs/scripts/app_screenshots.py
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from app.test_page import Server, choose, click, model  # noqa: E402

IMAGES = ROOT / "docs/images"


def main() -> None:
    runs = [str((ROOT / f"runs/quickstart_{task}/run").resolve()) for task in ("detection", "segmentation")]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        server = Server(Path(folder), *runs)
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(server.url)
        page.wait_for_selector("#examples button")
        choose(page, "a scene")
        page.wait_for_timeout(1000)
        click(page, 0.83, 0.6)
        page.wait_for_timeout(1500)
        page.get_by_label("second").check()
        click(page, 0.08, 0.15)
        page.get_by_label("Head or sampling rate").click()
        page.get_by_role("option", name="head 1").click()
        page.wait_for_timeout(2000)
        page.mouse.move(0, 0)
        save(page, "app.png")
        page.set_viewport_size({"width": 390, "height": 1000})
        model(page, "segmentation")
        page.wait_for_timeout(3000)
        page.get_by_label("where all look").check()
        page.wait_for_timeout(2000)
        page.locator("#view").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#view').scrollIntoView()")
        page.wait_for_timeout(500)
        save(page, "app_phone.png")
        browser.close()
        server.end()


def save(page, name: str) -> None:
    page.screenshot(path=IMAGES / name)
    with Image.open(IMAGES / name) as picture:
        picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
