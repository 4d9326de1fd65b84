"""Bad files of the other formats, for `dgmn validate-data`: YOLO, Pascal VOC, Roboflow, LabelMe, masks, CSV files."""

import json
import re
from collections.abc import Callable

import numpy as np
from PIL import Image

from bad_inputs import coco
from bad_inputs.cases import Case, World
from bad_inputs.images import encoded

Files = dict[str, bytes | str]

_YAML = "train: images/train\nval: images/val\nnames: [car, dog]\n"
_XML = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>car</name>"
    "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
_SHAPE = {"label": "car", "shape_type": "polygon", "points": [[1, 2], [20, 2], [20, 9]]}
_LABELME = {"shapes": [_SHAPE], "imagePath": "1.png", "imageHeight": 30, "imageWidth": 40}


def _mask(value: int, mode: str = "L") -> bytes:
    values = np.zeros((30, 40), np.uint8)
    values[10:] = value
    return encoded("PNG", Image.fromarray(values).convert(mode))


def _colors(color: tuple[int, int, int]) -> bytes:
    picture = Image.new("RGB", (40, 30))
    picture.paste(color, (0, 10, 40, 30))
    return encoded("PNG", picture)


def _panoptic(**changes: object) -> str:
    segments = [{"id": 5, "category_id": 1}, {"id": 9, "category_id": 2}]
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "sky"}],
    }
    return json.dumps({**content, **changes})


def _good(kind: str) -> Files:
    """A small dataset without mistakes."""
    files: Files = {}
    for part in ("train", "val"):
        image = f"images/{part}/1.png" if kind == "yolo" else f"{part}/1.png"
        files[image] = encoded("PNG")
        if kind == "yolo":
            files[f"labels/{part}/1.txt"] = "0 0.5 0.5 0.2 0.2\n"
        elif kind == "voc":
            files[f"{part}/1.xml"] = _XML
        elif kind == "labelme":
            files[f"{part}/1.json"] = json.dumps(_LABELME)
        elif kind == "roboflow":
            content = coco.content()
            content["images"], content["annotations"] = content["images"][:1], content["annotations"][:1]
            files[f"{part}/_annotations.coco.json"] = json.dumps(content)
        elif kind == "colours":
            files[f"{part}_labels/1.png"] = _colors((9, 9, 9))
        elif kind == "panoptic":
            files[f"annotations/panoptic_{part}.json"] = _panoptic()
            files[f"annotations/panoptic_{part}/1.png"] = _colors((5, 0, 0))
    once: dict[str, Files] = {
        "yolo": {"data.yaml": _YAML},
        "colours": {"class_dict.csv": "name,r,g,b\na,0,0,0\nb,9,9,9\n"},
        "ade20k": {"objectInfo150.txt": "Idx Ratio Train Val Stuff Name\n1 0.1 1 1 0 wall\n2 0.1 1 1 0 sky, heaven\n"},
        "voc_masks": {"classes.txt": "a\nb\n"},
        "stuff": {"labels.txt": "0: unlabeled\n1: person\n2: bicycle\n"},
        "table": {"list.csv": "file,label,split\na/1.png,a,train\na/2.png,a,val\nb/1.png,b,train\nb/2.png,b,val\n"},
    }
    if kind == "ade20k":
        for part in ("training", "validation"):
            files |= {f"images/{part}/1.png": encoded("PNG"), f"annotations/{part}/1.png": _mask(1)}
    if kind == "voc_masks":
        for part in ("train", "val"):
            files |= {f"JPEGImages/{part}.png": encoded("PNG"), f"SegmentationClass/{part}.png": _mask(1, "P")}
            files[f"ImageSets/Segmentation/{part}.txt"] = f"{part}\n"
    if kind == "stuff":
        files |= {f"stuffthingmaps/{part}/1.png": _mask(1) for part in ("train", "val")}
    if kind == "table":
        files = {f"{name}/{i}.png": encoded("PNG") for name in "ab" for i in (1, 2)}
    return files | once.get(kind, {})


DETECTION = coco.RECIPE
SEGMENTATION = "recipes/segmentation/finetune_folder.yaml"
CLASSIFICATION = "recipes/classification/finetune.yaml"
_HUGE = "9" * 400
_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def _shape(**changes: object) -> str:
    return json.dumps({**_LABELME, "shapes": [{**_SHAPE, **changes}]})


