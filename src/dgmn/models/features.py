"""Any network of timm as a source of feature maps."""

from typing import Any

import timm

from dgmn.errors import InputError


def feature_maps(name: str, pretrained: bool, args: dict[str, Any] | None, output_stride: int = 32) -> Any:
    """The last four maps of a timm network, the finest first.

    Args:
        name: of the network.
        pretrained: with its published weights.
        args: more arguments for it.
        output_stride: of the last map.

    Raises:
        InputError (a ValueError): timm does not know it, or it gives no four maps with these arguments.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5] or timm.list_models("dgmn2*")
        raise InputError(f"backbone: timm knows no {name!r}; for instance {', '.join(near)}")
    options: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1), **(args or {})}
    if output_stride != 32:
        options["output_stride"] = output_stride
    try:
        maps = timm.create_model(name, pretrained=pretrained, **options)
        if getattr(maps, "output_fmt", "NCHW") != "NCHW":  # timm's Swin gives channels last unless asked this way
            maps = timm.create_model(name, pretrained=pretrained, feature_cls="getter", **options)
        return maps
    except (
        AssertionError,
        AttributeError,
        IndexError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        given = {key: value for key, value in options.items() if key not in ("features_only", "out_indices")}
        raise InputError(f"backbone {name}: gives no four maps with {given or 'its defaults'} ({reason})") from error
