"""The command `dgmn predict`: predicts images with a trained or published model."""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from dgmn.errors import InputError
from dgmn.images import save_image
from dgmn.loading import load
from dgmn.predictor import Predictor, Result
from dgmn_base.options import check_task, is_given
from dgmn_base.terminal import Progress, format_table

_OF_PREDICTOR = ("top", "score", "multi_scale", "batch_size")


def predict(options: argparse.Namespace) -> int:
    """Predicts image by image and writes what the options ask for.

    An image that cannot be read is left out; the error at the end names it.
    """
    paths: list[Path] = options.images
    predictor = _predictor(options)
    given = {name: getattr(options, name) for name in _OF_PREDICTOR if is_given(options, name)}
    folders = _folders(options)
    numbers = {path: number for number, path in enumerate(paths)}  # images of different folders may share a name
    problems: list[Exception] = []
    rows: list[tuple[str, ...]] = []
    shown = Progress()
    with ExitStack() as stack:
        writer = stack.enter_context(predictor.writer(Path(options.json))) if options.json else None
        results = predictor.predict(
            paths,
            on_error=lambda path, error: problems.append(error),
            progress=lambda done: shown.show(done, len(paths), "images"),
            **given,
        )
        for result in results:
            rows.append((result.name, *result.cells()))
            if writer is not None:
                writer.add(result)
            stem = f"{numbers[result.source]:05d}_{_shortened(result.source.stem)}"
            try:
                _write(result, stem, folders, predictor, options)
            except InputError as error:  # a wrong point or layer: the next image would fail, too
                problems.append(InputError(f"{result.name}: {error}"))
                break
    if rows:
        print(format_table(("image", *predictor.columns(len(rows[0]) - 1)), rows))
    for name, place in {**({"json": options.json} if options.json else {}), **folders}.items():
        print(f"\n{name}: {place}")
    if len(problems) == 1:
        raise problems[0]
    if problems:
        some = "; ".join(map(str, problems[:3])) + (" ..." if len(problems) > 3 else "")
        raise InputError(f"{len(problems)} of {len(paths)} images were left out: {some}")
    return 0


def _predictor(options: argparse.Namespace) -> Predictor:
    source = options.ckpt_path or options.model
    model = options.model if options.ckpt_path else None
    predictor = load(source, device=options.device, model=model, recipe=options.config, trust_code=options.trust_code)
    check_task(options, predictor.task)
    if options.submission:
        from dgmn.segmentation.cityscapes import CITYSCAPES, submission_name

        if predictor.names != CITYSCAPES.names:
            raise InputError("--submission is for models of the 19 classes of Cityscapes")
        for path in options.images:
            submission_name(path)  # fails now, not after hours
    return predictor


def _folders(options: argparse.Namespace) -> dict[str, Path]:
    """Makes the folders that the options ask for."""
    names = ("pictures", "labels", "submission", "nodes")
    folders = {name: Path(getattr(options, name)) for name in names if getattr(options, name)}
    for name, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--{name} {folder}: cannot be made: {error.strerror}") from error
    return folders


def _shortened(name: str) -> str:
    """A name of at most 200 bytes: with what the files of results add, a longer one can be too long for the disk."""
    return os.fsdecode(os.fsencode(name)[:200])


def _write(result: Any, stem: str, folders: dict[str, Path], predictor: Predictor, options: argparse.Namespace) -> None:
    if "pictures" in folders:
        save_image(result.draw(), folders["pictures"] / f"{stem}.jpg", quality=92)
    if "labels" in folders:
        save_image(result.label_image(), folders["labels"] / f"{stem}.png")
    if "submission" in folders:
        from dgmn.segmentation.cityscapes import submission_name, to_label_ids

        labels = Image.fromarray(to_label_ids(result.labels))
        save_image(labels, folders["submission"] / submission_name(result.source))
    if "nodes" in folders:
        _write_nodes(result, stem, folders["nodes"], predictor, options)


def _write_nodes(result: Result, stem: str, folder: Path, predictor: Predictor, options: argparse.Namespace) -> None:
    for at in options.at or [(result.image.width / 2, result.image.height / 2)]:
        nodes = predictor.nodes(result.image, at)
        layers = options.layers or options.layer
        name = f"{stem}_{at[0]:g}_{at[1]:g}"
        save_image(nodes.draw(layers, arrows=options.arrows), folder / f"{name}.png")
        if options.density:
            save_image(nodes.draw(layers, density=True), folder / f"{name}_density.png")
