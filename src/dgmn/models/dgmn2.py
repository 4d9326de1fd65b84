"""DGMN2: a pyramid Transformer whose attention is linear in the number of pixels (paper, section 4.2, Table 1).

Registered with timm, so everything that timm does with a model works: `timm.create_model("dgmn2_tiny",
features_only=True, output_stride=8)` and so on.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, get_device_dtype, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from dgmn.about import About, about_timm
from dgmn.errors import check_number, check_share
from dgmn.layers import DGMN2Block
from dgmn.models.official import official_dgmn2
from dgmn.ops.tracing import channels_last, is_symbolic, is_watched
from dgmn.weights import ZOO, fetch, match_keys, read_checkpoint

__all__ = ["DGMN2"]

# The relative position tables are made for the maps of a 224 x 224 image, whatever the size of later images.
_TABLE_IMAGE = 224
_STRIDES = (4, 8, 16, 32)


def _conv_bn_relu(in_chs: int, out_chs: int, stride: int, **dd: Any) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False, **dd),
            bn=nn.BatchNorm2d(out_chs, **dd),
            act=nn.ReLU(inplace=True),
        )
    )


class DGMN2Stage(nn.Module):
    """Patch embedding and blocks of one resolution, (B, C_in, H, W) to (B, C, H / stride, W / stride)."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        # Maps are kept in channels-last memory, so neither permutation copies.
        x = x.permute(0, 2, 3, 1)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        if not is_symbolic(x) and x.requires_grad and not is_watched((x,)):
            x.register_hook(_dense)  # type: ignore[no-untyped-call] # PyTorch does not type it
        return x.permute(0, 3, 1, 2)


def _dense(grad: Tensor | None) -> Tensor | None:
    """One gradient in another layout would slow down all sums of gradients in a stage."""
    return None if grad is None else grad.contiguous()  # PyTorch gives None where nothing depends on the map


