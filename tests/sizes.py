"""Parameters of tests that go through the sizes of a network."""

import pytest


def every_size(names):
    """A parameter for each name; those of medium and large networks are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(("medium", "large"))) for name in names]
