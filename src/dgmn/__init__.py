"""Dynamic graph message passing networks: ops, layers, models, training.

`import dgmn` registers the networks with timm: `timm.create_model("dgmn2_tiny")`.
"""

from importlib.metadata import version

from dgmn import layers, models, ops, weights
from dgmn.models.fuse import fuse
from dgmn.weights import LoadReport, load_checkpoint

__version__ = version("dgmn")
__all__ = ["LoadReport", "__version__", "fuse", "layers", "load_checkpoint", "models", "ops", "weights"]
