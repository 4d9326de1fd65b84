"""What the tests of this repository show about a row of the paper's tables, and what nothing here shows."""

from dgmn_base.paper import Entry

Claim = tuple[str, str]  # what was verified, and the test that shows it

_COSTS = "tests/test_paper_tables.py::test_costs"
_BUILT = "tests/test_paper_tables.py::test_rows_can_be_trained"
_SETTINGS = "tests/training/test_original_settings.py"
_SEGMENTER = "tests/segmentation/test_builders.py::test_equals_the_original"
# The models whose outputs are compared with numbers of the original code; both have weights that are not the published.
_EQUAL = {
    "dgmn2_tiny": "tests/models/test_golden.py::test_classifier",
    "dgmn2_small": "tests/models/test_golden.py::test_classifier",
    "retinanet_dgmn2_tiny": "tests/detection/test_retinanet.py::test_equals_the_original",
    "mask_rcnn_dgmn2_tiny": "tests/detection/test_mask_rcnn.py::test_proposals_detections_and_masks",
    "deformable_detr_dgmn2_tiny": "tests/detection/test_deformable_detr.py::test_equals_the_original",
    "sparse_rcnn_dgmn2_small": "tests/detection/test_sparse_rcnn.py::test_stages_and_detections",
    **{f"{head}_dgmn2_tiny": _SEGMENTER for head in ("semantic_fpn", "setr_naive", "setr_pup", "setr_mla")},
}
_NAMES = "tests/weights/test_load.py::test_every_official_tensor_is_loaded"
_TWO_STAGES = "tests/detection/test_deformable_detr.py::test_every_weight_of_the_official_two_stages_is_used"
_METRICS = {
    "detection": ("AP is computed as pycocotools does", "tests/detection/test_metrics.py::test_equals_pycocotools"),
    "segmentation": (
        "mIoU is computed as cityscapesscripts does",
        "tests/segmentation/test_metrics.py::test_equals_cityscapesscripts",
    ),
}
_MODULES = {
    "dgmn": (
        "the module computes the paper's equations",
        "tests/layers/test_dgmn.py::test_messages_equal_the_equations",
    ),
    "deformable_message_passing": (
        "without weights and affinities, messages are deformable convolutions",
        "tests/layers/test_dgmn.py::test_fixed_weights_are_a_deformable_convolution",
    ),
    "criss_cross": (
        "the module is its definition",
        "tests/layers/test_context.py::test_criss_cross_equals_its_definition",
    ),
}


def verified(entry: Entry) -> list[Claim]:
    """What was verified here, and the test that shows each; nothing for a row without a network."""
    if entry.row.missing:
        return []
    claims = [*_costs(entry), ("the command builds this network", _BUILT), *_outputs(entry), *_module(entry)]
    claims += [(what, f"{_SETTINGS}::{test}") for what, test in _settings(entry)]
    return [*claims, *([_METRICS[entry.task]] if entry.task in _METRICS else [])]


def _settings(entry: Entry) -> list[Claim]:
    if entry.table.args is None:
        second = {
            "detection": "the recipe's total batch, choice of images and weight decay are the original's",
            "segmentation": "the recipe's weight decay is the original's",
        }
        what = second.get(entry.task)
        return [(what, "test_recipes_of_the_second_paper")] if entry.row.published and what else []
    if entry.task == "detection" and not entry.row.options:
        return [
            (
                "the recipe's batch, rate, length and losses are the paper's",
                "test_recipes_of_the_first_papers_mask_rcnn",
            )
        ]
    return []


def _costs(entry: Entry) -> list[Claim]:
    if entry.row.cost is None:
        return []
    millions, share = entry.close
    parts = [f"parameters within {millions:g} M"] if millions is not None else []
    parts += [f"GMACs within {100 * share:g} %"] if share is not None else []
    return [(f"{' and '.join(parts)} of the paper's", _COSTS)] if parts else []


def _outputs(entry: Entry) -> list[Claim]:
    name = entry.row.published
    if name in _EQUAL:
        return [("outputs equal the original code's for equal weights", _EQUAL[name])]
    if not name:
        return []
    claims = [("every tensor of the original's backbone has its place", _NAMES)]
    smallest = f"{entry.builder}_dgmn2_tiny"
    if smallest in _EQUAL:
        claims.append(("outputs equal the original code's on DGMN2-Tiny", _EQUAL[smallest]))
    if entry.builder.endswith("two_stage"):
        claims.append(("on DGMN2-Tiny, every tensor of the original has its place", _TWO_STAGES))
    return claims


def _module(entry: Entry) -> list[Claim]:
    args = entry.row.args.get("backbone_args", entry.row.args)
    claim = _MODULES.get(args.get("module", ""))
    return [claim] if claim else []


def not_verified(entry: Entry) -> list[str]:
    """What nothing here shows, in words."""
    if entry.row.missing:
        return [f"no recipe: {entry.row.missing}"]
    needs = "the published weights" if entry.row.published else "a training on GPUs"
    missing = [f"the score: it needs {entry.table.dataset} and {needs}"]
    if entry.table.server:
        missing = ["the score: only the test server can compute it"]
    if entry.row.cost is not None:
        names = [name for name, near in zip(("parameters", "GMACs"), entry.close, strict=True) if near is None]
        missing += [f"the paper's {' and '.join(names)}: our counts differ"] if names else []
    return missing
