"""Quantises a classifier or segmenter in ONNX to 8 bits, and measures what it loses."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgmn.errors import InputError
from dgmn.exporting.quiet import quiet
from dgmn.loading import predictor_of
from dgmn.onnx_network import OnnxNetwork, open_session
from dgmn.predictor import Predictor
from dgmn_base.files import images_in
from dgmn_base.terminal import counted

LOSS = 0.02
"""Most that a file may lose of its top-1 or mIoU."""
AGREEMENT = 0.95
"""Where the images have no labels: least share of the images, or pixels, that get the class of the float file."""
_CALIBRATED, _COMPARED = 128, 500  # images at most
_WIDE = 64  # products per result of the layers that are quantised: narrower ones do not get faster
_LAYERS = ("Conv", "Gemm", "MatMul")
# Which input of a node says where it reads.
_PLACES = {"GridSample": 1, "Gather": 1, "SampledAttention": 3, "SampledAggregate": 1}


@dataclass(frozen=True)
class Quantised:
    """What quantisation has changed.

    Attributes:
        layers: number of layers whose weights and inputs have 8 bits, and of all layers with weights.
        calibrated: number of images that set the ranges of the inputs.
        compared: number of other images for the comparison.
        agreement: share of those images, or of their pixels, that get the same class from both files.
        score: top-1, or mIoU of a segmenter, of the float file and of this one; None if the images have no labels.
        megabytes: size of the float file.
        milliseconds: its time, as `Exported.milliseconds`.
    """

    layers: tuple[int, int]
    calibrated: int
    compared: int
    agreement: float
    score: tuple[float, float] | None
    megabytes: float
    milliseconds: float


def quantise(content: bytes, description: Mapping[str, Any], folder: Path) -> tuple[bytes, dict[str, Any]]:
    """A file's content in 8 bits, and the fields of `Quantised` that have to do with results.

    Inputs and weights of the wide layers get 8 bits. What predicts walks, the classes' own layer, products of
    two activations, softmax and norms stay in float32.

    Args:
        content: the file of a classifier or segmenter.
        description: what it predicts.
        folder: images like those that it will get. Their labels are used if they lie in folders of the classes' names,
            or beside masks as `dgmn fit` reads them.

    Raises:
        InputError: there are no images, no layer is wide, or too much is lost.
    """
    plain = _predictor(description, content)
    files, truth = _labelled(folder, plain) or (images_in(folder), None)
    if not files:
        raise InputError(f"calibrate {folder}: no images in this folder")
    if len(files) == 1:
        raise InputError(f"calibrate {folder}: one image; at least two are needed: one half is compared")
    calibrating = _spread(files[::2], _CALIBRATED)
    comparing = _spread(files[1::2], _COMPARED)
    small_content, layers = in_int8(content, _inputs(plain, calibrating))
    small = _predictor(description, small_content)
    count = len(plain.names)
    confusions = np.zeros((2, count, count), np.int64)
    same = total = 0
    for file in comparing:
        found = [_classes(predictor.predict(file), predictor) for predictor in (plain, small)]
        same += int((found[0] == found[1]).sum())
        total += found[0].size
        if truth is not None:
            wanted = truth(file)
            known = wanted != 255 if plain.task == "segmentation" else slice(None)
            for confusion, classes in zip(confusions, found, strict=True):
                np.add.at(confusion, (wanted[known], classes[known]), 1)
    score = None if truth is None else tuple(_score(confusion, plain.task) for confusion in confusions)
    agreement = same / total
    where = f"{counted(len(comparing), 'image')} of {folder}"
    if score is not None and not score[0] - score[1] <= LOSS:
        raise InputError(
            f"int8: is not written: {score_name(plain.task)} on {where} falls from {score[0]:.1%} to {score[1]:.1%}, "
            f"by more than {LOSS:.0%}"
        )
    if score is None and agreement < AGREEMENT:
        what = "pixels" if plain.task == "segmentation" else "images"
        raise InputError(
            f"int8: is not written: {agreement:.1%} of the {what} get the class of the float file, on {where}, fewer "
            f"than {AGREEMENT:.0%}"
        )
    return small_content, {
        "layers": layers,
        "calibrated": len(calibrating),
        "compared": len(comparing),
        "agreement": agreement,
        "score": score,
    }


def score_name(task: str) -> str:
    """What a task's score is called."""
    return "mIoU" if task == "segmentation" else "top-1"


