import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounter

from models.testers import TimmModelTester

PARAMETERS = {
    "dgmn2_tiny": 12_101_464,
    "dgmn2_small": 20_968_360,
    "dgmn2_medium": 35_811_712,
    "dgmn2_large": 48_286_762,
}


class TestNano(TimmModelTester):
    name = "dgmn2_nano"

    @pytest.mark.slow
    def test_compiles_with_inductor(self):
        self.check_compiled("inductor", atol=1e-4, rtol=1e-3)


@pytest.mark.slow
class TestTiny(TimmModelTester):
    name = "dgmn2_tiny"


@pytest.mark.slow
class TestSmall(TimmModelTester):
    name = "dgmn2_small"


def nano(**options):
    return timm.create_model("dgmn2_nano", **options)


# --------------------------------------------------------------------------------------------------------- sizes


def test_timm_lists_the_models():
    assert sorted(timm.list_models("dgmn2_*")) == sorted([*PARAMETERS, "dgmn2_nano"])
    assert timm.list_pretrained("dgmn2_*") == []  # timm itself can fetch none of them


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters_is_the_papers(name):
    model = timm.create_model(name, device="meta")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_number_of_parameters_of_nano():
    assert 1.4e6 < sum(parameter.numel() for parameter in nano().parameters()) < 1.6e6


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("dgmn2_tiny", [2, 2, 2, 2]),
        ("dgmn2_small", [3, 4, 6, 3]),
        ("dgmn2_medium", [3, 4, 18, 3]),
        ("dgmn2_large", [3, 8, 27, 3]),
    ],
)
def test_architecture_is_the_papers(name, depths):
    model = timm.create_model(name, device="meta", features_only=True)
    stages = model.model.stages
    assert [len(stage.blocks) for stage in stages] == depths
    assert model.feature_info.channels() == [64, 128, 320, 512]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    attention = [stage.blocks[0].attn for stage in stages]
    assert [layer.num_heads for layer in attention] == [1, 2, 5, 8]
    assert [len(layer.rel_pos.rel_width) for layer in attention] == [64, 36, 22, 15]
    assert [stage.blocks[0].mlp.fc1.out_features for stage in stages] == [512, 1024, 1280, 2048]


@pytest.mark.parametrize("name", ["dgmn2_medium", "dgmn2_large"])
def test_large_models_run(name):
    with torch.no_grad():
        maps = timm.create_model(name, features_only=True).eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(feature.shape) for feature in maps] == [
        (1, 64, 16, 24),
        (1, 128, 8, 12),
        (1, 320, 4, 6),
        (1, 512, 2, 3),
    ]
    assert all(feature.isfinite().all() for feature in maps)


# ------------------------------------------------------------------------------------------------------- options


def test_drop_path_grows_linearly_over_the_depth():
    model = timm.create_model("dgmn2_small", drop_path_rate=0.3)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = torch.linspace(0, 0.3, 16)
    for drop_path in ("drop_path1", "drop_path2"):
        torch.testing.assert_close(torch.tensor([getattr(block, drop_path).drop_prob for block in blocks]), rates)


@pytest.mark.parametrize("option", ["attn_drop_rate", "proj_drop_rate", "drop_rate", "drop_path_rate"])
def test_dropout_is_active_in_training_only(option):
    model = nano(**{option: 0.5}, num_classes=10)
    plain = nano(num_classes=10)
    plain.load_state_dict(model.state_dict())
    image = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), plain.eval()(image))
        model.train()
        plain.train()
        torch.testing.assert_close(plain(image), plain(image))
        assert not torch.allclose(model(image), model(image))


def test_number_of_channels_and_classes():
    image = torch.randn(2, 1, 64, 64)
    assert nano(in_chans=1, num_classes=7)(image).shape == (2, 7)
    assert nano(in_chans=1, num_classes=0)(image).shape == (2, 192)
    assert nano(in_chans=1, num_classes=0, global_pool="")(image).shape == (2, 192, 2, 2)
    with pytest.raises(RuntimeError):
        nano()(image)


