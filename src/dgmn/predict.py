"""The command `dgmn predict`: predicts images and videos with a trained or published model."""

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from dgmn.errors import InputError
from dgmn.images import Named, save_image
from dgmn.loading import load
from dgmn.predictor import Predictor, Result
from dgmn.video import Video, VideoWriter
from dgmn.writers import JsonWriter
from dgmn_base.files import numbered_lines, writing
from dgmn_base.inputs import Input
from dgmn_base.options import check_task, is_given
from dgmn_base.terminal import Progress, counted, format_table

_ALIKE = 3  # so many images in a row that fail alike end a command: the next would, too
_OF_PREDICTOR = ("top", "score", "multi_scale", "batch_size")


def predict(options: argparse.Namespace) -> int:
    """Predicts image by image, then video by video, and writes what the options ask for.

    An image or video that cannot be read is left out; the error at the end names it.
    """
    inputs: list[Input] = options.inputs
    predictor = _predictor(options)
    folders = _folders(options)
    if "labels" in folders:
        _write_classes(folders["labels"], predictor.names)
    problems: list[Exception] = []
    with ExitStack() as stack:
        writer = stack.enter_context(predictor.writer(Path(options.json))) if options.json else None
        run = _Run(predictor, options, folders, writer, problems)
        images = [each for each in inputs if not each.is_video]
        if images:
            run.images(images)
        for video in (each for each in inputs if each.is_video):
            try:
                run.video(video)
            except (InputError, OSError) as error:
                problems.append(error)
    if options.json:
        print(f"\njson: {options.json}")
    for name in (name for name in folders if name in run.written):
        print(f"\n{name}: {folders[name]}")
    if len(problems) == 1:
        raise problems[0]
    if problems:
        some = "; ".join(map(str, problems[:3])) + (" ..." if len(problems) > 3 else "")
        raise InputError(f"{len(problems)} of {len(inputs)} {_told(inputs)} were left out or cut off: {some}")
    return 0