def _predictor(description: Mapping[str, Any], content: bytes) -> Predictor:
    network = OnnxNetwork(open_session(content))
    return predictor_of(description["task"]).from_description(description, "cpu", network)


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """At most so many files, from the whole list."""
    return list(files[:: math.ceil(len(files) / most)])


def _classes(result: Any, predictor: Predictor) -> NDArray[np.int64]:
    """The class of an image, or of each of its pixels."""
    if predictor.task == "segmentation":
        return np.asarray(result.labels.ravel(), np.int64)
    return np.array([predictor.names.index(result.top[0][0])])


def _score(confusion: NDArray[np.int64], task: str) -> float:
    from dgmn.segmentation.metrics import scores

    found = scores(torch.from_numpy(confusion))
    return found.miou if task == "segmentation" else found.accuracy


def _labelled(folder: Path, predictor: Predictor) -> tuple[list[Path], Callable[[Path], NDArray[np.int64]]] | None:
    """The images of a folder and what gives their classes; None if they have no labels of this network's classes."""
    if predictor.task == "classification":
        files = images_in(folder)
        if not all(file.parent.name in predictor.names for file in files):
            return None
        return files, lambda file: np.array([predictor.names.index(file.parent.name)])
    from dgmn.layout import find_layout
    from dgmn.segmentation.layouts import LAYOUTS

    if not any(layout.fits(folder) for layout in LAYOUTS):
        return None
    layout = find_layout(LAYOUTS, folder)
    layout.palette_masks = True  # numbers of classes, as in what `dgmn predict --labels` writes
    if tuple(layout.classes.names) != predictor.names:
        raise InputError(
            f"calibrate: {folder} has masks of the classes {', '.join(layout.classes.names)}; accepted those of the "
            f"network, {', '.join(predictor.names)}, or a folder of images alone"
        )
    splits = layout.splits()
    samples = layout.samples("val" if "val" in splits else splits[0]) if splits else []
    of_image = {sample.image: sample for sample in samples}
    return list(of_image), lambda file: layout.read(of_image[file])[1].numpy().ravel().astype(np.int64)


class _Recorder(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images)
        out: Tensor = self.network(images)
        return out


def _inputs(predictor: Predictor, files: Sequence[Path]) -> Iterator[Tensor]:
    """What the network is given when images are predicted."""
    network = predictor.network
    predictor.network = recorder = _Recorder(network)
    try:
        for file in files:
            predictor.predict(file)
            yield from recorder.given
            recorder.given.clear()
    finally:
        predictor.network = network


class _Reader:
    """What onnxruntime asks for inputs."""

    def __init__(self, name: str, inputs: Iterator[Tensor]) -> None:
        self._name, self._inputs = name, inputs

    def get_next(self) -> dict[str, Any] | None:
        images = next(self._inputs, None)
        return None if images is None else {self._name: images.numpy()}


