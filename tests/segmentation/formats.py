"""Writes a dataset of Cityscapes' layout in the other formats, each by hand from what its tools write."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from dgmn.segmentation.layouts import Cityscapes

CAMVID = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)


def scenes_of(root: Path, most: int | None = None):
    """Every image: its split, name without extension, path and mask."""
    layout = Cityscapes(root)
    for split in ("train", "val"):
        for sample in layout.samples(split)[:most]:
            name = f"{split}_{sample.image.stem.removesuffix('_leftImg8bit')}"  # some formats have one folder for all
            yield split, name, sample.image, layout.read_mask(sample)


def names_of(root: Path) -> list[str]:
    return list(Cityscapes(root).classes.names)


def save(mask, path: Path, palette=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette is not None:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
    image.save(path)


def copy(image: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def painted(mask):
    """The colour of every class; Void is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(CAMVID)] = CAMVID
    return table[mask]


def kaggle(root: Path, out: Path, most=None) -> None:
    """Colour-coded, with a CSV file. Void stands between the classes, so that places in the list are no labels."""
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / split / f"{name}{image.suffix}")
        save(painted(mask), out / f"{split}_labels" / f"{name}_L.png")
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(names_of(root), CAMVID, strict=True)]
    write(out / "class_dict.csv", "\n".join(["name,r,g,b", *rows[:3], "Void,0,0,0", *rows[3:]]) + "\n")


def camvid(root: Path, out: Path, most=None) -> None:
    """CamVid as it was published: all images in one folder, and `label_colors.txt`."""
    lists: dict[str, list[str]] = {}
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / "701_StillsRaw_full" / f"{name}{image.suffix}")
        save(painted(mask), out / "LabeledApproved_full" / f"{name}_L.png")
        lists.setdefault(split, []).append(f"{name}{image.suffix}")
    for split, names in lists.items():
        write(out / f"{split}.txt", "\n".join(names) + "\n")
    rows = [f"{r} {g} {b}\t\t{name}" for name, (r, g, b) in zip(names_of(root), CAMVID, strict=True)]
    write(out / "label_colors.txt", "\n".join([*rows, "0 0 0\t\tVoid"]) + "\n")


def cvat_camvid(root: Path, out: Path, most=None) -> None:
    """CVAT's export for CamVid: masks with a palette, and a list of colours."""
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / split / f"{name}{image.suffix}")
        palette = np.zeros((256, 3), np.uint8)
        palette[1 : 1 + len(CAMVID)] = CAMVID
        indices = np.where(mask == 255, 0, mask + 1).astype(np.uint8)
        save(indices, out / f"{split}annot" / f"{name}.png", palette)
    rows = [f"{r} {g} {b} {name}" for name, (r, g, b) in zip(names_of(root), CAMVID, strict=True)]
    write(out / "label_colors.txt", "\n".join(["0 0 0 Void", *rows]) + "\n")


def segnet(root: Path, out: Path, most=None) -> None:
    """SegNet's CamVid: 11 is no label, and no list of classes."""
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / split / f"{name}{image.suffix}")
        save(np.where(mask == 255, 11, mask).astype(np.uint8), out / f"{split}annot" / f"{name}.png")
        write(out / f"{split}.txt", f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n")


def roboflow_masks(root: Path, out: Path, most=None) -> None:
    """Masks beside the images, a list of values with spaces in every part, and `valid`."""
    for split, name, image, mask in scenes_of(root, most):
        part = {"val": "valid"}.get(split, split)
        copy(image, out / part / f"{name}_png.rf.0a1b{image.suffix}")
        save(np.where(mask == 255, 0, mask + 1).astype(np.uint8), out / part / f"{name}_png.rf.0a1b_mask.png")
        rows = [f"{i}, {name}" for i, name in enumerate(["unlabeled", *names_of(root)])]
        write(out / part / "_classes.csv", "\n".join(["Pixel Value, Class", *rows]) + "\n")


def mmseg(root: Path, out: Path, most=None) -> None:
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / "img_dir" / split / f"{name}{image.suffix}")
        save(mask, out / "ann_dir" / split / f"{name}.png")
    write(out / "classes.txt", "\n".join(names_of(root)))


