"""The page itself: its parts, and what happens when they are used."""

import html
import logging
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dgmn.app.view import DENSITY, LOWEST, WALKS, Choice, View, as_html
from dgmn.errors import InputError
from dgmn.images import load_image
from dgmn.loading import load
from dgmn.predictor import Predictor
from dgmn_base.errors import one_line

EXAMPLES = {path.stem.replace("_", " "): path for path in sorted((Path(__file__).parent / "examples").glob("*.png"))}
HOW = "Train one in two minutes: dgmn quickstart. Or name a published one, which is fetched: dgmn app dgmn2_tiny"
_ASK = "Click on the picture, or move the point with the arrow keys."
_NO_IMAGE = "Choose an example, drop an image, or take one with the camera."
ALL = "all"
_QUIET = {
    "show_progress": "hidden",
    "concurrency_id": "network",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
_log = logging.getLogger(__name__)

CSS = """
.gradio-container { max-width: 1500px !important; }
.dgmn-message p { margin: 0; padding: .5em .8em; border-left: 4px solid #1565c0; background: rgba(21,101,192,.08); }
.dgmn-message p[role=alert] { border-color: #c62828; background: rgba(198,40,40,.1); }
.picture { position: relative; }
.picture img { display: block; width: 100%; height: auto; max-width: 100%; }
.gradio-container h1, .gradio-container h2 { margin: 0 !important; }
.gradio-container h2 { font-size: 1.2em; }
#sheet .picture { overflow-x: auto; }
#sheet img { min-width: 400px; max-width: 720px; }
#view .picture { cursor: crosshair; }
.mark { position: absolute; width: 14px; height: 14px; margin: -7px 0 0 -7px; border-radius: 50%;
  border: 2px solid #fff; box-shadow: 0 0 0 1px #222; pointer-events: none; }
.mark.first { background: #e61414; }
.mark.second { background: #008c3c; }
#view:focus-visible, #examples button:focus-visible { outline: 3px solid #1565c0; outline-offset: 2px; }
#examples .row { display: flex; flex-wrap: wrap; gap: .5em; }
#examples button { padding: 2px; border: 1px solid #8888; border-radius: 4px; background: none; cursor: pointer; }
#examples img { height: 64px; width: auto; display: block; }
ul.bars { list-style: none; padding: 0; margin: 0; max-height: 260px; overflow-y: auto; }
ul.bars li { display: flex; gap: .6em; align-items: center; margin: 2px 0; }
ul.bars .name { flex: 0 0 35%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
ul.bars .bar { flex: 1; height: .9em; background: #8883; border-radius: 3px; overflow: hidden; }
ul.bars .bar span { display: block; height: 100%; }
ul.bars .number { flex: 0 0 4em; text-align: right; }
#numbers { max-height: 300px; overflow: auto; }
#numbers table { width: 100%; border: 0; margin: 0; border-collapse: collapse; font-size: .9em; }
#numbers th, #numbers td { text-align: right; padding: 1px 8px; border: 0; border-bottom: 1px solid #8883; }
"""

# The picture keeps the focus while what is in it changes, so that the arrow keys can go on. While the nodes of a point
# are computed, the newest point waits; gradio's own way to do that, "always_last", would send the first point again.
_POINT = """
element.tabIndex = 0;
element.setAttribute("role", "group");
element.setAttribute("aria-label", "The picture. The arrow keys move the point whose nodes are shown.");
let last = [0.5, 0.5], sent = 0, waits = false;
const send = () => {
    waits = false;
    sent = Date.now();
    trigger("click", {x: last[0], y: last[1]});
    setTimeout(() => { if (waits && Date.now() - sent >= 2000) send(); }, 2000);
};
watch("value", () => {
    sent = 0;
    if (waits) send();
});
const choose = (x, y) => {
    if (!element.querySelector("img")) return;
    last = [x, y].map(v => Math.min(Math.max(v, 0), 0.9999));
    if (Date.now() - sent < 2000) waits = true;
    else send();
};
element.addEventListener("click", event => {
    const image = element.querySelector("img");
    if (!image) return;
    const box = image.getBoundingClientRect();
    choose((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});
element.addEventListener("keydown", event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    choose(last[0] + step[0] * 0.04, last[1] + step[1] * 0.04);
});
"""
_CHOOSE = """
element.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) trigger("click", {name: button.dataset.name});
});
"""


def _file(payload: Any) -> str | None:
    """The file that a browser named. Gradio would open it, but only `dgmn.images` may."""
    return None if payload is None else str(payload.path)


def _taken(file: str) -> Image.Image:
    """The image that was uploaded; its file is deleted.

    Raises:
        InputError: it is no image, or not a file of this page's uploads: whoever reaches the page may name any file.
    """
    path, folder = Path(file).resolve(), Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if not (path.is_relative_to(folder) and path.is_file()):
        raise InputError("the image is no longer here: choose it again")
    try:
        return load_image(path)
    except (InputError, OSError) as error:
        raise InputError(str(error).replace(str(path), "the image")) from None
    finally:
        path.unlink(missing_ok=True)


def _said(text: str, role: str = "status") -> str:
    return f'<p role="{role}">{html.escape(text)}</p>'


def page(models: Mapping[str, str], device: str = "auto") -> gr.Blocks:
    """Builds the page.

    Args:
        models: the sources of the networks, as `dgmn.load` takes them, by the names that the page shows.
        device: the device to compute on.
    """

    @lru_cache(maxsize=2)
    def network(source: str) -> Predictor:
        return load(source, device=device)

    labels = {source: name for name, source in models.items()}
    with gr.Blocks(title="dgmn", analytics_enabled=False, delete_cache=(60, 300), fill_width=True) as blocks:
        seen = gr.State(None)
        gr.HTML("<h1>dgmn: see what it sees</h1>")
        message = gr.HTML(_said(_NO_IMAGE if models else f"There is no trained network here. {HOW}"), elem_id="message")
        message.elem_classes = ["dgmn-message"]
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                model = gr.Dropdown(
                    list(models.items()), value=next(iter(models.values()), None), label="Model", elem_id="model"
                )
                gr.HTML("<h2>Image</h2>")
                examples = gr.HTML(_thumbnails(), js_on_load=_CHOOSE, elem_id="examples")
                photo = gr.Image(
                    label="Your own image",
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    buttons=[],
                    height=180,
                    elem_id="photo",
                )
                photo.preprocess = _file
            with gr.Column(scale=4, min_width=320):
                gr.HTML("<h2>Prediction</h2>")
                picture = gr.HTML("", js_on_load=_POINT, elem_id="view")
                with gr.Row():
                    which = gr.Radio(["first", "second"], value="first", label="A click sets the point", scale=2)
                    clear = gr.Button("Remove the second point", size="sm", min_width=120, visible=False)
                score = gr.Slider(LOWEST, 1, 0.3, step=0.01, label="Lowest score", visible=False, elem_id="score")
                opacity = gr.Slider(0, 1, 0.55, step=0.05, label="Opacity of the classes", visible=False)
                findings = gr.HTML("", elem_id="findings")
            with gr.Column(scale=4, min_width=320):
                gr.HTML("<h2>Nodes</h2>")
                layer = gr.Slider(1, 2, 1, step=1, label="Layer", elem_id="layer", interactive=True)
                sheet = gr.HTML(f"<p>{_ASK}</p>", elem_id="sheet")
                with gr.Row():
                    stage = gr.Checkbox(False, label="All layers of its stage", min_width=150)
                    arrows = gr.Checkbox(True, label="Walks as arrows", min_width=150)
                with gr.Row():
                    head = gr.Dropdown([ALL], value=ALL, label="Head or sampling rate", min_width=150)
                    shows = gr.Radio([WALKS, DENSITY], value=WALKS, label="Show", elem_id="shows", min_width=150)
                with gr.Accordion("The nodes as numbers", open=True):
                    numbers = gr.HTML("", elem_id="numbers")

        chosen = [layer, stage, head, shows, arrows]

        def told(handler: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
            """Says an error in words, and goes on. A handler returns the parts of the page that change."""

            @wraps(handler)
            def safe(*values: Any) -> dict[Any, Any]:
                try:
                    return handler(*values) or {message: gr.skip()}
                except (InputError, OSError) as error:
                    return {message: _said(one_line(str(error)), "alert")}
                except Exception as error:
                    _log.exception("in the page")
                    return {
                        message: _said(f"This did not work: {type(error).__name__}: {one_line(str(error))}", "alert")
                    }

            return safe

        def start(source: str | None, image: Any, score: float, opacity: float) -> dict[Any, Any]:
            """Predicts an image with a model."""
            if source is None:
                raise InputError(f"there is no trained network here. {HOW}")
            predictor = network(source)
            view = View.of(predictor, image)
            text = f"{labels[source]}: {predictor.task}. {_ASK}"
            if view.image.size != image.size:
                text += f" The page shrank the image from {image.width} x {image.height} pixels; dgmn predict does not."
            return {
                seen: view,
                message: _said(text),
                **drawn(view, score, opacity),
                score_part: gr.update(visible=predictor.task == "detection"),
                opacity_part: gr.update(visible=predictor.task == "segmentation"),
                which: "first",
                sheet: "<p>…</p>",
                numbers: "",
            }

        score_part, opacity_part = score, opacity

        def drawn(view: View, score: float, opacity: float) -> dict[Any, Any]:
            marks = [
                ((point[0] / view.image.width, point[1] / view.image.height), name)
                for point, name in zip(view.points, ("first", "second"), strict=True)
                if point is not None
            ]
            shown = as_html(
                view.picture(score, opacity), one_line(f"The image, in which was found: {view.result}"), marks
            )
            return {picture: shown, findings: view.findings(score)}

        @told
        def from_example(source: str | None, score: float, opacity: float, event: gr.EventData) -> dict[Any, Any]:
            name = event._data.get("name")
            if name not in EXAMPLES:
                raise InputError(f"there is no example {name!r}")
            return start(source, load_image(EXAMPLES[name]), score, opacity)

        @told
        def from_file(source: str | None, file: str | None, score: float, opacity: float) -> dict[Any, Any]:
            if file is None:
                return {message: _said(_NO_IMAGE)}
            return start(source, _taken(file), score, opacity)

        @told
        def from_model(source: str | None, view: View | None, score: float, opacity: float) -> dict[Any, Any]:
            return {} if view is None else start(source, view.image, score, opacity)

        @told
        def redraw(view: View | None, score: float, opacity: float) -> dict[Any, Any]:
            return {} if view is None else drawn(view, score, opacity)

        @told
        def look(view: View | None, *values: Any) -> dict[Any, Any]:
            """Draws the nodes anew."""
            if view is None:
                return {}
            nodes = view.nodes(view.points[0])
            layer_now = min(int(values[0]), len(nodes.layers))
            names = [ALL, *view.heads(layer_now)]
            head_now = values[2] if values[2] in names else ALL
            choice = Choice(layer_now, values[1], None if head_now == ALL else head_now, *values[3:])
            updates = {
                layer: gr.update(maximum=max(2, len(nodes.layers)), value=layer_now),
                head: gr.update(choices=names, value=head_now),
                clear: gr.update(visible=view.points[1] is not None),
            }
            if choice.shows == WALKS and view.points == [None, None]:
                return {**updates, sheet: f"<p>{_ASK}</p>", numbers: ""}
            alt = f"{choice.shows}, layer {nodes.layers[layer_now - 1]}"
            return {**updates, sheet: as_html(view.sheet(choice), alt), numbers: view.table(choice)}

        @told
        def first_look(view: View | None, *values: Any) -> dict[Any, Any]:
            """The nodes of a new image, for its middle: in the last layer whose map is not yet the smallest."""
            if view is None or view.points != [None, None]:
                return {}
            try:
                nodes = view.nodes()
            except InputError as error:
                return {sheet: _said(one_line(str(error))), numbers: ""}
            view.points[0] = nodes.at
            number = 1 + nodes.layers.index(nodes.select("stages")[-2:][0])
            return {**look(view, number, *values[1:5]), **drawn(view, *values[5:])}

        @told
        def point(
            view: View | None,
            which: str,
            layer: int,
            stage: bool,
            head: str,
            shows: str,
            arrows: bool,
            score: float,
            opacity: float,
            event: gr.EventData,
        ) -> dict[Any, Any]:
            if view is None:
                raise InputError(_NO_IMAGE)
            at = (float(event._data["x"]) * view.image.width, float(event._data["y"]) * view.image.height)
            view.nodes(at)  # an error leaves the points as they are
            view.points[which == "second"] = at
            said = _said(f"The {which} point is at x = {at[0]:.0f}, y = {at[1]:.0f}. {_ASK}")
            return {message: said, **drawn(view, score, opacity), **look(view, layer, stage, head, shows, arrows)}

        @told
        def forget(view: View | None, *values: Any) -> dict[Any, Any]:
            if view is None:
                return {}
            view.points[1] = None
            return {**look(view, *values[:5]), **drawn(view, *values[5:])}

        looks = [score, opacity]
        everything = [seen, message, picture, which, clear, findings, score, opacity, layer, head, sheet, numbers]
        first = {"fn": first_look, "inputs": [seen, *chosen, *looks], "outputs": everything, **_QUIET}
        shown = {"outputs": everything, **_QUIET, "show_progress": "minimal"}
        examples.click(from_example, [model, *looks], **shown).then(**first)
        gone = photo.input(from_file, [model, photo, *looks], **shown)
        gone.then(lambda: None, None, photo, **_QUIET).then(**first)
        model.input(from_model, [model, seen, *looks], **shown).then(**first)
        for control in looks:
            control.input(redraw, [seen, *looks], [message, picture, findings], trigger_mode="always_last", **_QUIET)
        for control in chosen:
            control.input(look, [seen, *chosen], everything, trigger_mode="always_last", **_QUIET)
        picture.click(point, [seen, which, *chosen, *looks], everything, trigger_mode="multiple", **_QUIET)
        clear.click(forget, [seen, *chosen, *looks], everything, **_QUIET)
    return blocks


def _thumbnails() -> str:
    """The examples as buttons."""
    buttons = (
        f'<button type="button" data-name="{name}" aria-label="Example: {name}">'
        f"{as_html(load_image(path), f'Example: {name}')}</button>"
        for name, path in EXAMPLES.items()
    )
    return f'<div class="row">{"".join(buttons)}</div>'
