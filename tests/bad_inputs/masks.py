"""Bad masks and lists of classes, for `dgmn validate-data` and `dgmn fit`."""

import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from bad_inputs.cases import Case, World
from bad_inputs.images import DAMAGED, REFUSED, encoded, floats, large

SIZE = (40, 30)
RECIPE = "recipes/segmentation/finetune_folder.yaml"


def grey(value: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("L", size, value)


def good() -> bytes:
    values = np.zeros(SIZE[::-1], np.uint8)
    values[10:] = 1
    return encoded("PNG", Image.fromarray(values))


def dataset(world: World, classes: bytes = b"a\nb\n") -> None:
    world.file("data/classes.txt", classes)
    for split in ("train", "val"):
        for name in ("one", "two"):
            world.file(f"data/images/{split}/{name}.png", encoded("PNG"))
            world.file(f"data/masks/{split}/{name}.png", good())


def validate(*more: str) -> list[str]:
    return ["validate-data", "-c", RECIPE, "--data.root", "data", *more]


def fit(*more: str) -> list[str]:
    return [
        *("fit", "-c", RECIPE, "--data.root", "data", "--trainer.default_root_dir", "run", "--trainer.max_epochs", "1"),
        *("--model.backbone", "dgmn2_nano", "--data.num_workers", "0", "--trainer.accelerator", "cpu", *more),
    ]


FORM = "a mask is a greyscale image"
MASKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "beyond-the-classes": (lambda: encoded("PNG", grey(2)), r"holds 2, which no class has; the 2 classes are 0\.\.1"),
    "254": (lambda: encoded("PNG", grey(254)), "holds 254, which no class has"),
    "all-values": (
        lambda: encoded("PNG", Image.fromarray(np.arange(1200).reshape(30, 40).astype(np.uint8))),
        r"holds 2, 3, 4, 5, 6 \.\.\., which no class has",
    ),
    "wider": (lambda: encoded("PNG", grey(0, (41, 30))), "41 x 30 pixels, its image 40 x 30: they must be equal"),
    "turned": (lambda: encoded("PNG", grey(0, (30, 40))), "30 x 40 pixels, its image 40 x 30: they must be equal"),
    "one-pixel": (lambda: encoded("PNG", grey(0, (1, 1))), "1 x 1 pixels, its image 40 x 30: they must be equal"),
    "palette": (lambda: encoded("PNG", grey(0).convert("P")), "a mask with a palette.*--data.palette_masks true"),
    "colours": (lambda: encoded("PNG"), f"has colours; {FORM}"),
    "alpha": (lambda: encoded("PNG", grey(0).convert("RGBA")), f"has colours; {FORM}"),
    "grey-alpha": (lambda: encoded("PNG", grey(0).convert("LA")), f"has pixels of mode LA; {FORM}"),
    "16-bits": (
        lambda: encoded("PNG", Image.fromarray(np.full((30, 40), 256, np.uint16))),
        "holds 256, which no class has",
    ),
    "32-bits": (
        lambda: encoded("TIFF", Image.fromarray(np.full((30, 40), -1, np.int32))),
        "holds -1, which no class has",
    ),
    "floating-point": (lambda: floats(0, 1), f"has pixels of mode F; {FORM}"),
    "nan": (lambda: floats(float("nan")), f"has pixels of mode F; {FORM}"),
    "jpeg": (lambda: encoded("JPEG", grey(0)), "JPEG does not keep the values of pixels"),
    "webp": (lambda: encoded("WEBP", grey(0)), "WEBP does not keep the values of pixels"),
    "too-large": (lambda: large("L"), "10001 x 10001 pixels, at most"),
}
NO_MASKS: dict[str, tuple[Callable[[str], object], str]] = {
    "missing": (lambda path: None, "missing mask"),
    "folder": (os.mkdir, "a folder, a file is needed"),
    "pipe": (os.mkfifo, "a pipe, a file is needed"),
    "device": (lambda path: os.symlink("/dev/zero", path), "a device, a file is needed"),
    "broken-link": (lambda path: os.symlink("nowhere", path), "missing mask"),
    "link-to-itself": (lambda path: os.symlink("one.png", path), "Too many levels of symbolic links|missing mask"),
}
CLASSES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("classes.txt", b"", "classes: 2 to 255 are accepted, got 0"),
    "one": ("classes.txt", b"a\n", "classes: 2 to 255 are accepted, got 1"),
    "300": ("classes.txt", "\n".join(map(str, range(300))).encode(), "classes: 2 to 255 are accepted, got 300"),
    "twice": ("classes.txt", b"a\nb\na\n", "classes: 'a' is there twice"),
    "empty-line": ("classes.txt", b"a\n\nb\n", "line 2 is empty"),
    "latin-1": ("classes.txt", b"gr\xfcn\nrot\n", "not text in UTF-8"),
    "utf-16": ("classes.txt", "a\nb\n".encode("utf-16"), "not text in UTF-8"),
    "binary": ("classes.txt", bytes(range(256)), "not text in UTF-8"),
    "json-broken": ("classes.json", b'["a", ', "not JSON"),
    "json-empty": ("classes.json", b"", "not JSON"),
    "json-number": ("classes.json", b"3", "expected a list of names"),
    "json-empty-list": ("classes.json", b"[]", "expected a list of names"),
    "json-other-key": ("classes.json", b'{"names": ["a", "b"]}', "expected a list of names"),
    "json-null": ("classes.json", b'["a", null]', "class 1 has no name: None"),
    "json-name-a-number": ("classes.json", b'[{"name": 1}, {"name": "b"}]', "class 0 has no name"),
    "json-color-a-text": ("classes.json", b'[{"name": "a", "color": "red"}, "b"]', r"color of a must be \[r, g, b\]"),
    "json-color-beyond": ("classes.json", b'[{"name": "a", "color": [0, 0, 256]}, "b"]', r"color of a must be"),
    "json-color-null": ("classes.json", b'[{"name": "a", "color": null}, "b"]', r"color of a must be"),
    "json-color-true": ("classes.json", b'[{"name": "a", "color": [true, 0, 0]}, "b"]', r"color of a must be"),
    "json-id-a-text": ("classes.json", b'[{"name": "a", "id": "0"}, "b"]', "the id of a must be a whole number"),
    "json-id-nan": ("classes.json", b'[{"name": "a", "id": NaN}, "b"]', "the id of a must be a whole number"),
    "json-id-1e400": ("classes.json", b'[{"name": "a", "id": 1e400}, "b"]', "the id of a must be a whole number"),
    "json-id-negative": ("classes.json", b'[{"name": "a", "id": -1}, "b"]', r"ids must be different and in 0\.\.254"),
    "json-id-255": ("classes.json", b'[{"name": "a", "id": 255}, "b"]', r"ids must be different and in 0\.\.254"),
    "json-id-huge": ("classes.json", b'[{"name": "a", "id": 1' + b"0" * 300 + b'}, "b"]', "ids must be different"),
    "json-id-5000-digits": ("classes.json", b'[{"name": "a", "id": 1' + b"0" * 5000 + b'}, "b"]', "not JSON"),
    "json-id-twice": ("classes.json", b'[{"name": "a", "id": 1}, "b"]', "ids must be different and"),
    "json-ignored-a-text": ("classes.json", b'{"classes": ["a", "b"], "ignored": "x"}', "ignored must be a list"),
    "json-ignored-beyond": ("classes.json", b'{"classes": ["a", "b"], "ignored": [256]}', "ids must be different"),
    "json-ignored-a-class": ("classes.json", b'{"classes": ["a", "b"], "ignored": [0]}', "ids must be different"),
    "json-nested": ("classes.json", b"[" * 100_000, "not JSON"),
    "json-surrogate": ("classes.json", b"\xff\xfe[\0]\0", "not JSON"),
}