def test_device_and_dtype_of_the_constructor():
    model = nano(device="meta", dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert tensor.is_meta, name
        assert tensor.dtype == torch.bfloat16 or name.endswith("num_batches_tracked"), name
    model.reset_classifier(3)
    assert model.head.weight.is_meta
    assert model.head.weight.dtype == torch.bfloat16


def test_both_relative_positions():
    official, aligned = nano().eval(), nano(rel_pos="aligned").eval()
    aligned.load_state_dict(official.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(official(image), aligned(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, r"output_stride must be 8, 16 or 32, got 4"),
        ({"output_stride": 64}, r"output_stride must be 8, 16 or 32, got 64"),
        ({"output_stride": "8"}, r"output_stride must be 8, 16 or 32, got '8'"),
        ({"global_pool": "max"}, r"global_pool must be .*avg.*, got 'max'"),
        (
            {"global_pool": "", "num_classes": 5},
            r'global_pool "" returns a map, which num_classes = 0 goes with, got 5',
        ),
        ({"rel_pos": "foo"}, r"rel_pos must be .*official.*aligned.*, got 'foo'"),
        ({"num_heads": (1, 2, 3, 6)}, r"num_heads must divide dim = 128, got 3"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        nano(**options)


def test_bad_arguments():
    model = nano()
    with pytest.raises(ValueError, match=r"global_pool must be .*avg.*, got 'max'"):
        model.reset_classifier(5, "max")
    with pytest.raises(ValueError, match='global_pool "" returns a map'):
        model.reset_classifier(5, "")
    model.reset_classifier(0, "")
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 192, 1, 1)
    with pytest.raises(ValueError, match=r"output_fmt must be .*NCHW.*NHWC.*, got 'NLC'"):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")


# -------------------------------------------------------------------------------------------------------- precision


def test_bfloat16_autocast():
    # Evaluation uses the running statistics. Batch norm over two images would double every difference.
    model = nano(num_classes=10).eval()
    image = torch.randn(2, 3, 96, 96)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(image)
        out.float().square().mean().backward()
        results.append((out.float(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    for wide, half in zip(*results, strict=True):
        assert half.isfinite().all()
        assert (half - wide).norm() < 0.05 * wide.norm()


def test_model_in_bfloat16():
    model = nano(num_classes=10).eval()
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        wide = model(image)
        half = model.to(torch.bfloat16)(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - wide).norm() < 0.05 * wide.norm()


# ---------------------------------------------------------------------------------------------------- pretrained


class _Stop(torch.autograd.Function):
    """Passes numbers on, and no gradient back."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(*_):
        return None


def test_gradients_of_a_map_in_any_layout_or_none():
    model = timm.create_model("dgmn2_nano")
    weight = model.stages[3].blocks[0].mlp.fc1.weight
    features = model.forward_features(torch.randn(2, 3, 64, 96))
    gradient = torch.randn(features.shape)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        given = gradient.contiguous(memory_format=layout)
        found += torch.autograd.grad(features, weight, given, retain_graph=True)
    many = torch.autograd.grad(features, weight, gradient[None], retain_graph=True, is_grads_batched=True)[0]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], many[0])
    (_Stop.apply(features).sum() + weight.sum()).backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_pretrained_without_weights_is_an_error(cache_dir):
    with pytest.raises(RuntimeError, match=r"no weights of dgmn2_nano are published: .*pretrained_cfg_overlay"):
        timm.create_model("dgmn2_nano", pretrained=True)


@pytest.mark.slow
def test_dynamic_sizes_compile_once():
    """One graph for all sizes, square ones too.

    On smaller images than these, PyTorch's convolutions choose their kernels by size, and add graphs.
    """
    model = timm.create_model("dgmn2_nano", depths=(1, 1, 1, 1)).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    with torch.no_grad():
        # 224 is the size that the tables are made for.
        for size in ((224, 320), (320, 224), (256, 416), (480, 224), (256, 256), (224, 224)):
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
