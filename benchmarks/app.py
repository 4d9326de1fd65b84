"""Times the page of `dgmn app`: from a click to the nodes in the browser, for an untrained dgmn2_tiny at 512 x 512.

    uv run python benchmarks/app.py        # on two threads; needs chromium

The first click on a new image is left out: the network runs for it. Writes the median and the slowest of 20 to
`app_cpu.csv`, and as the table of `docs/app.md`.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from pages import publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from app.test_page import Server, drop, rows

_CLICK = """([x, y]) => new Promise(done => {
    const start = performance.now();
    const state = () => [document.querySelector("#numbers").innerText, document.querySelector("#sheet img")?.src];
    const before = state();
    new MutationObserver((_, observer) => {
        const now = state();
        if (now[1] && now.every((part, i) => part !== before[i]) && document.querySelector("#sheet img").complete) {
            observer.disconnect();
            done(performance.now() - start);
        }
    }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
    const box = document.querySelector("#view img").getBoundingClientRect();
    const at = {bubbles: true, clientX: box.left + x * box.width, clientY: box.top + y * box.height};
    document.querySelector("#view img").dispatchEvent(new MouseEvent("click", at));
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    given = parser.parse_args()
    description = {"task": "classification", "model": "dgmn2_tiny", "num_classes": 2, "model_args": {}}
    description |= {"classes": ["a", "b"], "image_size": 512, "crop_pct": 1.0}
    network = timm.create_model("dgmn2_tiny", num_classes=2)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"state_dict": state, "dgmn": description}, Path(folder) / "tiny.ckpt")
        photo = Path(folder) / "photo.jpg"
        example = Path(__file__).parents[1] / "src/dgmn/app/examples/a_landscape.png"
        Image.open(example).convert("RGB").resize((512, 512)).save(photo)
        server = Server(Path(folder), str(Path(folder) / "tiny.ckpt"))
        try:
            with sync_playwright() as tool:
                browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(server.url)
                page.wait_for_selector("#photo button")
                drop(page, photo.read_bytes())
                page.wait_for_selector("#numbers td")
                page.wait_for_timeout(1000)
                times = []
                for i in range(20):
                    times.append(page.evaluate(_CLICK, [0.05 + 0.045 * i, 0.9 - 0.04 * i]))
                    page.wait_for_timeout(500)  # the rest of the page changes, too
                nodes = len(rows(page))
                browser.close()
        finally:
            server.end()
    row = {"network": "`dgmn2_tiny`, 512 x 512", "nodes": str(nodes), "clicks": str(len(times))}
    row |= {"median, ms": f"{statistics.median(times):.0f}", "slowest, ms": f"{max(times):.0f}"}
    publish(Path(__file__), "app.md", [row], given.out, "cpu")


if __name__ == "__main__":
    main()
