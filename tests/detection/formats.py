"""Writes a dataset of COCO's layout in the other formats, each by hand from what its tools write."""

import json
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import yaml


def contents(coco: Path) -> dict[str, dict]:
    """The annotations of each part."""
    files = sorted((coco / "annotations").glob("instances_*.json"))
    return {file.stem.removeprefix("instances_"): json.loads(file.read_text()) for file in files}


def _images(content):
    """Every image with its annotations and the names of their categories."""
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    for image in content["images"]:
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        yield image, [(names[entry["category_id"]], entry) for entry in mine]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def yolo_line(number: int, entry: dict, width: int, height: int) -> str:
    """A polygon, or a box where there is none; Python writes as many digits as a number has."""
    if entry.get("segmentation"):
        (polygon,) = entry["segmentation"]
        values = [value / (height if i % 2 else width) for i, value in enumerate(polygon)]
    else:
        x, y, w, h = entry["bbox"]
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    return " ".join(map(str, (number, *values)))


def yolo_labels(coco: Path, out: Path, images: str, labels: str) -> list[str]:
    """Writes images and labels into folders named by patterns; returns the names of the classes."""
    for part, content in contents(coco).items():
        shutil.copytree(coco / part, out / images.format(part))
        names = [entry["name"] for entry in content["categories"]]
        for image, things in _images(content):
            lines = [yolo_line(names.index(n), entry, image["width"], image["height"]) for n, entry in things]
            if lines:  # an image without objects has no file
                write(out / labels.format(part) / f"{Path(image['file_name']).stem}.txt", "\n".join(lines) + "\n")
    return names


def yolo(coco: Path, out: Path) -> None:
    names = yolo_labels(coco, out, "images/{}", "labels/{}")
    parts = {part: f"images/{part}" for part in contents(coco)}
    write(out / "data.yaml", yaml.safe_dump({"path": "/content/elsewhere", **parts, "names": dict(enumerate(names))}))


def yolo_of_roboflow(coco: Path, out: Path) -> None:
    names = yolo_labels(coco, out, "{}/images", "{}/labels")
    parts = {part: f"../{part}/images" for part in contents(coco)}
    write(out / "data.yaml", yaml.safe_dump({**parts, "nc": len(names), "names": names}))


def yolo_of_cvat(coco: Path, out: Path) -> None:
    names = yolo_labels(coco, out, "obj_{}_data", "obj_{}_data")
    write(out / "obj.names", "\n".join(names))
    lines = [f"classes = {len(names)}", "names = data/obj.names", "backup = backup/"]
    for part, content in contents(coco).items():
        paths = [f"data/obj_{part}_data/{image['file_name']}" for image in content["images"]]
        write(out / f"{part}.txt", "\n".join(paths))
        lines.append(f"{'valid' if part == 'val' else part} = data/{part}.txt")
    write(out / "obj.data", "\n".join(lines))


def yolo_without_description(coco: Path, out: Path) -> None:
    write(out / "classes.txt", "\n".join(yolo_labels(coco, out, "images/{}", "labels/{}")) + "\n\n")


def voc_xml(image: dict, things: list) -> str:
    """The first pixel is 1, and the last is in the box."""
    objects = ""
    for name, entry in things:
        x, y, w, h = entry["bbox"]
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
        # Parts of an object have names and boxes, too.
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        difficult = f"<difficult>{entry['iscrowd']}</difficult>"
        objects += f"<object><name>{escape(name)}</name>{difficult}<bndbox>{box}</bndbox>{part}</object>\n"
    size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>old {image['file_name']}</filename>\n{size}\n{objects}</annotation>\n"


def _voc_classes(coco: Path, out: Path) -> None:
    categories = next(iter(contents(coco).values()))["categories"]
    write(out / "classes.txt", "\n".join(entry["name"] for entry in categories))


def voc_devkit(coco: Path, out: Path) -> None:
    folder = out / "VOCdevkit" / "VOC2007"
    for part, content in contents(coco).items():
        ids = []
        for image, things in _images(content):
            ids.append(f"{part}_{Path(image['file_name']).stem}")
            write(folder / "Annotations" / f"{ids[-1]}.xml", voc_xml(image, things))
            (folder / "JPEGImages").mkdir(exist_ok=True)
            shutil.copyfile(coco / part / image["file_name"], folder / "JPEGImages" / f"{ids[-1]}.png")
        write(folder / "ImageSets" / "Main" / f"{part}.txt", "\n".join(ids) + "\n")
        write(folder / "ImageSets" / "Main" / f"cat_{part}.txt", "\n".join(f"{name}  1" for name in ids))
    _voc_classes(coco, out)


def voc_beside(coco: Path, out: Path) -> None:
    for part, content in contents(coco).items():
        shutil.copytree(coco / part, out / part)
        for image, things in _images(content):
            write(out / part / f"{Path(image['file_name']).stem}.xml", voc_xml(image, things))
    _voc_classes(coco, out)


def roboflow(coco: Path, out: Path) -> None:
    for part, content in contents(coco).items():
        folder = out / ("valid" if part == "val" else part)
        shutil.copytree(coco / part, folder)
        above = {"id": 0, "name": "digits", "supercategory": "none"}
        others = [{**entry, "supercategory": "digits"} for entry in content["categories"]]
        write(folder / "_annotations.coco.json", json.dumps({**content, "categories": [above, *others]}))


def labelme(coco: Path, out: Path) -> None:
    for part, content in contents(coco).items():
        shutil.copytree(coco / part, out / part)
        for image, things in _images(content):
            shapes = []
            for name, entry in things:
                x, y, w, h = entry["bbox"]
                (outline,) = entry.get("segmentation") or [[x + w, y, x, y + h]]
                points = [outline[i : i + 2] for i in range(0, len(outline), 2)]
                kind = "polygon" if entry.get("segmentation") else "rectangle"
                shapes.append({"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}})
            facts = {"imagePath": image["file_name"], "imageData": None}
            sizes = {"imageHeight": image["height"], "imageWidth": image["width"]}
            if shapes:  # LabelMe writes no file for an image without objects
                file = out / part / f"{Path(image['file_name']).stem}.json"
                write(file, json.dumps({"version": "5.5.0", "flags": {}, "shapes": shapes, **facts, **sizes}))
    categories = next(iter(contents(coco).values()))["categories"]
    write(out / "labels.txt", "\n".join(("__ignore__", "_background_", *(entry["name"] for entry in categories))))


BOXES = {"voc": voc_devkit, "voc beside": voc_beside}
POLYGONS = {
    "yolo": yolo,
    "yolo of Roboflow": yolo_of_roboflow,
    "yolo of CVAT": yolo_of_cvat,
    "yolo without a description": yolo_without_description,
    "roboflow": roboflow,
    "labelme": labelme,
}
