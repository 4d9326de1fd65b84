"""Any network of timm as a source of feature maps."""

from typing import Any

import timm

from dgmn.about import about
from dgmn.errors import InputError, did_you_mean


def check_name(name: str, option: str) -> None:
    """Checks that timm knows a network of this name.

    Raises:
        InputError: it does not; the message names the option and suggests other names.
    """
    if not timm.is_model(name):
        ours = f"; for instance {', '.join(timm.list_models('dgmn2*'))}"
        hint = did_you_mean(name.split(".")[0], timm.list_models(), ours)
        raise InputError(f"{option}: timm knows no {name!r}{hint}")


def normalisation(maps: Any) -> dict[str, list[float]]:
    """Mean and standard deviation that a network was trained with, as torchvision's detectors take them."""
    preprocessing = about(maps).preprocessing
    return {"image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std)}


def feature_maps(name: str, pretrained: bool, args: dict[str, Any] | None, output_stride: int = 32) -> Any:
    """A timm network that gives its last four feature maps, the finest first.

    Args:
        name: name of the network.
        pretrained: load its published weights.
        args: more arguments for the network.
        output_stride: stride of the last map.

    Raises:
        InputError (a ValueError): timm does not know the network, or it gives no four maps with these arguments.
    """
    check_name(name, "backbone")
    if args is not None and not isinstance(args, dict):
        raise InputError(f"backbone_args must be a dict of arguments for {name}, got {args!r}")
    if output_stride != 32 and "output_stride" in (args or {}):
        raise InputError("backbone_args: output_stride is an argument of the network here, not of its backbone")
    options: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1), **(args or {})}
    if output_stride != 32:
        options["output_stride"] = output_stride
    try:
        try:  # the getter keeps the names of the weights, and always gives maps with channels first
            maps = timm.create_model(name, pretrained=pretrained, feature_cls="getter", **options)
        except AttributeError:  # a few networks do not support the getter
            maps = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # every network of timm has its own way to refuse
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        given = {key: value for key, value in options.items() if key not in ("features_only", "out_indices")}
        if isinstance(error, InputError):
            raise InputError(f"backbone {name}: {error}") from error
        if pretrained and isinstance(error, OSError):
            raise InputError(
                f"backbone {name}: its published weights cannot be fetched ({reason}); offline, leave "
                "pretrained out and give a file of its weights as checkpoint"
            ) from error
        unknown = [key for key in args or () if f"unexpected keyword argument '{key}'" in reason]
        if unknown:
            raise InputError(f"backbone {name}: backbone_args: it takes no {unknown[0]!r}") from error
        raise InputError(f"backbone {name}: gives no four maps with {given or 'its defaults'} ({reason})") from error
    if maps.pretrained_cfg.get("fixed_input_size") and not _SIZES & set(options):
        raise InputError(
            f"backbone {name}: takes images of its own size only; give it another one as "
            "backbone_args {img_size: [H, W]}, or {dynamic_img_size: true} where it has that"
        )
    return maps


_SIZES = {"img_size", "dynamic_img_size", "strict_img_size"}
