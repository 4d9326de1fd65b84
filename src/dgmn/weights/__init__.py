"""Published and own weights: the zoo, the maps from official names to ours, and a strict loader."""

from dgmn.weights.dgmn_keys import dgmn_from_official, dgmn_resnet_from_official
from dgmn.weights.keys import match_keys
from dgmn.weights.load import LoadReport, load_checkpoint, read_checkpoint
from dgmn.weights.zoo import ZOO, ZooModel, cached_file, download, find

__all__ = [
    "ZOO",
    "LoadReport",
    "ZooModel",
    "cached_file",
    "dgmn_from_official",
    "dgmn_resnet_from_official",
    "download",
    "find",
    "load_checkpoint",
    "match_keys",
    "read_checkpoint",
]
