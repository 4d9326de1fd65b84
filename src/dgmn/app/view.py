"""What the page shows of one image: the network runs once, and every change of a control draws from what it found."""

import base64
import html
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

from PIL import Image

from dgmn.detection.predictor import DetectionResult
from dgmn.errors import InputError
from dgmn.nodes import Point, SampledLayer, SampledNodes, check_point, label
from dgmn.onnx_network import OnnxNetwork
from dgmn.pictures import distinct_colors, heat_sheet, node_sheet, overlay
from dgmn.predictor import Nodes, Predictor
from dgmn.segmentation.predictor import SegmentationPredictor, SegmentationResult

LONGEST = 1280  # pixels of the longer side of an image in the page; masks of larger ones would take gigabytes
LOWEST = 0.05  # score of an object that is kept for the slider
WALKS, DENSITY = "nodes of the points", "where all look"


@dataclass(frozen=True)
class Choice:
    """What the controls beside the nodes say.

    Attributes:
        layer: number of the layer, from 1.
        stage: whether to show all layers of its stage.
        head: name of the only head or rate to show; None shows all.
        shows: `WALKS` or `DENSITY`.
        arrows: whether the walks are drawn.
    """

    layer: int = 1
    stage: bool = False
    head: str | None = None
    shows: str = WALKS
    arrows: bool = True


@dataclass
class View:
    """An image, what a network found in it, and the points that were chosen.

    Attributes:
        predictor: the network.
        image: the image, at most `LONGEST` pixels long.
        result: what the network found, once.
        points: the first point and the one to compare with, or None.
    """

    predictor: Predictor
    image: Image.Image
    result: Any
    points: list[Point | None] = field(default_factory=lambda: [None, None])
    _maps: dict[Hashable, Nodes] = field(default_factory=dict)

    @classmethod
    def of(cls, predictor: Predictor, image: Image.Image) -> "View":
        """Runs the network on an image."""
        image = image.copy()
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        options: dict[str, Any] = {"score": LOWEST} if predictor.task == "detection" else {}
        return cls(predictor, image, predictor.predict(image, **options))

    def picture(self, score: float, opacity: float) -> Image.Image:
        """The image with what the network found in it."""
        if isinstance(self.result, DetectionResult):
            return self.result.above(score).boxed()
        if isinstance(self.result, SegmentationResult) and isinstance(self.predictor, SegmentationPredictor):
            return overlay(self.image, self.result.labels, self.predictor.painted_colors, opacity)
        return self.image

    def findings(self, score: float) -> str:
        """What the network found, as HTML: classes as bars, objects, or a legend."""
        if isinstance(self.result, DetectionResult):
            found = self.result.above(score)
            colors = [f"rgb{color}" for color in distinct_colors(len(self.predictor.names))]
            rows = [
                (name, value, colors[label])
                for name, value, label in zip(found.names, found.scores.tolist(), found.labels, strict=True)
            ]
            title = f"{len(found)} object{'' if len(found) == 1 else 's'} with a score of at least {score:.2f}"
        elif isinstance(self.result, SegmentationResult) and isinstance(self.predictor, SegmentationPredictor):
            shades = dict(zip(self.predictor.names, self.predictor.colors, strict=True))
            rows = [(name, share, f"rgb{tuple(shades[name])}") for name, share in self.result.shares.items()]
            title = "Share of the image"
        else:
            rows = [(name, value, "#1565c0") for name, value in self.result.top]
            title = "Probability of the classes"
        bars = "".join(
            f'<li><span class="name">{html.escape(name)}</span><span class="bar"><span style="width:{value:.1%};'
            f'background:{color}"></span></span><span class="number">{value:.1%}</span></li>'
            for name, value, color in rows[:30]
        )
        return f'<p>{title}</p><ul class="bars">{bars}</ul>'

    def nodes(self, point: Point | None = None) -> Nodes:
        """The nodes of a point, None: of the middle; the network runs only for a part of the image that is new.

        Raises:
            InputError: the network samples no nodes, or not for this point.
        """
        if isinstance(self.predictor.network, OnnxNetwork):
            raise InputError("an ONNX file does not tell its nodes: choose the checkpoint that it was made from")
        at = point or (self.image.width / 2, self.image.height / 2)
        part = self.predictor.part(self.image, at)
        if part not in self._maps:
            self._maps[part] = self.predictor.nodes(self.image, at)
        check_point(at, *self._maps[part].maps[0].covers)
        return replace(self._maps[part], at=at)

    def sheet(self, choice: Choice) -> Image.Image:
        """The picture of the nodes, or of where all positions look."""
        if choice.shows == DENSITY:
            keys = self._keys(choice)
            maps = [each for each in self.nodes(self.points[0]).maps if _key(each) in keys]
            return heat_sheet(self.image, maps, side=270)
        first, second = self._chosen(choice)
        given = (first, second) if first else (second, [])
        alone = len({each.layer for each in given[0]}) == len(given[0])
        return node_sheet(
            self.image, *given, arrows=choice.arrows, side=560 if alone else 270, columns=1 if alone else 2
        )

    def table(self, choice: Choice) -> str:
        """The nodes as numbers, as HTML."""
        points = self._chosen(choice)
        given = [each for found in points for each in found]
        names = [name for name in ("affinities", "weights") if any(getattr(each, name) is not None for each in given)]
        several = len({each.layer for each in given}) > 1
        rows = [
            (
                number,
                f"{each.layer if several else ''} {label(each)}",
                f"{x:.1f}",
                f"{y:.1f}",
                *map("{:.3f}".format, values),
            )
            for number, found in enumerate(points, 1)
            for each in found
            for (x, y), *values in zip(
                each.positions.tolist(), *(getattr(each, name).tolist() for name in names), strict=True
            )
        ]
        words = {"affinities": "affinity", "weights": "weight"}
        head = "".join(f'<th scope="col">{n}</th>' for n in ("point", "of", "x", "y", *(words[n] for n in names)))
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def heads(self, layer: int) -> list[str]:
        """The names of the heads or rates of a layer."""
        nodes = self.nodes(self.points[0])
        return [label(each) for each in nodes.maps if each.layer == nodes.layers[layer - 1]]

    def _keys(self, choice: Choice) -> set[tuple[str, str]]:
        """The layers and heads that are chosen."""
        maps = self.nodes(self.points[0])
        name = maps.layers[min(choice.layer, len(maps.layers)) - 1]
        names = maps.select(next(each.stage for each in maps.maps if each.layer == name)) if choice.stage else (name,)
        return {_key(each) for each in maps.maps if each.layer in names and choice.head in (None, label(each))}

    def _chosen(self, choice: Choice) -> tuple[list[SampledNodes], list[SampledNodes]]:
        """The nodes of both points."""
        keys = self._keys(choice)
        first, second = (
            [] if point is None else [each.at(point) for each in self.nodes(point).maps if _key(each) in keys]
            for point in self.points
        )
        return first, second


def _key(layer: SampledLayer) -> tuple[str, str]:
    return layer.layer, label(layer)


def as_html(picture: Image.Image, alt: str, marks: Sequence[tuple[Point, str]] = ()) -> str:
    """A picture inside the page itself, so that no file is written, with marks at (x, y) in 0..1."""
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    source = base64.b64encode(encoded.getvalue()).decode()
    spots = "".join(
        f'<span class="mark {name}" style="left:{100 * x:.2f}%;top:{100 * y:.2f}%"></span>' for (x, y), name in marks
    )
    return f'<div class="picture"><img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{source}">{spots}</div>'
