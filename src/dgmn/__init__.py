"""Dynamic graph message passing networks: ops, layers, models, training, prediction.

`import dgmn` registers the networks with timm: `timm.create_model("dgmn2_tiny")`. `dgmn.load(checkpoint)` gives a
trained network, ready to predict; `dgmn.save` and `dgmn.push_to_hub` share it; `dgmn.export` writes it for other
runtimes. `dgmn.insert` puts modules into any network.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from dgmn import layers, models, ops, weights
from dgmn.models.fuse import fuse
from dgmn.models.insert import insert
from dgmn.models.places import places
from dgmn.weights import LoadReport, load_checkpoint
from dgmn_base.lazy import lazy_names

if TYPE_CHECKING:
    from dgmn.exporting import export
    from dgmn.loading import load
    from dgmn.onnx_network import onnxruntime_library
    from dgmn.sharing import push_to_hub, save

__version__ = version("dgmn")
__all__ = [
    "LoadReport",
    "__version__",
    "export",
    "fuse",
    "insert",
    "layers",
    "load",
    "load_checkpoint",
    "models",
    "onnxruntime_library",
    "ops",
    "places",
    "push_to_hub",
    "save",
    "weights",
]

# These are imported on first use: the networks alone need neither pictures nor results.
__getattr__ = lazy_names(
    __name__,
    {
        "export": "exporting",
        "load": "loading",
        "onnxruntime_library": "onnx_network",
        "save": "sharing",
        "push_to_hub": "sharing",
    },
)
