"""What timm requires of every model, after its own tests (tests/test_models.py). Subclass with a name."""

import pytest
import timm
import torch
from timm.layers import create_feature_extractor, get_graph_node_names
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

SIZES = [(224, 224), (256, 320), (193, 257)]


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def clone(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


class TimmModelTester:
    """Set `name`, and `backward_size` if the model does not take 128 x 128."""

    name: str
    backward_size = 128

    def create(self, **options):
        return timm.create_model(self.name, **options)

    def image(self, batch=1, height=None, width=None):
        height = height or self.backward_size
        return torch.randn(batch, 3, height, width or height)

    # ------------------------------------------------------------------------------------- forward and backward

    @pytest.mark.parametrize(("height", "width"), [*SIZES, (32, 32)])
    def test_forward(self, height, width):
        with torch.no_grad():
            out = self.create().eval()(self.image(1, height, width))
        assert out.shape == (1, 1000)
        assert out.isfinite().all()

    def test_backward(self):
        model = self.create(num_classes=42).train()
        out = model(self.image(2))
        assert out.shape == (2, 42)
        assert out.isfinite().all()
        out.mean().backward()
        for name, gradient in gradients(model).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name

    def test_checkpointing_changes_nothing(self):
        model = self.create(num_classes=10, drop_path_rate=0.3, proj_drop_rate=0.1, attn_drop_rate=0.1).train()
        start = clone(model.state_dict())
        image, results = self.image(2), []
        for enable in (False, True):
            model.load_state_dict(start)
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            torch.manual_seed(0)
            out = model(image)
            out.square().mean().backward()
            results.append((out.detach(), clone(gradients(model)), clone(dict(model.named_buffers()))))
        for got, want in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, want)

    def test_checkpointing_forgets_the_inner_maps(self):
        model = self.create(num_classes=10).train()
        image, kept = self.image(2), []
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
                model(image)
            kept.append(sum(sizes))
        assert kept[1] < kept[0] / 2

    # ------------------------------------------------------------------------------------- configuration and head

    def test_default_cfg(self):
        model = self.create().eval()
        cfg, names = model.default_cfg, model.state_dict()
        assert cfg["classifier"] + ".weight" in names
        assert cfg["first_conv"] + ".weight" in names
        assert cfg["architecture"] == self.name
        assert cfg["num_classes"] == model.num_classes == model.get_classifier().out_features
        image = torch.randn(1, *cfg["input_size"])
        with torch.no_grad():
            features = model.forward_features(image)
            assert features.shape == (1, model.num_features, *cfg["pool_size"])
            logits = model(image)
            torch.testing.assert_close(model.forward_head(features), logits)
            pooled = model.forward_head(features, pre_logits=True)
            assert pooled.shape == (1, model.head_hidden_size)

            model.reset_classifier(0)
            torch.testing.assert_close(model(image), pooled)
            model.reset_classifier(0, "")
            torch.testing.assert_close(model(image), features)
            model.reset_classifier(7, "avg")
            assert model(image).shape == (1, 7)
            assert model.num_classes == 7

    # ------------------------------------------------------------------------------------------------- features

    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_features_only(self, output_stride, height, width):
        model = self.create(features_only=True, output_stride=output_stride).eval()
        info = model.feature_info
        assert info.reduction() == [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        with torch.no_grad():
            maps = model(self.image(1, height, width))
        assert len(maps) == 4
        for feature, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
            assert feature.shape == (1, channels, -(-height // stride), -(-width // stride))
            assert feature.isfinite().all()

    @pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (0,), (1, 2), (-1,), 2])
    def test_out_indices(self, out_indices):
        whole = self.create(features_only=True).eval()
        model = self.create(features_only=True, out_indices=out_indices).eval()
        model.load_state_dict({key: whole.state_dict()[key] for key in model.state_dict()})
        indices = range(4 - out_indices, 4) if isinstance(out_indices, int) else [i % 4 for i in out_indices]
        image = self.image()
        with torch.no_grad():
            maps, expected = model(image), whole(image)
        for got, want in zip(maps, [expected[i] for i in indices], strict=True):
            torch.testing.assert_close(got, want)
        assert model.feature_info.channels() == [feature.shape[1] for feature in maps]
        assert len(model.model.stages) == max(indices) + 1

    @pytest.mark.parametrize("feature_cls", ["fx", "hook"])
    def test_other_feature_extractors(self, feature_cls):
        extractors = []
        for options in ({}, {"feature_cls": feature_cls}):
            torch.manual_seed(0)  # equal weights
            extractors.append(self.create(features_only=True, **options).eval())
        image = self.image()
        with torch.no_grad():
            getter, other = (list(extractor(image)) for extractor in extractors)
        torch.testing.assert_close(other, getter)

    def test_forward_intermediates(self):
        model = self.create().eval()
        image = self.image(1, 96, 128)
        with torch.no_grad():
            features = model.forward_features(image)
            final, maps = model.forward_intermediates(image)
            torch.testing.assert_close(final, features)
            torch.testing.assert_close(maps[-1], features)
            assert [feature.shape[1] for feature in maps] == [info["num_chs"] for info in model.feature_info]

            final, channels_last = model.forward_intermediates(image, output_fmt="NHWC")
            torch.testing.assert_close(final, features)
            for got, want in zip(channels_last, maps, strict=True):
                torch.testing.assert_close(got, want.permute(0, 2, 3, 1))

            only = model.forward_intermediates(image, indices=2, intermediates_only=True)
            torch.testing.assert_close(only, maps[2:])
            only = model.forward_intermediates(image, indices=[0, -2], intermediates_only=True)
            torch.testing.assert_close(only, [maps[0], maps[2]])

            last, early = model.forward_intermediates(image, indices=[1], stop_early=True)
            torch.testing.assert_close(early, [maps[1]])
            torch.testing.assert_close(last, maps[1])
            final, late = model.forward_intermediates(image, indices=[1], stop_early=False)
            torch.testing.assert_close(late, [maps[1]])
            torch.testing.assert_close(final, features)

    def test_features_are_channels_last_without_a_copy(self):
        model = self.create(features_only=True).eval()
        for image in (self.image(2), self.image(2).contiguous(memory_format=torch.channels_last)):
            with torch.no_grad():
                for feature in model(image):
                    assert feature.is_contiguous(memory_format=torch.channels_last)

    # ------------------------------------------------------------------------------------------ tracing, compiling

    def test_fx_forward(self):
        model = self.create().eval()
        _, nodes = get_graph_node_names(model)
        traced = create_feature_extractor(model, [nodes[-1]])
        with torch.no_grad():
            # One trace is right for other sizes and batches, too.
            for image in (self.image(), self.image(2, 96, 160)):
                (out,) = traced(image).values()
                torch.testing.assert_close(out, model(image))

    def test_fx_backward(self):
        model = self.create(num_classes=42).train()
        nodes, _ = get_graph_node_names(model)
        traced = create_feature_extractor(model, [nodes[-1]]).train()
        (out,) = traced(self.image(2)).values()
        assert out.shape == (2, 42)
        out.mean().backward()
        for name, gradient in gradients(traced).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
        assert gradients(traced).keys() == gradients(model).keys()

    def check_compiled(self, backend, **tolerance):
        torch._dynamo.reset()
        model = self.create(num_classes=10).train()
        start = clone(model.state_dict())
        image, results = self.image(2, 64), []
        for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
            model.load_state_dict(start)
            model.zero_grad()
            out = run(image)
            out.square().mean().backward()
            results.append((out.detach(), clone(gradients(model))))
        for got, want in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, want, **tolerance)

    @pytest.mark.slow
    def test_compiles_to_one_graph(self):
        self.check_compiled("aot_eager")

    # ------------------------------------------------------------------------------------------------ parameters

    def test_parameter_groups(self):
        model = self.create()
        names = {name for name, _ in model.named_parameters()}
        for coarse in (False, True):
            groups = group_parameters(model, model.group_matcher(coarse=coarse))
            grouped = [name for group in groups.values() for name in group]
            assert sorted(grouped) == sorted(names)
            depth = 4 if coarse else sum(len(stage.blocks) for stage in model.stages)
            assert len(groups) > depth
        rates = {}
        for group in param_groups_layer_decay(model, layer_decay=0.8):
            for parameter in group["params"]:
                rates[parameter] = group["lr_scale"]
        assert len(rates) == len(names)
        blocks = [block.attn.qkv.weight for stage in model.stages for block in stage.blocks]
        scales = [rates[parameter] for parameter in (model.stem[0].conv.weight, *blocks, model.head.weight)]
        assert scales == sorted(set(scales))
        assert scales[-1] == 1
        # A patch embedding has the learning rate of the block after it.
        for stage in model.stages[1:]:
            assert rates[stage.downsample.conv.weight] == rates[stage.blocks[0].attn.qkv.weight]

    def test_no_weight_decay(self):
        model = self.create()
        decayed_not, decayed = param_groups_weight_decay(
            model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay()
        )
        assert decayed_not["weight_decay"] == 0
        assert decayed["weight_decay"] == 0.05
        assert all(parameter.ndim == 1 for parameter in decayed_not["params"])
        # The official recipe decays the position tables too.
        ids = {id(parameter) for parameter in decayed["params"]}
        assert all(id(p) in ids for name, p in model.named_parameters() if name.endswith(("rel_height", "rel_width")))