def in_int8(content: bytes, inputs: Iterator[Tensor]) -> tuple[bytes, tuple[int, int]]:
    """The file's content in 8 bits, and how many layers have been changed, of how many."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import MinMaxCalibrater
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    model = onnx.load_from_string(content)
    facts = {fact.key: fact.value for fact in model.metadata_props}
    _keep_biases_apart(model.graph)
    chosen, every = _wide_layers(model)
    if not chosen:
        raise InputError("int8: the network has no layers that are wide enough")
    _keep_sums_apart(model.graph, set(chosen))
    with TemporaryDirectory() as folder, quiet():
        path, watched = Path(folder) / "model.onnx", Path(folder) / "watched.onnx"
        onnx.save(model, path)
        # What onnxruntime's quantize_static does, but for the session, which must know our operators.
        calibrater = MinMaxCalibrater(path, _LAYERS, str(watched))
        calibrater.augment_graph()
        calibrater.infer_session = open_session(watched.read_bytes())
        calibrater.collect_data(_Reader(model.graph.input[0].name, inputs))
        quantizer = QDQQuantizer(
            load_model_with_shape_infer(path),
            per_channel=True,
            activation_qType=QuantType.QUInt8,
            weight_qType=QuantType.QInt8,
            reduce_range=True,  # without VNNI, sums of two products of 8 bits overflow
            tensors_range=calibrater.compute_data(),
            nodes_to_quantize=chosen,
            nodes_to_exclude=[],
            op_types_to_quantize=list(_LAYERS),
            # Their sums have 32 bits, from which norms and softmax get floats without a loss.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        quantizer.quantize_model()
        result = quantizer.model.model
    onnx.helper.set_model_props(result, {**facts, "dgmn_int8": f"{len(chosen)} of {every} layers"})
    quantised: bytes = result.SerializeToString()
    return quantised, (len(chosen), every)


def _keep_biases_apart(graph: Any) -> None:
    """Gives every node that shares its bias with others a copy: a bias has the scale of its node in 8 bits.

    PyTorch writes equal biases once, and passes them on by Identity nodes; onnxruntime would leave their layers in
    float, and turn the weights back in every run.
    """
    initial = {each.name: each for each in graph.initializer}
    shared = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in initial]
    for node in shared:
        copy = graph.initializer.add()
        copy.CopyFrom(initial[node.input[0]])
        copy.name = node.output[0]
        graph.node.remove(node)


def _keep_sums_apart(graph: Any, layers: set[str]) -> None:
    """Subtracts the negative biases of these products, which is the same, instead of adding the biases.

    When onnxruntime opens a file, it first makes one Gemm of a product and a sum. That Gemm it then cannot compute in 8
    bits, for want of a bias in 32 bits: it would turn the weights back into floats in every run.
    """
    from onnx import numpy_helper

    products = {node.output[0] for node in graph.node if node.op_type == "MatMul" and node.name in layers}
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type != "Add":
            continue
        product, bias = node.input if node.input[0] in products else reversed(node.input)
        if product in products and bias in constants:
            negative = numpy_helper.from_array(-numpy_helper.to_array(constants[bias]), f"{node.name}_negative")
            graph.initializer.append(negative)
            node.op_type = "Sub"
            node.input[:] = [product, negative.name]


def _constants(graph: Any) -> dict[str, Any]:
    """The tensors of a graph that are known, by name."""
    known = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = node.attribute[0].t
    return known


def _wide_layers(model: Any) -> tuple[list[str], int]:
    """The names of the layers to quantise, and the number of all that have weights.

    The closest layers before the results, and before the positions where something is sampled, are left as they are.
    """
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    shapes = {name: tuple(each.dims) for name, each in _constants(graph).items()}
    layers = {node.name: node for node in graph.node if node.op_type in _LAYERS and node.input[1] in shapes}
    exact: set[str] = set()
    seen: set[str] = set()
    todo = [result.name for result in graph.output]
    todo += [node.input[_PLACES[node.op_type]] for node in graph.node if node.op_type in _PLACES]
    while todo:
        name = todo.pop()
        node = maker.get(name)
        if name in seen or node is None or node.op_type == "Shape":  # sizes are no values
            continue
        seen.add(name)
        if node.name in layers:
            exact.add(node.name)
        else:
            todo.extend(node.input)

    def products(node: Any) -> int:
        shape = shapes[node.input[1]]
        transposed = any(x.name == "transB" and x.i for x in node.attribute)
        return math.prod(shape[1:]) if node.op_type == "Conv" or transposed else shape[-2]

    wide = [name for name, node in layers.items() if name not in exact and products(node) >= _WIDE]
    return wide, len(layers)
