"""Networks, registered with timm: `timm.create_model("dgmn2_tiny")`."""

from dgmn.models.dgmn2 import DGMN2, dgmn2_large, dgmn2_medium, dgmn2_nano, dgmn2_small, dgmn2_tiny

__all__ = ["DGMN2", "dgmn2_large", "dgmn2_medium", "dgmn2_nano", "dgmn2_small", "dgmn2_tiny"]
