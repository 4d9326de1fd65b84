"""Parameters of tests that go through the sizes of a network."""

import pytest


def every_size(names):
    """A parameter for each name; all but the smallest networks are slow."""
    larger = ("small", "medium", "large")
    return [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(larger)) for name in names]