# Recipe, kind of the dataset, file, and for every content of it what is told. A code of 2 ends at once.
BAD: list[tuple[str, str, str, int, dict[str, tuple[bytes | str, str]]]] = [
    (
        *(DETECTION, "yolo", "labels/train/1.txt", 1),
        {
            "class-beyond": ("2 0.5 0.5 0.2 0.2\n", r"1\.txt:1: class 2 is not in 0\.\.1"),
            "class-negative": ("-1 0.5 0.5 0.2 0.2\n", r"1\.txt:1: class -1 is not in"),
            "pixels": ("0 20 15 5 5\n", r"1\.txt:1: 20 is not in 0\.\.1"),
            "four-values": ("0 0.5 0.5 0.2\n", r"1\.txt:1: 4 values"),
            "score": ("0 0.5 0.5 0.2 0.2 0.9\n", r"1\.txt:1: 6 values, as in predictions"),
            "text": ("car 0.5 0.5 0.2 0.2\n", r"1\.txt:1: 'car' is no number"),
            "nan": ("0 nan 0.5 0.2 0.2\n", r"1\.txt:1: 'nan' is no number"),
            "huge": (f"0 {_HUGE} 0.5 0.2 0.2\n", r"1\.txt:1: '9+' is no number"),
            "negative-size": ("0 0.5 0.5 -0.2 0.2\n", r"1\.txt:1: .*-0\.2"),
            "binary": (b"\xff\xfe\0", r"1\.txt: not text in UTF-8"),
        },
    ),
    (
        *(DETECTION, "yolo", "data.yaml", 1),
        {
            "empty": ("", r"data\.yaml: it needs train, val and names"),
            "a-list": ("[1]", r"data\.yaml: it needs train, val and names"),
            "not-yaml": ("names: [car\n", r"data\.yaml:\d+: not YAML"),
            "python": ("!!python/object/apply:os.system ['id']\n", r"data\.yaml:1: not YAML"),
            "laughs": (
                _LAUGHS,
                r"data\.yaml",
            ),
            "names-with-gaps": ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", r"names must number"),
            "names-numbers": ("train: images/train\nval: images/val\nnames: 7\n", r"data\.yaml: names"),
        },
    ),
    (
        *(DETECTION, "voc", "train/1.xml", 1),
        {
            "empty": ("", r"1\.xml"),
            "cut": (_XML[:60], r"1\.xml:1: "),
            "entities": (f'<!DOCTYPE a [<!ENTITY b "c">]>{_XML}', r"1\.xml:1: .*DOCTYPE"),
            "another-kind": ("<svg/>", r"1\.xml:1: not Pascal VOC's XML: it begins with <svg>"),
            "no-name": (_XML.replace("<name>car</name>", ""), r"1\.xml:1: an object without a name"),
            "no-box": (re.sub("<bndbox>.*</bndbox>", "", _XML), r"1\.xml:1: 'car' has no bndbox"),
            "turned": (_XML.replace("<xmax>20", "<xmax>1"), r"1\.xml:1: bndbox must have xmin <= xmax"),
            "text": (_XML.replace(">20<", ">x<"), r"1\.xml:1: bndbox needs xmin, ymin, xmax and ymax as numbers"),
            "nan": (_XML.replace(">20<", ">nan<"), r"1\.xml:1: bndbox needs"),
            "nested": ("<a>" * 100, r"1\.xml"),
        },
    ),
    (
        *(DETECTION, "labelme", "train/1.json", 1),
        {
            "circle": (_shape(shape_type="circle"), r"shapes\[0\]: a 'circle' is no object with a box"),
            "two-points": (_shape(points=[[1, 2], [3, 4]]), r"shapes\[0\]: a polygon needs three points or more"),
            "points-text": (_shape(points="1,2"), r"shapes\[0\]: points must be a list of \[x, y\]"),
            "points-nan": (_shape(points=[[float("nan"), 1]] * 3), r"shapes\[0\]: points must be a list"),
            "no-label": (_shape(label=None), r"shapes\[0\] needs a label as text"),
            "shapes-null": (json.dumps({**_LABELME, "shapes": None}), r"1\.json: not LabelMe's JSON"),
            "cut": (json.dumps(_LABELME)[:80], r"1\.json: not JSON"),
            "of-another-size": (json.dumps({**_LABELME, "imageWidth": 41}), r"1\.png: 40 x 30 pixels, .* say 41 x 30"),
        },
    ),
    (
        *(DETECTION, "roboflow", "train/_annotations.coco.json", 1),
        {
            "cut": ('{"images": [', r"_annotations\.coco\.json: not JSON"),
            "a-list": ("[]", r"_annotations\.coco\.json: not in COCO's format"),
            "no-categories": ('{"images": [], "annotations": [], "categories": []}', r"no categories in it"),
        },
    ),
    (
        *(SEGMENTATION, "colours", "train_labels/1.png", 1),
        {
            "another-colour": (_colors((1, 2, 3)), r"1\.png: the colour \(1, 2, 3\) is of no class in the list"),
            "beyond-the-list": (_mask(7), r"1\.png: holds 7, which no class has"),
            "jpeg": (encoded("JPEG"), r"1\.png: JPEG does not keep the values"),
            "text": ("mask", r"1\.png: not an image"),
        },
    ),
    (
        *(SEGMENTATION, "colours", "class_dict.csv", 2),
        {
            "two-numbers": ("name,r,g,b\na,0,0\n", r"class_dict\.csv:2: a row is a name and its colour"),
            "beyond-255": ("name,r,g,b\na,0,0,256\n", r"class_dict\.csv:2: a row is a name and its colour"),
            "twice": ("a,0,0,0\nb,0,0,0\n", r"the colour \(0, 0, 0\) of a and b is there twice"),
            "one": ("a,0,0,0\nVoid,1,1,1\n", r"2 to 255 are accepted, got 1"),
            "empty": ("", r"2 to 255 are accepted, got 0"),
            "binary": (b"\xff\0", r"class_dict\.csv: not text in UTF-8"),
            "quote": ('name,r,g,b\n"a,0,0,0\n', r"class_dict\.csv:2: a row is a name and its colour"),
        },
    ),
    (
        *(SEGMENTATION, "ade20k", "annotations/training/1.png", 1),
        {"beyond": (_mask(3), r"1\.png: holds 3, which no class has"), "colours": (_colors((1, 1, 1)), "has colours")},
    ),
    (
        *(SEGMENTATION, "ade20k", "objectInfo150.txt", 2),
        {
            "numbers-missing": ("Idx\n1 wall\n", r"objectInfo150\.txt:2: a line is Idx"),
            "gap": ("Idx\n2 0.1 1 1 0 wall\n", r"objectInfo150\.txt:2: a line is Idx"),
            "empty": ("", r"objectInfo150\.txt: classes: 2 to 255 are accepted"),
        },
    ),
    (
        *(SEGMENTATION, "voc_masks", "SegmentationClass/train.png", 1),
        {"beyond": (_mask(77, "P"), "which no class has"), "colours": (_colors((9, 9, 9)), "has colours")},
    ),
    (
        *(SEGMENTATION, "voc_masks", "ImageSets/Segmentation/train.txt", 1),
        {
            "elsewhere": ("../../x\n", r"train\.txt:1: no image .*JPEGImages/\.\./\.\./x"),
            "long": ("x" * 5000, r"train\.txt:1: no image"),
        },
    ),
    (
        *(SEGMENTATION, "panoptic", "annotations/panoptic_train.json", 1),
        {
            "segments-null": (
                _panoptic(annotations=[{"image_id": 1, "file_name": "1.png"}]),
                r"annotations\[0\]: segments_info\[0\] needs an id of its own",
            ),
            "segment-not-listed": (
                _panoptic(annotations=[{"image_id": 1, "file_name": "1.png", "segments_info": []}]),
                r"1\.png: holds the segment 5, which .* does not list",
            ),
            "no-image": (_panoptic(annotations=[{"image_id": 2, "file_name": "1.png"}]), r"image_id 2 is of no image"),
            "elsewhere": (
                _panoptic(annotations=[{"image_id": 1, "file_name": "../../x"}]),
                r"file_name as text without",
            ),
            "categories": (_panoptic(categories=[{"id": 1, "name": "car"}]), r"other categories than in"),
            "cut": (_panoptic()[:40], r"panoptic_train\.json: not JSON"),
            "a-list": ("[]", r"panoptic_train\.json: not COCO's panoptic format"),
        },
    ),
    (
        *(SEGMENTATION, "stuff", "labels.txt", 2),
        {
            "no-id": ("person\n", r"labels\.txt:1: a line is an id and a name"),
            "twice": ("1: a\n1: b\n", r"labels\.txt:2: a line is an id and a name"),
            "beyond": ("1: a\n999: b\n", r"labels\.txt:2: a line is an id and a name"),
        },
    ),
    (
        *(SEGMENTATION, "labelme", "train/1.json", 1),
        {"circle": (_shape(shape_type="circle"), r"shapes\[0\]: a 'circle'")},
    ),
    (
        *(CLASSIFICATION, "table", "list.csv", 1),
        {
            "several-labels": ("file,label\na/1.png,a\na/1.png,b\n", r"list\.csv:3: a/1\.png is 'b' here and 'a' in"),
            "one-hot": ("file,a,b\na/1.png,1,1\n", r"a column for each class.*one label per image"),
            "no-image": ("file,label\nx.png,a\n", r"list\.csv:2: no image data/x\.png"),
            "long-name": (f"file,label\n{'x' * 5000},a\n", r"list\.csv:2: no image"),
            "zero-byte": ("file,label\na\0.png,a\n", r"list\.csv:2: (no image|not CSV)"),
            "long-field": (f"file,label\n{'x' * 200_000},a\n", r"list\.csv:\d: not CSV \(field larger"),
            "part": ("file,label,split\na/1.png,a,later\n", r"list\.csv:2: split must be train, val or test"),
        },
    ),
]


def _command(recipe: str, kind: str, name: str, content: bytes | str) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        for path, good in {**_good(kind), name: content}.items():
            world.file(f"data/{path}", good)
        more = ["--data.train", "train", "--data.val", "val"] if recipe == DETECTION else []
        return ["validate-data", "-c", recipe, "--data.root", "data", *more]

    return arguments


CASES = [
    Case(
        f"{kind}-{name.rpartition('/')[2]}-{case}",
        _command(recipe, kind, name, content),
        rf"(?s)\n  .*{told}" if code == 1 else told,
        code=code,
        written=("data.jpg",),
    )
    for recipe, kind, name, code, contents in BAD
    for case, (content, told) in contents.items()
]