def ade20k(root: Path, out: Path, most=None) -> None:
    folder = out / "ADEChallengeData2016"
    for split, name, image, mask in scenes_of(root, most):
        part = {"train": "training", "val": "validation"}[split]
        copy(image, folder / "images" / part / f"{name}{image.suffix}")
        save(np.where(mask == 255, 0, mask + 1).astype(np.uint8), folder / "annotations" / part / f"{name}.png")
    rows = [f"{i}\t0.1576\t11664\t1172\t0\t{name}, other word" for i, name in enumerate(names_of(root), 1)]
    write(folder / "objectInfo150.txt", "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")


def _voc(root: Path, out: Path, most, coloured: bool) -> None:
    lists: dict[str, list[str]] = {}
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / "JPEGImages" / f"{name}{image.suffix}")
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(CAMVID)], palette[255] = CAMVID, (224, 224, 192)
        indices = np.zeros_like(mask) + 77 if coloured else mask  # with a list of colours, indices mean nothing
        if coloured:
            palette[: len(CAMVID)], palette[77 : 77 + len(CAMVID)] = 0, CAMVID
            indices = np.where(mask == 255, 255, mask + 77).astype(np.uint8)
        save(indices, out / "SegmentationClass" / f"{name}.png", palette)
        lists.setdefault(split, []).append(name)
    for split, names in lists.items():
        write(out / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(names) + "\n")


def voc(root: Path, out: Path, most=None) -> None:
    _voc(root, out / "VOCdevkit" / "VOC2012", most, coloured=False)
    write(out / "classes.txt", "\n".join(names_of(root)))


