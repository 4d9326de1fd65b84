"""The error that the command line shows as one line, and a helper for its messages."""

from dgmn_base.errors import InputError, did_you_mean

__all__ = ["InputError", "did_you_mean"]