class _Run:
    """What all images and videos of a command share."""

    def __init__(
        self,
        predictor: Predictor,
        options: argparse.Namespace,
        folders: dict[str, Path],
        writer: JsonWriter | None,
        problems: list[Exception],
    ) -> None:
        self.predictor = predictor
        self.options = options
        self.folders = folders
        self.writer = writer
        self.problems = problems
        self.given = {name: getattr(options, name) for name in _OF_PREDICTOR if is_given(options, name)}
        self.shown = Progress()
        self.written: set[str] = set()  # which of the folders got a file
        self.read = {os.path.realpath(each.path) for each in options.inputs if each.content is None}

    def images(self, inputs: Sequence[Input]) -> None:
        """Predicts images and prints a table of the results."""
        sources = {Named(each.name, each.content or each.path): each for each in inputs}
        rows: list[tuple[str, ...]] = []
        results = self.predictor.predict(
            list(sources),
            on_error=lambda source, error: self.problems.append(error),
            progress=lambda done: self.shown.show(done, len(inputs), "images"),
            **self.given,
        )
        good, alike, last = 0, 0, ""  # how many of the last images failed with the same text
        for result in results:
            rows.append((result.name, *result.cells()))
            if self.writer is not None:
                self.writer.add(result)
            try:
                self._write(result, sources[result.source])
            except InputError as error:
                self.problems.append(InputError(f"{result.name}: {error}"))
                alike, last = (alike + 1 if str(error) == last else 1), str(error)
                if alike == _ALIKE:  # a wrong layer, for instance
                    left = len(inputs) - good - len(self.problems)  # images that cannot be read are counted already
                    self.problems += [InputError(f"not predicted: the last {_ALIKE} failed alike")] * left
                    break
            else:
                good, last = good + 1, ""
        if rows:
            print(format_table(("image", *self.predictor.columns(len(rows[0]) - 1)), rows))

    def video(self, source: Input) -> None:
        """Predicts a video frame by frame.

        Raises:
            InputError: it cannot be read, or not to its end; what could be read is then written.
        """
        start = time.monotonic()
        frames = 0
        with ExitStack() as stack:
            video = stack.enter_context(Video(source.path))
            out = None
            if "pictures" in self.folders:
                out = VideoWriter(self._target("pictures", f"{source.output}.mp4"), video)
                stack.enter_context(out)
            named = (Named(_frame_name(source, each), each.image, each.facts) for each in video)
            for result in self.predictor.predict(named, **self.given):
                if self.writer is not None:
                    self.writer.add(result)
                if out is not None:
                    out.add(result.draw(inside=True), result.source.facts["seconds"])
                frames += 1
                self.shown.show(frames, video.total, f"frames of {source.path.name}")
            if not frames:
                raise InputError(video.problem)
        speed = frames / max(time.monotonic() - start, 1e-3)
        size = " x ".join(map(str, result.image.size))
        written = f", {out.path}" if out is not None else ""
        print(f"{source.name}: {counted(frames, 'frame')} of {size}, {speed:.1f} a second{written}", flush=True)
        if video.problem:
            raise InputError(video.problem)

    def _target(self, name: str, file: str) -> Path:
        """The path of a file in one of the folders, which is about to be written; its folders are made.

        Raises:
            InputError: it is an image or video that is read.
        """
        path = self.folders[name] / file
        if os.path.realpath(path) in self.read:
            raise InputError(f"--{name} {self.folders[name]}: {path} is read, give another folder")
        self.written.add(name)
        return path

    def _write(self, result: Any, source: Input) -> None:
        if "pictures" in self.folders:
            save_image(result.draw(), self._target("pictures", f"{source.output}.jpg"), quality=92)
        if "labels" in self.folders and self.predictor.task == "detection":
            _write_text(self._target("labels", f"{source.output}.txt"), result.to_yolo())
        elif "labels" in self.folders:
            save_image(result.label_image(), self._target("labels", f"{source.output}.png"))
        if "submission" in self.folders:
            from dgmn.segmentation.cityscapes import submission_name, to_label_ids

            labels = Image.fromarray(to_label_ids(result.labels))
            save_image(labels, self._target("submission", submission_name(source.path)))
        if "nodes" in self.folders:
            self._write_nodes(result, source)

    def _write_nodes(self, result: Result, source: Input) -> None:
        options = self.options
        for at in options.at or [(result.image.width / 2, result.image.height / 2)]:
            nodes = self.predictor.nodes(result.image, at)
            layers = options.layers or options.layer
            name = f"{source.output}_{at[0]:g}_{at[1]:g}"
            save_image(nodes.draw(layers, arrows=options.arrows), self._target("nodes", f"{name}.png"))
            if options.density:
                save_image(nodes.draw(layers, density=True), self._target("nodes", f"{name}_density.png"))


def _predictor(options: argparse.Namespace) -> Predictor:
    source = options.ckpt_path or options.model
    model = options.model if options.ckpt_path else None
    predictor = load(source, device=options.device, model=model, recipe=options.config, trust_code=options.trust_code)
    check_task(options, predictor.task)
    if options.submission:
        from dgmn.segmentation.cityscapes import CITYSCAPES, submission_name

        if predictor.names != CITYSCAPES.names:
            raise InputError("--submission is for models of the 19 classes of Cityscapes")
        for each in options.inputs:
            submission_name(each.path)  # fails now, not after hours
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


def _write_classes(folder: Path, names: Sequence[str]) -> None:
    """Writes what the numbers in labels mean.

    Raises:
        InputError: labels with other classes are there.
    """
    file, lines = folder / "classes.txt", [" ".join(name.split()) for name in names]
    if file.is_file() and [line for _, line in numbered_lines(file)] != lines:
        raise InputError(f"--labels {folder}: {file} is there already, with other classes: give a new folder")
    _write_text(file, "".join(f"{line}\n" for line in lines))


def _frame_name(source: Input, frame: Named) -> str:
    return f"{source.name} frame {frame.facts['frame']}"


def _told(inputs: Sequence[Input]) -> str:
    kinds = {each.is_video for each in inputs}
    return "images and videos" if len(kinds) == 2 else "videos" if kinds == {True} else "images"


def _write_text(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text.encode())
