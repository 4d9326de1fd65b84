"""What every network says about itself is true."""

import pytest
import timm
import torch

import dgmn
from dgmn.about import About, Preprocessing, about
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS

from golden_vectors import load_keys

SIZE = 64
_DETR = {"transformer_args": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 10}}
_SMALL = {"deformable_detr": _DETR, "deformable_detr_refine_two_stage": _DETR, "sparse_rcnn": {"num_stages": 2}}


def build(kind, num_classes=3, backbone="dgmn2_nano"):
    """Builds a network, small where that is easy. Backbones and classifiers have timm's names."""
    if kind in SEGMENTERS:
        return SEGMENTERS[kind]("resnet10t" if kind == "dilated_fcn" else backbone, num_classes)
    if kind in DETECTORS:
        return DETECTORS[kind](backbone, num_classes, min_size=SIZE, max_size=96, **_SMALL.get(kind, {}))
    name, _, features = kind.partition(":")
    return timm.create_model(name, **({"features_only": True} if features else {"num_classes": num_classes}))


COMPOSITE = [*SEGMENTERS, *DETECTORS]
OURS = ["dgmn2_nano", "dgmn_resnet50", *COMPOSITE]
OTHERS = ["resnet18", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224", "mobilenetv3_small_100"]
EXTRACTORS = ["dgmn2_nano:features", "dgmn_resnet50:features"]


@pytest.mark.parametrize("kind", OURS)
def test_every_network_of_ours_speaks(kind):
    with torch.device("meta"):
        network = build(kind)
    assert isinstance(network.about(), About)


FEW = ("dgmn2_nano", "mask_rcnn", "semantic_fpn", "resnet18")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k not in FEW)) for k in (*OURS, *OTHERS)])
def test_the_classifier_is_what_depends_on_the_number_of_classes(kind):
    with torch.device("meta"):
        one, other = build(kind, 3), build(kind, 4)
    shapes = ({name: tuple(t.shape) for name, t in network.state_dict().items()} for network in (one, other))
    first, second = shapes
    differ = {name for name in first if first[name] != second[name]}
    said = {name for name in first if name.startswith(about(one).classifier)}
    assert differ
    assert differ <= said
    # Other weights of the classifier share a layer with weights that depend on the number of classes.
    assert all(name.rpartition(".")[0] in {d.rpartition(".")[0] for d in differ} for name in said)


@pytest.mark.parametrize("kind", [*OURS, *OTHERS, *EXTRACTORS])
def test_names_are_names_of_weights(kind):
    with torch.device("meta"):
        network = build(kind)
    word, names = about(network), list(network.state_dict())
    for beginning in word.classifier if ":" not in kind else ():
        assert any(name.startswith(beginning) for name in names), beginning
    assert (word.backbone != "") == (kind in COMPOSITE)
    if word.backbone:
        assert word.optional == ()
        backbone = network.get_submodule(word.backbone)
        # Heads are built for the backbone's maps.
        assert backbone.feature_info.channels()
        assert word.preprocessing == about(backbone).preprocessing


@pytest.mark.parametrize("kind", COMPOSITE)
def test_what_it_takes_and_gives(kind):
    network = build(kind).eval()
    word = about(network)
    image = torch.rand(3, SIZE, SIZE + 16)
    with torch.no_grad():
        if word.images == "list":
            (found,) = network([image])
            assert set(found) - {"masks"} == {"boxes", "scores", "labels"}
            assert ("masks" in found) == word.masks
        else:
            assert network(image[None]).shape == (1, 3, SIZE, SIZE + 16)
            assert not word.masks
        assert (word.products is None) == (word.images == "batch")
        if word.products is not None:
            word.products(image[None])


def added(network):
    """The names of the weights that belong to modules, according to the network."""
    beginnings = about(network).added
    return {name for name in network.state_dict() if name.startswith(beginnings)}


