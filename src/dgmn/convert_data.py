"""The command `dgmn convert-data`: writes a detection dataset of any layout as COCO has it."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from dgmn.errors import InputError
from dgmn.images import image_size
from dgmn.layout import find_layout
from dgmn.objects.coco import load_annotations
from dgmn.objects.layouts import LAYOUTS, CocoFiles, Divided, Layout, parts_of
from dgmn.objects.layouts.layout import WHOLE
from dgmn.split import SPLIT, VAL
from dgmn_base.errors import one_line
from dgmn_base.files import writing, writing_folder
from dgmn_base.terminal import Progress, counted

_SHOWN = 30  # problems that are printed


def convert_data(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if os.path.lexists(out):
        raise InputError(f"--out {out}: it is there already, give a new folder")
    layout = find_layout(LAYOUTS, Path(options.folder), options.layout)
    if isinstance(layout, CocoFiles):
        raise InputError(f"{options.folder}: it is in COCO's layout already")
    divided = parts_of(layout, {name: name for name in ("train", "val", "test")})
    if isinstance(divided, Divided) and (layout.root / SPLIT).is_file():
        layout = divided  # somebody may have chosen its parts
    parts = layout.splits()
    if not parts:
        raise InputError(f"{options.folder}: {layout.title} layout without a part such as {layout.files_told}")
    problems: list[str] = []
    images = {part: _images(layout, part, problems) for part in parts}
    if problems:
        print("\n".join(f"  {one_line(problem)}" for problem in problems[:_SHOWN]), flush=True)
        shown = f", the first {_SHOWN} of them above" if len(problems) > _SHOWN else ""
        what = f"{counted(len(problems), 'problem')}{shown}"
        raise InputError(f"{options.folder}: {what}; nothing is written")
    total = sum(map(len, images.values()))
    classes = counted(len(_content(layout, parts[0])["categories"]), "class")
    print(f"{layout.title} layout, {classes}, {counted(total, 'image')}")
    progress = Progress()
    done = 0
    with writing_folder(out) as folder:
        for part in parts:
            name = "val" if part in VAL and not {*VAL} & {*parts} - {part} else part.replace("/", "_")
            if layout is not divided and isinstance(divided, Divided):
                name = WHOLE  # whoever reads it splits it then
            content, paths = _content(layout, part), images[part]
            above = os.path.commonpath([path.parent for path in paths.values()])
            names = {number: path.relative_to(above) for number, path in paths.items()}
            for number, path in paths.items():
                target = folder / name / names[number]
                target.parent.mkdir(parents=True, exist_ok=True)
                if options.link:
                    target.symlink_to(path)
                else:
                    shutil.copyfile(path, target)
                done += 1
                progress.show(done, total, "images")
            entries = [{**entry, "file_name": names[entry["id"]].as_posix()} for entry in content["images"]]
            with writing(folder / "annotations" / f"instances_{name}.json") as file:
                file.write(_json({**content, "images": entries}, layout.source(part)))
            print(f"{name}: {counted(len(paths), 'image')}, {counted(len(content['annotations']), 'object')}")
    print(f"\nwritten: {out}")
    return 0


def _json(content: Any, source: Path) -> bytes:
    try:
        return json.dumps(content, allow_nan=False).encode()
    except ValueError as error:
        raise InputError(f"{source}: it holds a number that JSON does not have, NaN or infinity") from error


def _content(layout: Layout, part: str) -> dict[str, Any]:
    truth = layout.truth(part)
    return load_annotations(truth) if isinstance(truth, Path) else truth


def _images(layout: Layout, part: str, problems: list[str]) -> dict[Any, Path]:
    """The absolute paths of the images of a part by their ids, checked; mistakes are added to `problems`."""
    try:
        images = layout.samples(part, masks=False, problems=problems).images
    except InputError as error:
        problems.append(str(error))
        return {}
    for image in images:
        try:
            image_size(image.path)
        except (InputError, FileNotFoundError) as error:
            problems.append(str(error))
    return {image.id: Path(os.path.abspath(image.path)) for image in images}
