"""Published and own weights: the zoo, a strict loader, and the matching of names."""

from dgmn.weights.keys import OtherClassesError, match_keys
from dgmn.weights.load import Checkpoint, LoadReport, load_checkpoint, read_checkpoint
from dgmn.weights.zoo import cached_file, download, fetch
from dgmn_base.zoo import ZOO, ZooModel, find

__all__ = [
    "ZOO",
    "Checkpoint",
    "LoadReport",
    "OtherClassesError",
    "ZooModel",
    "cached_file",
    "download",
    "fetch",
    "find",
    "load_checkpoint",
    "match_keys",
    "read_checkpoint",
]