@pytest.mark.parametrize("module", ["none", "dgmn", "non_local", "deformable"])
def test_what_modules_add_is_what_a_plain_network_lacks(module):
    with torch.device("meta"):
        for features in ({}, {"features_only": True}, {"features_only": True, "feature_cls": "list"}):
            one, plain = (timm.create_model("dgmn_resnet50", module=m, **features) for m in (module, "none"))
            more = set(one.state_dict()) - set(plain.state_dict())
            assert added(one) == more
        detector = DETECTORS["mask_rcnn"]("dgmn_resnet50", 3, backbone_args={"module": module})
        assert {name.removeprefix("backbone.body.model.") for name in added(detector)} == more
        fcn, plain = (SEGMENTERS["dilated_fcn"]("resnet10t", 3, module=m) for m in (module, "none"))
        assert added(fcn) == set(fcn.state_dict()) - set(plain.state_dict())


PUBLISHED = {
    "dgmn2_tiny": "a_cls_tiny",
    "semantic_fpn": "d_seg_fpn_tiny",
    "setr_naive": "d_seg_setr_naive_tiny",
    "setr_pup": "d_seg_setr_pup_tiny",
    "setr_mla": "d_seg_setr_mla_tiny",
    "retinanet": "e_retinanet_tiny",
    "mask_rcnn": "e_mask_rcnn_tiny",
    "deformable_detr": "f_deformable_detr_tiny",
    "deformable_detr_refine_two_stage": "f_deformable_detr_tiny_two_stage",
    "sparse_rcnn": "g_sparse_rcnn_small",
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_names_become_its_own(kind, request):
    keys = load_keys(request.path.parent / "golden" / f"{PUBLISHED[kind]}.keys.json")["keys"]
    file = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    if kind.startswith("deformable"):  # copies of a head are compared by value
        file = {name: torch.zeros(shape) for name, shape in keys.items()}
    with torch.device("meta"):
        if kind in SEGMENTERS or kind in DETECTORS:
            size = "small" if kind == "sparse_rcnn" else "tiny"
            classes = {"deformable_detr": 91, "deformable_detr_refine_two_stage": 91}.get(kind)
            builders = {**SEGMENTERS, **DETECTORS}
            network = builders[kind](f"dgmn2_{size}", classes or (19 if kind in SEGMENTERS else 80))
        else:
            network = timm.create_model(kind)
    official = about(network).official
    assert official is not None
    found = official(file)
    assert found is not None
    assert found.state_dict.keys() == network.state_dict().keys()
    assert {name: t.shape for name, t in found.state_dict.items()} == {
        name: t.shape for name, t in network.state_dict().items()
    }
    assert official({"some.weight": torch.zeros(1)}) is None


def test_preprocessing_is_the_backbone_s():
    assert about(timm.create_model("dgmn2_nano")).preprocessing == Preprocessing()
    inception = about(timm.create_model("mobilenetv3_large_100.miil_in21k_ft_in1k")).preprocessing
    assert inception.mean == (0, 0, 0)
    assert inception.interpolation == "bilinear"
    segmenter = SEGMENTERS["semantic_fpn"]("mobilenetv3_large_100.miil_in21k_ft_in1k", 3)
    assert about(segmenter).preprocessing == inception
    detector = DETECTORS["retinanet"]("mobilenetv3_large_100.miil_in21k_ft_in1k", 3)
    assert (tuple(detector.transform.image_mean), tuple(detector.transform.image_std)) == ((0, 0, 0), (1, 1, 1))
    for kind in DETECTORS:
        transform = build(kind).transform
        assert (transform.image_mean, transform.image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    values = inception.to_values()
    assert Preprocessing.from_values(values) == inception
    assert Preprocessing.from_values({}) == Preprocessing()
    assert about(timm.create_model("dgmn2_nano", pretrained_cfg_overlay=values)).preprocessing == inception


def test_other_modules_have_nothing_to_say():
    assert about(torch.nn.Linear(2, 3)) == About()
    assert dgmn.__name__ == "dgmn"