def _of_mask(content: Callable[[], bytes], command: Callable[[], list[str]]) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        dataset(world)
        world.file("data/masks/train/one.png", content())
        return command()

    return arguments


def _of_no_mask(make: Callable[[str], object]) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        dataset(world)
        os.remove("data/masks/train/one.png")
        make("data/masks/train/one.png")
        return validate()

    return arguments


def _of_classes(name: str, content: bytes) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        dataset(world)
        world.file(f"data/{name}", content)
        return validate()

    return arguments


ONE = r"data/masks/train/one\.png: .*"

CASES = [
    *(
        Case(f"mask-{name}", _of_mask(content, validate), rf"\n  {ONE}({told})", code=1)
        for name, (content, told) in MASKS.items()
    ),
    *(
        Case(f"mask-{name}", _of_mask(content, validate), rf"\n  {ONE}({told}|damaged mask)", 1)
        for name, (content, told) in list(REFUSED.items())[1::4]
        if DAMAGED in told or "known format" in told
    ),
    *(
        Case(f"training-mask-{name}", _of_mask(content, fit), rf"{ONE}({told})")
        for name, (content, told) in list(MASKS.items())[::3]
    ),
    *(
        Case(f"mask-{name}", _of_no_mask(make), rf"\n  {ONE}({told})", 1, name in ("pipe", "device"))
        for name, (make, told) in NO_MASKS.items()
    ),
    *(
        Case(f"classes-{name}", _of_classes(file, content), rf"data/classes\.\w+: .*({told})")
        for name, (file, content, told) in CLASSES.items()
    ),
]