class DGMN2(nn.Module):
    """Dynamic graph message passing network in Transformer form.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: "avg", or "", with `num_classes=0`, to return the map of the last stage.
        output_stride: 32, 16 or 8; below 32 the patch embeddings of the last stages keep the resolution.
        embed_dims: channels of the four stages (Table 1).
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages.
        mlp_ratios: width of the perceptrons' hidden layers over the channels, for the four stages.
        rel_pos: "official" or "aligned", see [`RelativePosition`][dgmn.layers.RelativePosition].
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.

    Shape:
        (B, in_chans, H, W) of any size to (B, num_classes).

    Source: Dynamic Graph Message Passing Networks for Visual Recognition, section 4 (https://arxiv.org/abs/2209.09760).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        rel_pos: Literal["official", "aligned"] = "official",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
        check_number("in_chans", in_chans)
        check_number("num_classes", num_classes, at_least=0)
        for name, numbers in {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads}.items():
            if len(numbers) != 4:
                raise ValueError(f"{name} must be four numbers, one for every stage, got {numbers!r}")
            for number in numbers:
                check_number(name, number)
        check_share("drop_path_rate", drop_path_rate)
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = _checked_pool(global_pool, num_classes)

        self.stem = nn.Sequential(
            _conv_bn_relu(in_chans, embed_dims[0] // 2, 2, **dd),
            _conv_bn_relu(embed_dims[0] // 2, embed_dims[0] // 2, 1, **dd),
            _conv_bn_relu(embed_dims[0] // 2, embed_dims[0], 2, **dd),
        )
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.feature_info: list[dict[str, Any]] = []
        stages = []
        stride = 4
        for i, dim in enumerate(embed_dims):
            downsample: nn.Module = nn.Identity()
            if i > 0:
                step = 2 if _STRIDES[i] <= output_stride else 1
                stride *= step
                downsample = _conv_bn_relu(embed_dims[i - 1], dim, step, **dd)
            side = _TABLE_IMAGE // _STRIDES[i]
            blocks = [
                DGMN2Block(
                    dim,
                    num_heads[i],
                    (side, side),
                    mlp_ratio=mlp_ratios[i],
                    rel_pos=rel_pos,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    drop_path=rate,
                    **dd,
                )
                for rate in drop_path_rates[i]
            ]
            stages.append(DGMN2Stage(downsample, blocks))
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head()
        self.apply(_init_weights)

    def _make_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        return nn.Linear(self.num_features, self.num_classes, **get_device_dtype(self))

    def about(self) -> About:
        return replace(about_timm(self), classifier=("head.",), multiple=1, official=official_dgmn2)

    def no_weight_decay(self) -> set[str]:
        """Nothing beyond norms and biases: the original recipe decays the position tables too."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages.children():
            assert isinstance(stage, DGMN2Stage)
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.global_pool = _checked_pool(self.global_pool if global_pool is None else global_pool, num_classes)
        self.num_classes = num_classes
        self.head = self._make_head()
        self.head.apply(_init_weights)
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after the stages.

        Args:
            x: images (B, in_chans, H, W).
            indices: a number n for the last n stages, None for all, or the stages themselves.
            norm: accepted for timm; DGMN2 has no norm after its stages.
            stop_early: do not compute the stages after the last one asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: leave out the final features.

        Returns:
            A list of maps, or the final features (as `forward_features`) and the list.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f'output_fmt must be "NCHW" or "NHWC", got {output_fmt!r}')
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        x = self._forward_stem(x)
        intermediates = []
        stages = self.stages[: max_index + 1] if stop_early else self.stages
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(x.permute(0, 2, 3, 1) if output_fmt == "NHWC" else x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last one in `indices`, and the classifier."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        pruned = max_index < len(self.stages) - 1
        if pruned:
            self.stages = self.stages[: max_index + 1]
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return list(take_indices)

    def _forward_stem(self, x: Tensor) -> Tensor:
        # Three channels are cheap to reorder; every later map is then in channels-last memory.
        out: Tensor = self.stem(channels_last(x))
        return out

    def forward_features(self, x: Tensor) -> Tensor:
        """The map after the last stage, (B, C, H / stride, W / stride), unpooled."""
        out: Tensor = self.stages(self._forward_stem(x))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x.mean(dim=(2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _checked_pool(global_pool: str, num_classes: int) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f'global_pool must be "avg" or "" (none), got {global_pool!r}')
    if not global_pool and num_classes:
        raise ValueError(f'global_pool "" returns a map, which num_classes = 0 goes with, got {num_classes}')
    return global_pool


def _init_weights(module: nn.Module) -> None:
    """Initialises linear layers as the original does; its convolutions start as PyTorch makes them."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Renames official or own keys to ours, strictly. timm then adapts the first convolution and the classifier."""
    has_head = any(key == "head.weight" or key.endswith(".head.weight") for key in state_dict)
    return match_keys(state_dict, model, reset_head=not has_head, check_shapes=False).state_dict


def _create_dgmn2(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if pretrained:
        overlay = _with_weights(variant, overlay, kwargs.get("pretrained_cfg"))
    model: nn.Module = build_model_with_cfg(
        DGMN2,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    for network in model.modules():  # the feature extractor and what it wraps
        cfg = getattr(network, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)  # loaded, so it need not be kept twice
    return model


def _with_weights(variant: str, overlay: dict[str, Any], pretrained_cfg: Any) -> dict[str, Any]:
    """Reads the weights here: official files hold an argparse.Namespace, which timm's own reader refuses."""
    file = overlay.get("file")
    if file is None:
        given = {**(pretrained_cfg if isinstance(pretrained_cfg, Mapping) else {}), **overlay}
        if any(given.get(source) for source in ("state_dict", "file", "url", "hf_hub_id", "source")):
            return overlay
        if all(model.name != variant for model in ZOO):
            raise RuntimeError(
                f"no weights of {variant} are published: train your own, or give pretrained_cfg_overlay=dict(file=...)"
            )
        file = fetch(variant)
    return {**overlay, "file": None, "state_dict": read_checkpoint(file).state_dict}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2209.09760",
        "paper_name": "Dynamic Graph Message Passing Networks for Visual Recognition",
        "origin_url": "https://github.com/fudan-zvg/DGMN2",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "dgmn2_nano.untrained": _cfg(),
        "dgmn2_tiny.in1k": _cfg(),
        "dgmn2_small.in1k": _cfg(),
        "dgmn2_medium.in1k": _cfg(),
        "dgmn2_large.in1k": _cfg(),
    }
)


@register_model
def dgmn2_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Nano, 1.5 M parameters, for CPUs and small images. It is ours, not in the paper."""
    args: dict[str, Any] = {
        "embed_dims": (32, 64, 128, 192),
        "depths": (2, 2, 2, 1),
        "num_heads": (1, 2, 4, 6),
        "mlp_ratios": (4, 4, 4, 4),
    }
    return _create_dgmn2("dgmn2_nano", pretrained, **{**args, **kwargs})


@register_model
def dgmn2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Tiny, 12.1 M parameters."""
    return _create_dgmn2("dgmn2_tiny", pretrained, **{"depths": (2, 2, 2, 2), **kwargs})


@register_model
def dgmn2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Small, 21.0 M parameters."""
    return _create_dgmn2("dgmn2_small", pretrained, **{"depths": (3, 4, 6, 3), **kwargs})


@register_model
def dgmn2_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Medium, 35.8 M parameters."""
    return _create_dgmn2("dgmn2_medium", pretrained, **{"depths": (3, 4, 18, 3), **kwargs})


@register_model
def dgmn2_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DGMN2-Large, 48.3 M parameters."""
    return _create_dgmn2("dgmn2_large", pretrained, **{"depths": (3, 8, 27, 3), **kwargs})