def cvat_voc(root: Path, out: Path, most=None) -> None:
    _voc(root, out, most, coloured=True)
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(names_of(root), CAMVID, strict=True)]
    write(out / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n")


def panoptic(root: Path, out: Path, most=None) -> None:
    """Ids of categories have gaps; every class is two segments, so that ids of segments are no classes."""
    contents: dict[str, dict[str, list]] = {}
    for split, name, image, mask in scenes_of(root, most):
        content = contents.setdefault(split, {"images": [], "annotations": []})
        copy(image, out / split / f"{name}{image.suffix}")
        left = np.arange(mask.shape[1]) < mask.shape[1] // 2
        ids = np.where(mask == 255, 0, 1000 + 70_000 * mask.astype(int) + left)
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        save(colors, out / "annotations" / f"panoptic_{split}" / f"{name}.png")
        segments = [
            {"id": int(number), "category_id": 3 + 2 * ((int(number) - 1000) // 70_000), "iscrowd": 0}
            for number in np.unique(ids)
            if number
        ]
        number = len(content["images"]) + 7
        content["images"].append({"id": number, "file_name": f"{name}{image.suffix}"})
        content["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    categories = [{"id": 3 + 2 * i, "name": name, "isthing": 0} for i, name in enumerate(names_of(root))]
    for split, content in contents.items():
        write(out / "annotations" / f"panoptic_{split}.json", json.dumps({**content, "categories": categories[::-1]}))


def stuff(root: Path, out: Path, most=None) -> None:
    """Ids 12 and 26 are unused, so the classes after them move up."""
    ids = [2, 3, 11, 13, 25, 27, 28, 31, 100, 180, 182]
    table = np.full(256, 255, np.uint8)
    table[: len(ids)] = np.array(ids) - 1
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / "images" / split / f"{name}{image.suffix}")
        save(table[mask], out / "stuffthingmaps" / split / f"{name}.png")
    named = dict(zip(ids, names_of(root), strict=True))
    rows = ["0: unlabeled", *(f"{i}: {named.get(i, 'unused')}" for i in (*range(12, 13), 26, *ids))]
    write(out / "labels.txt", "\n".join(rows[:1] + sorted(rows[1:], key=lambda row: int(row.split(":")[0]))))


def runs(mask) -> list[tuple[int, int, int, int]]:
    """The rectangles x, y, width, height, one pixel high, that make up a mask."""
    found = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        found += [(int(a), y, int(b - a), 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return found


def polygon(x: int, y: int, width: int, height: int) -> list[int]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _objects(mask):
    """The class of every object with its polygons; class 0 is the background and no object."""
    for number in sorted(set(np.unique(mask).tolist()) - {0}):
        yield number, [polygon(*rectangle) for rectangle in runs(mask == number)]


def coco(root: Path, out: Path, most=None) -> None:
    """A lower layer over the whole class first, which later objects cover; one class is run lengths."""
    contents: dict[str, dict[str, list]] = {}
    names = names_of(root)
    for split, name, image, mask in scenes_of(root, most):
        content = contents.setdefault(split, {"images": [], "annotations": []})
        copy(image, out / split / f"{name}{image.suffix}")
        height, width = mask.shape
        number = len(content["images"]) + 1
        entry = {"id": number, "file_name": f"{name}{image.suffix}", "width": width, "height": height}
        content["images"].append(entry)
        below = [(2, [polygon(0, 0, width, height)]), (len(names), [polygon(0, 0, width, height)])]
        things = [*below, *((n if n != 255 else len(names) + 1, polygons) for n, polygons in _objects(mask))]
        for category, polygons in things:
            box = [0, 0, width, height]
            found = {"image_id": number, "category_id": category, "bbox": box, "iscrowd": 0, "segmentation": polygons}
            content["annotations"].append({"id": len(content["annotations"]) + 1, **found})
    categories = [{"id": i, "name": name} for i, name in enumerate(names[1:], 1)]
    special = [{"id": len(names), "name": "_background_"}, {"id": len(names) + 1, "name": "Void"}]
    for split, content in contents.items():
        content = {**content, "categories": [*categories, *special]}
        write(out / "annotations" / f"instances_{split}.json", json.dumps(content))


def labelme(root: Path, out: Path, most=None) -> None:
    names = [*names_of(root), *[""] * 244, "ignore"]
    for split, name, image, mask in scenes_of(root, most):
        copy(image, out / split / f"{name}{image.suffix}")
        shapes = []
        for number, polygons in _objects(mask):
            for i, outline in enumerate(polygons):
                corners = [outline[j : j + 2] for j in range(0, 8, 2)]
                kind = {"shape_type": "rectangle", "points": [corners[0], corners[2]]}
                drawn = kind if i % 2 else {"shape_type": "polygon", "points": corners}
                shapes.append({"label": names[number], "group_id": None, "flags": {}, **drawn})
        size = {"imageHeight": mask.shape[0], "imageWidth": mask.shape[1]}
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}{image.suffix}", **size}
        write(out / split / f"{name}.json", json.dumps(content))
    write(out / "classes.txt", "\n".join([*names[1:11], "ignore"]))


def yolo(root: Path, out: Path, most=None) -> None:
    names = names_of(root)
    for split, name, image, mask in scenes_of(root, most):
        height, width = mask.shape
        copy(image, out / "images" / split / f"{name}{image.suffix}")
        lines = []
        for number, polygons in _objects(mask):
            for outline in polygons:
                shares = [value / (height if i % 2 else width) for i, value in enumerate(outline)]
                lines.append(" ".join(map(str, (10 if number == 255 else number - 1, *shares))))
        write(out / "labels" / split / f"{name}.txt", "\n".join(lines) + "\n")
    write(out / "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps([*names[1:], 'ignore'])}\n")


MASKS = {
    "folders": {"kaggle": kaggle, "camvid": camvid, "cvat_camvid": cvat_camvid, "mmseg": mmseg},
    "segnet": {"segnet": segnet},
    "roboflow_masks": {"roboflow_masks": roboflow_masks},
    "ade20k": {"ade20k": ade20k},
    "voc": {"voc": voc, "cvat_voc": cvat_voc},
    "panoptic": {"panoptic": panoptic},
    "stuff": {"stuff": stuff},
    "coco": {"coco": coco},
    "yolo": {"yolo": yolo},
    "labelme": {"labelme": labelme},
}
WRITERS = [(layout, name, write) for layout, writers in MASKS.items() for name, write in writers.items()]
