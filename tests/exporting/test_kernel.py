"""Files of `dgmn export --kernel`: our operators in onnxruntime, from the library that the package builds."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import dgmn
from dgmn import onnx_network
from dgmn.classification.builders import classifier
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.errors import InputError
from dgmn.exporting import export
from dgmn.layers.dgmn import DGMNMessage
from dgmn.ops import position_scores, sampled_aggregate, sampled_attention
from dgmn_cli import run

LIBRARY = Path(onnx_network.__file__).parent / "_onnxruntime.so"
built = pytest.mark.skipif(not LIBRARY.is_file(), reason="dgmn was installed without a C++ compiler")
INPUTS = {
    "SampledAttention": ("query", "key", "value", "offset", "bias"),
    "SampledAggregate": ("value", "offset", "weight"),
    "PositionScores": ("query", "rows", "columns"),
}


def session(operator, inputs, numbers, types=None, threads=2):
    """A session of one node; inputs that are None are left out."""
    names = INPUTS[operator]
    given = [name if inputs.get(name) is not None else "" for name in names]
    node = helper.make_node(operator, given, ["out"], domain="dgmn", **numbers)
    infos = [
        helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), None) for name in given if name
    ]
    graph = helper.make_graph([node], "graph", infos, [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("dgmn", 1)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(dgmn.onnxruntime_library())
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def compute(operator, inputs, numbers, threads=2):
    given = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
    (out,) = session(operator, inputs, numbers, threads=threads).run(None, given)
    return torch.from_numpy(out)


def maps(batch, height, width, heads, dim, nodes=9, walks=None):
    """The inputs of all three operators."""
    shapes = dict.fromkeys(("query", "key", "value"), (batch, height, width, heads, dim))
    shapes |= dict.fromkeys(("bias", "weight"), (batch, height, width, heads, nodes))
    shapes["offset"] = (batch, height, width, walks or heads, nodes, 2)
    shapes |= {"rows": (height + nodes - 1, dim), "columns": (width + nodes - 1, dim)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@built
@pytest.mark.parametrize(
    ("sizes", "side", "dilation"),
    [((1, 14, 14, 4, 17), 3, 1), ((2, 37, 20, 3, 32), 3, 2), ((3, 2, 5, 1, 3), 2, 1), ((0, 3, 4, 2, 8), 3, 1)],
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_operators_compute_what_pytorch_does(sizes, side, dilation, shared, threads):
    x = maps(*sizes, nodes=side**2, walks=1 if shared else None)
    grid = {"kernel_size": side, "dilation": dilation}
    for bias in (x["bias"], None):
        inputs = {**{name: x[name] for name in ("query", "key", "value", "offset")}, "bias": bias}
        got = compute("SampledAttention", inputs, {**grid, "scale": 0.3}, threads)
        want = sampled_attention(**inputs, scale=0.3, **grid, backend="reference")
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    inputs = {name: x[name] for name in INPUTS["SampledAggregate"]}
    want = sampled_aggregate(**inputs, **grid, backend="reference")
    torch.testing.assert_close(compute("SampledAggregate", inputs, grid, threads), want, rtol=1e-5, atol=3e-5)
    _, height, width, _, _ = sizes
    for rows in (x["rows"], None):
        for columns in (x["columns"], None):
            for mirrored in (False, True)[: 1 + (height == width)]:
                inputs = {"query": x["query"], "rows": rows, "columns": columns}
                got = compute("PositionScores", inputs, {"nodes": side**2, "mirrored": int(mirrored)}, threads)
                want = position_scores(**inputs, nodes=side**2, mirrored=mirrored, backend="reference")
                torch.testing.assert_close(got, want, rtol=1e-5, atol=3e-5)


def wrong_shape(name, *shape):
    return lambda x: x | {name: torch.zeros(shape)}


@built
@pytest.mark.parametrize(
    ("operator", "change", "message"),
    [
        ("SampledAttention", wrong_shape("key", 1, 4, 5, 2, 7), r"key must have the shape \(1, 4, 5, 2, 8\), got"),
        ("SampledAttention", wrong_shape("value", 1, 4, 6, 2, 8), "value must have the shape"),
        ("SampledAttention", wrong_shape("query", 4, 5, 2, 8), r"query must have the shape \(B, H, W, heads, D\)"),
        ("SampledAttention", wrong_shape("query", 1, 0, 5, 2, 8), ".* of which only B may be zero"),
        ("SampledAttention", wrong_shape("query", 1, 1, 1, 1, 1, 1, 1), "query has more than 6 dimensions"),
        ("SampledAttention", wrong_shape("query"), "query must have the shape"),
        ("SampledAttention", wrong_shape("offset", 1, 4, 5, 3, 9, 2), "offset must have the shape"),
        ("SampledAttention", wrong_shape("offset", 1, 4, 5, 2, 9), "offset must have the shape"),
        ("SampledAttention", wrong_shape("bias", 1, 4, 5, 1, 9), "bias must have the shape"),
        ("SampledAggregate", wrong_shape("weight", 1, 4, 5, 2, 8), "weight must have the shape"),
        ("SampledAggregate", wrong_shape("offset", 1, 4, 5, 1, 4, 2), "offset must have the shape"),
        ("PositionScores", wrong_shape("rows", 11, 8), r"rows must have the shape \(12, 8\), got \(11, 8\)"),
        ("PositionScores", wrong_shape("columns", 13), "columns must have the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(operator, change, message):
    numbers = {"nodes": 9, "mirrored": 0} if operator == "PositionScores" else {"kernel_size": 3, "dilation": 1}
    if operator == "SampledAttention":
        numbers["scale"] = 0.3
    x = change(maps(1, 4, 5, 2, 8))
    with pytest.raises(Exception, match=f"dgmn::{operator}: {message}"):
        compute(operator, {name: x[name] for name in INPUTS[operator]}, numbers)


@built
@pytest.mark.parametrize(
    ("operator", "numbers", "message"),
    [
        ("SampledAggregate", {"kernel_size": 0, "dilation": 1}, "kernel_size must be from 1 to 1024, got 0"),
        ("SampledAggregate", {"kernel_size": 3, "dilation": 1 << 40}, "dilation must be from 1 to 1048576"),
        ("SampledAggregate", {"kernel_size": 3}, "dilation"),
        ("SampledAttention", {"kernel_size": 3, "dilation": 1, "scale": float("nan")}, "scale must be finite"),
        ("PositionScores", {"nodes": -1, "mirrored": 0}, "nodes must be from 1"),
        ("PositionScores", {"nodes": 9, "mirrored": 2}, "mirrored must be from 0 to 1"),
        ("PositionScores", {"nodes": 9, "mirrored": 1}, "must be a square map"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(operator, numbers, message):
    x = maps(1, 4, 5, 2, 8)
    with pytest.raises(Exception, match=message):
        compute(operator, {name: x[name] for name in INPUTS[operator]}, numbers)


@built
def test_other_types_and_missing_inputs_are_refused():
    x = maps(1, 4, 5, 2, 8)
    grid = {"kernel_size": 3, "dilation": 1}
    inputs = {name: x[name] for name in INPUTS["SampledAggregate"]}
    for kind in (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64):
        with pytest.raises(Exception, match="INVALID_GRAPH"):
            session("SampledAggregate", inputs, grid, types={"offset": kind})
    with pytest.raises(Exception, match="INVALID_GRAPH"):
        compute("SampledAggregate", inputs | {"offset": None}, grid)


@built
def test_random_shapes_are_refused_or_computed():
    """Whatever the shapes, onnxruntime gets an answer or an error."""
    numbers = np.random.default_rng(0)
    x = maps(2, 3, 3, 2, 4)
    inputs = {name: x[name] for name in INPUTS["SampledAttention"]}
    opened = session("SampledAttention", inputs, {"kernel_size": 3, "dilation": 1, "scale": 0.5})
    computed = 0
    for _ in range(300):
        given = {}
        for name, value in inputs.items():
            shape = list(value.shape)
            while numbers.random() < 0.1:
                place = numbers.integers(len(shape)) if shape else 0
                change = numbers.integers(3)
                shape = [n for i, n in enumerate(shape) if i != place] if change == 0 else shape
                shape = [*shape[:place], 1, *shape[place:]] if change == 1 else shape
                shape = [numbers.integers(4) if i == place else n for i, n in enumerate(shape)]
            given[name] = (1e30 if numbers.random() < 0.1 else 1) * numbers.standard_normal(shape).astype(np.float32)
        if all(given[name].shape == tuple(value.shape) for name, value in inputs.items()):
            assert opened.run(None, given)[0].shape == given["query"].shape
            computed += 1
        elif given["offset"].shape != (2, 3, 3, 1, 9, 2):  # which all heads may share
            with pytest.raises(Exception, match="dgmn::SampledAttention"):
                opened.run(None, given)
    assert 30 < computed < 270


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """`exported("semantic_fpn")`: a small trained network of this kind, whose nodes walk, and its file."""

    @functools.cache
    def of(kind):
        model = dgmn.load(small_run(kind), device="cpu")
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.network.named_parameters():
                if "offset." in name or "walks." in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model, export(model, tmp_path_factory.mktemp("kernel") / "a.onnx", size=(96, 128), kernel=True)

    return of


def operators(path, domain="dgmn"):
    return {node.op_type for node in onnx.load(path).graph.node if node.domain == domain}


@built
@pytest.mark.parametrize(
    "kind",
    ["classifier", *(pytest.param(k, marks=pytest.mark.slow) for k in ("semantic_fpn", "dilated_fcn", "mask_rcnn"))],
)
def test_a_file_computes_what_its_network_does(kind, exported):
    model, done = exported(kind)
    assert done.error < 1e-5
    assert "GridSample" not in operators(done.path, "")
    if kind == "dilated_fcn":
        assert operators(done.path) == {"SampledAggregate"}
    else:
        assert operators(done.path) == {"SampledAttention", "PositionScores"}
    if kind == "mask_rcnn":
        return  # `export` compares objects, whose order may differ
    assert done.fixed is None
    network = dgmn.load(done.path).network
    for sizes in ((1, 3, 64, 96), (2, 3, 90, 70)):
        images = torch.randn(sizes)
        with torch.inference_mode():
            want = model.network(images)
        torch.testing.assert_close(network(images), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@built
def test_the_dgmn_module(tmp_path):
    """Its messages have given weights, and its predictors sample tap by tap. The file has kernels on any backend."""
    network = classifier("dgmn_resnet50", 3, {"layers": (1, 1, 1, 1)})
    for name, parameter in network.named_parameters():
        if "walks." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for module in network.modules():
        if isinstance(module, DGMNMessage):
            module.backend = "reference"
    model = ClassificationPredictor(network, ("a", "b", "c"), image_size=64)
    done = export(model, tmp_path / "a.onnx", kernel=True)
    assert done.error < 1e-5
    assert done.fixed is None
    assert operators(done.path) == {"SampledAggregate"}


@built
def test_the_command(small_run, tmp_path, capsys):
    model = tmp_path / "model.onnx"
    assert run(["export", str(small_run("classifier")), "--out", str(model), "--kernel"]) == 0
    assert "register_custom_ops_library(dgmn.onnxruntime_library())" in capsys.readouterr().out
    assert run(["predict", str(next(Path("docs/images").glob("*.jpg"))), "--ckpt_path", str(model)]) == 0


@built
@pytest.mark.skipif(sys.platform != "linux", reason="looks at the libraries of a process as Linux shows them")
def test_the_library_stands_alone():
    """As in C++: a process without PyTorch and without OpenMP loads it."""
    program = (
        "import sys; sys.modules['torch'] = None; import onnxruntime; "
        "options = onnxruntime.SessionOptions(); options.register_custom_ops_library(sys.argv[1]); "
        "print(open('/proc/self/maps').read())"
    )
    command = [sys.executable, "-c", program, dgmn.onnxruntime_library()]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "_onnxruntime.so" in loaded
    assert "libgomp" not in loaded


@built
def test_a_file_without_the_library(exported, tmp_path, monkeypatch):
    """One clear line where there was no compiler."""
    model, done = exported("classifier")
    monkeypatch.setattr(onnx_network, "__file__", str(tmp_path / "elsewhere.py"))
    for call in (
        dgmn.onnxruntime_library,
        lambda: dgmn.load(done.path),
        lambda: export(model, tmp_path / "b.onnx", kernel=True),
    ):
        with pytest.raises(
            InputError, match=r"not built: install a C\+\+ compiler, then dgmn again; or export"
        ) as told:
            call()
        assert "\n" not in str(told.value)
    assert not (tmp_path / "b.onnx").exists()


def test_one_way_to_sample(tmp_path, capsys):
    model = ClassificationPredictor(classifier("dgmn2_nano", 3), ("a", "b", "c"), image_size=64)
    with pytest.raises(InputError, match="kernel: got True with grid_sample=False"):
        export(model, tmp_path / "a.onnx", kernel=True, grid_sample=False)
    assert run(["export", "x", "--out", "a.onnx", "--kernel", "--no-grid-sample"]) != 0
    assert "leave out --no-grid-sample" in capsys.readouterr().err
