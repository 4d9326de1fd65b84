"""Any network of timm as a source of feature maps."""

from functools import partial
from typing import Any

import timm
from timm.models import is_model_in_modules
from timm.models._features import FeatureGetterNet

from dgmn.about import about
from dgmn.errors import InputError, did_you_mean
from dgmn.models.insert import insert_all
from dgmn.models.plain import PlainPyramid


def check_name(name: str, option: str) -> None:
    """Checks that timm knows a network of this name.

    Raises:
        InputError: it does not; the message names the option and suggests other names.
    """
    if not isinstance(name, str):
        raise InputError(f"{option} must be the name of a network, got {name!r}")
    if not timm.is_model(name):
        ours = f"; for instance {', '.join(timm.list_models('dgmn2*'))}"
        hint = did_you_mean(name.split(".")[0], timm.list_models(), ours)
        raise InputError(f"{option}: timm knows no {name!r}{hint}")


def normalisation(maps: Any) -> dict[str, Any]:
    """Mean and standard deviation that a network was trained with, as torchvision's detectors take them."""
    preprocessing = about(maps).preprocessing
    return {"image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std)}


def feature_maps(
    name: str,
    pretrained: bool,
    args: dict[str, Any] | None,
    output_stride: int = 32,
    levels: int = 4,
    exact: bool = True,
) -> Any:
    """A timm network that gives its last four feature maps, the finest first.

    A plain vision transformer has one map; see [`PlainPyramid`][dgmn.models.plain.PlainPyramid]. It takes images of any
    size.

    Args:
        name: name of the network.
        pretrained: load its published weights.
        args: more arguments for the network; `insert` is for [`insert`][dgmn.models.insert.insert], a dict of its
            arguments or a list of such dicts.
        output_stride: stride of the last map.
        levels: how many of the last maps are needed; a plain network gives only these.
        exact: whether a plain network must have exactly the strides 4, 8, 16 and 32, or those next to them.

    Raises:
        InputError (a ValueError): timm does not know the network, or it gives no four maps with these arguments.
    """
    check_name(name, "backbone")
    if args is not None and not isinstance(args, dict):
        raise InputError(f"backbone_args must be a dict of arguments for {name}, got {args!r}")
    if output_stride != 32 and "output_stride" in (args or {}):
        raise InputError("backbone_args: output_stride is an argument of the network here, not of its backbone")
    options: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1), **(args or {})}
    if is_model_in_modules(name, _PLAIN):
        strides = tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))[-levels:]
        sizes = {} if _SIZES & set(options) else {"dynamic_img_size": True, "dynamic_img_pad": True}
        # The last norm belongs to the features of a plain network.
        getter = partial(FeatureGetterNet, norm=True)
        return PlainPyramid(
            _created(name, pretrained, {**options, **sizes, "out_indices": (-1,)}, getter), strides, exact
        )
    if output_stride != 32:
        options["output_stride"] = output_stride
    return _created(name, pretrained, options, "getter")


def _created(name: str, pretrained: bool, options: dict[str, Any], feature_cls: Any) -> Any:
    """The network of timm with these options, or an error that says why there is none."""
    inserted = options.pop("insert", None)
    args = {key: value for key, value in options.items() if key not in ("features_only", "out_indices")}
    try:
        try:  # the getter keeps the names of the weights, and always gives maps with channels first
            maps = timm.create_model(name, pretrained=pretrained, feature_cls=feature_cls, **options)
        except AttributeError:  # a few networks do not support the getter
            maps = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # every network of timm has its own way to refuse
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, InputError):
            raise InputError(f"backbone {name}: {error}") from error
        if pretrained and isinstance(error, OSError):
            raise InputError(
                f"backbone {name}: its published weights cannot be fetched ({reason}); offline, leave "
                "pretrained out and give a file of its weights as checkpoint"
            ) from error
        given = args.keys() - {"output_stride"}
        unknown = [key for key in given if f"unexpected keyword argument '{key}'" in reason]
        if unknown:
            raise InputError(f"backbone {name}: backbone_args: it takes no {unknown[0]!r}") from error
        raise InputError(f"backbone {name}: gives no four maps with {args or 'its defaults'} ({reason})") from error
    if maps.pretrained_cfg.get("fixed_input_size") and not _SIZES & set(options):
        raise InputError(
            f"backbone {name}: takes images of its own size only; give it another one as "
            "backbone_args {img_size: [H, W]}, or {dynamic_img_size: true} where it has that"
        )
    if inserted is not None:
        try:
            insert_all(maps, inserted)
        except InputError as error:
            raise InputError(f"backbone {name}: {error}") from error
    return maps


_PLAIN = ("vision_transformer", "deit", "eva")  # timm's files of plain vision transformers
_SIZES = {"img_size", "dynamic_img_size", "strict_img_size"}
