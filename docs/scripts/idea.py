"""Draws the pictures of docs/idea.md and the cat of the first page, with the real operators and a network trained here.

    uv run python docs/scripts/idea.py CKPT

CKPT is the checkpoint of a classifier with DGMN2. docs/idea.md says how it was trained.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as TF

import dgmn
from dgmn.about import about
from dgmn.images import save_image
from dgmn.nodes import SampledLayer, SampledNodes, node_maps
from dgmn.ops import sampled_aggregate
from dgmn.pictures import heat_sheet, node_sheet
from dgmn.predictor import Predictor

IMAGES = Path(__file__).parents[1] / "images"
POINT, OTHER = (172, 113), (265, 242)  # the cat's eye and its nose
SIZE = (64, 96)  # height and width at which the network sees the photograph: the cat is as large as those of CIFAR-10
LAYER, FINE = "stages.2.blocks.1.attn", "stages.0.blocks.1.attn"
SIDE, SCALE = 224, 3  # width of a panel; drawn larger, then reduced, which smooths
RED, YELLOW, INK, PAPER = (230, 20, 20), (255, 205, 50), (30, 30, 30), (255, 255, 255)
Point = tuple[float, float]


class Panel:
    """A pale photograph under a title, to draw on in pixels of the photograph."""

    def __init__(self, photo: Image.Image, title: str) -> None:
        self.factor = SIDE * SCALE / photo.width
        size = (SIDE * SCALE, round(photo.height * self.factor))
        self.canvas = Image.blend(photo.resize(size), Image.new("RGB", size, PAPER), 0.3)
        self.draw = ImageDraw.Draw(self.canvas)
        self.title = title

    def dot(self, point: Point, radius: float, color: tuple[int, int, int]) -> None:
        x, y = (number * self.factor for number in point)
        r = radius * SCALE
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color, outline=INK, width=SCALE)

    def arrow(self, start: Point, end: Point) -> None:
        (x, y), (to_x, to_y) = ((a * self.factor, b * self.factor) for a, b in (start, end))
        length = max(((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5, 1e-6)
        along, head = ((to_x - x) / length, (to_y - y) / length), min(5 * SCALE, length)
        neck = (to_x - along[0] * head, to_y - along[1] * head)
        self.draw.line((x, y, *neck), fill=INK, width=SCALE + 1)
        wide = head * 0.6
        sides = [(neck[0] - s * along[1] * wide, neck[1] + s * along[0] * wide) for s in (1, -1)]
        self.draw.polygon([(to_x, to_y), *sides], fill=INK)

    def picture(self) -> Image.Image:
        panel = Image.new("RGB", (SIDE, self.canvas.height // SCALE + 26), PAPER)
        panel.paste(self.canvas.reduce(SCALE), (0, 26))
        ImageDraw.Draw(panel).text((2, 3), self.title, INK, ImageFont.load_default(size=15))
        return panel


def beside(panels: list[Image.Image], columns: int) -> Image.Image:
    width, height = panels[0].width + 8, panels[0].height + 8
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * width - 8, rows * height - 8), PAPER)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % columns * width, i // columns * height))
    return sheet


def three(photo: Image.Image, layer: SampledLayer, nodes: SampledNodes) -> list[Image.Image]:
    convolution, everything, sampled = (
        Panel(photo, title) for title in ("a convolution", "a plain transformer", "DGMN2")
    )
    for point in nodes.grid.tolist():
        convolution.dot(point, 5, YELLOW)
    left, top = layer.corner
    for row in range(layer.walks.shape[0]):
        for column in range(layer.walks.shape[1]):
            place = (left + (column + 0.5) * layer.scale[0], top + (row + 0.5) * layer.scale[1])
            everything.dot(place, 3, YELLOW)
    moved(sampled, nodes)
    for panel in (convolution, everything, sampled):
        panel.dot(nodes.receiver, 4, RED)
    return [panel.picture() for panel in (convolution, everything, sampled)]


def moved(panel: Panel, nodes: SampledNodes, weighted: bool = False) -> None:
    assert nodes.affinities is not None
    for start, end in zip(nodes.grid.tolist(), nodes.positions.tolist(), strict=True):
        panel.arrow(start, end)
    for end, share in zip(nodes.positions.tolist(), nodes.affinities.tolist(), strict=True):
        panel.dot(end, 16 * share**0.5 if weighted else 4, YELLOW)


def steps(photo: Image.Image, nodes: SampledNodes) -> Image.Image:
    panels = [Panel(photo, title) for title in ("1. a position", "2. the grid", "3. the walks", "4. the affinities")]
    for point in nodes.grid.tolist():
        panels[1].dot(point, 4, YELLOW)
    moved(panels[2], nodes)
    moved(panels[3], nodes, weighted=True)
    for panel in panels:
        panel.dot(nodes.receiver, 4, RED)
    return beside([panel.picture() for panel in panels], 2)


def message(photo: Image.Image, layer: SampledLayer) -> Image.Image:
    """Colours in place of features: the map, and the message of every position."""
    assert layer.affinities is not None
    height, width = layer.walks.shape[:2]
    colors = F.interpolate(TF.to_image(photo)[None].float(), (height, width), mode="area").permute(0, 2, 3, 1)
    passed = sampled_aggregate(colors[:, :, :, None], layer.walks[None, :, :, None], layer.affinities[None, :, :, None])
    panels = []
    for title, values in (("the colours of the map", colors), ("the messages", passed[:, :, :, 0])):
        panel = Panel(photo, title)
        map_ = Image.fromarray(values[0].round().clamp(0, 255).byte().numpy())
        panel.canvas = map_.resize(panel.canvas.size, Image.Resampling.NEAREST)
        panels.append(panel.picture())
    return beside(panels, 2)


def seen(predictor: Predictor, photo: Image.Image, size: tuple[int, int]) -> list[SampledLayer]:
    """What the layers sample in the photograph at this height and width, in pixels of the photograph."""
    prepared = about(predictor.network).preprocessing
    pixels = TF.resize(TF.to_dtype(TF.to_image(photo), scale=True), list(size), antialias=True)
    image = TF.normalize(pixels, list(prepared.mean), list(prepared.std))[None]
    with torch.no_grad():
        shares = predictor.network(image).softmax(-1)[0]
    print(size, ", ".join(f"{predictor.names[i]} {shares[i]:.0%}" for i in shares.argsort(descending=True)[:3]))
    scale = (photo.width / size[1], photo.height / size[0])
    return [layer.placed(scale, (0, 0)) for layer in node_maps(predictor.network, image)]


def main() -> None:
    predictor = dgmn.load(sys.argv[1], device="cpu")
    photo = Image.open(IMAGES / "cat.jpg").convert("RGB")
    maps = seen(predictor, photo, SIZE)
    last = {layer.stage: layer.layer for layer in maps}.values()
    heads = [layer for layer in maps if layer.layer == LAYER]
    one = max(heads, key=lambda layer: float((layer.at(POINT).positions - layer.at(POINT).grid).norm(dim=-1).mean()))
    nodes = one.at(POINT)
    fine = next(layer for layer in seen(predictor, photo, (3 * SIZE[0], 3 * SIZE[1])) if layer.layer == FINE)
    convolution, everything, sampled = three(photo, one, nodes)
    for name, picture in {
        "idea_convolution.jpg": convolution,
        "idea_transformer.jpg": everything,
        "idea_dgmn2.jpg": sampled,
        "idea_steps.jpg": steps(photo, nodes),
        "idea_message.jpg": message(photo, fine),
        "idea_two.jpg": node_sheet(photo, [nodes], [one.at(OTHER)], side=500),
        "cat_nodes.jpg": node_sheet(photo, [nodes], side=500),
        "cat_stages.jpg": node_sheet(photo, [layer.at(POINT) for layer in maps if layer.layer in last], columns=3),
        "cat_density.jpg": heat_sheet(photo, [layer for layer in maps if layer.layer in last]),
    }.items():
        save_image(picture, IMAGES / name)
        print(name, picture.size, (IMAGES / name).stat().st_size)


if __name__ == "__main__":
    main()
