"""Checkpoints of small untrained networks, as runs write them."""

import timm
import torch

from dgmn.detection import mask_rcnn
from dgmn.segmentation import semantic_fpn


def checkpoint(task, folder):
    """Writes one for a task, and returns its path. The detector finds much, with scores around a third."""
    description = {"task": task, "num_classes": 2, "model_args": {}, "classes": ["cat", "dog"]}
    if task == "classification":
        network = timm.create_model("dgmn2_nano", num_classes=2)
        description |= {"model": "dgmn2_nano", "image_size": 64, "crop_pct": 0.875}
    elif task == "segmentation":
        network = semantic_fpn("dgmn2_nano", 2)
        description |= {"model": "semantic_fpn", "backbone": "dgmn2_nano", "inference": {}}
        description["colors"] = [[0, 0, 0], [255, 0, 0]]
    else:
        sizes = {"min_size": 64, "max_size": 96, "channels": 16, "representation_size": 32, "detections_per_img": 20}
        network = mask_rcnn("dgmn2_nano", 2, **sizes)
        description |= {"model": "mask_rcnn", "backbone": "dgmn2_nano", "category_ids": [1, 2], "model_args": sizes}
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "dgmn": description}, folder / "run.ckpt")
    return str(folder / "run.ckpt")
