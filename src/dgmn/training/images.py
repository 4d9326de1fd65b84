"""The former place of [`dgmn.images`][dgmn.images]."""

from dgmn.images import load_image

__all__ = ["load_image"]
