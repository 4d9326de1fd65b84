"""The published models, one row each, and their download.

The metrics are the ones that the papers' authors report, not measured here.
"""

import difflib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors.torch import save_file

from dgmn.errors import InputError
from dgmn.weights.keys import match_keys
from dgmn.weights.load import read_checkpoint


@dataclass(frozen=True)
class ZooModel:
    """A published model.

    Attributes:
        name: what `dgmn zoo download` takes.
        task: "classification", "detection" or "segmentation".
        method: as the paper writes it.
        backbone: name for `timm.create_model`.
        dataset: that the metrics are for.
        schedule: length of the training.
        metrics: as published: top1 and AP in percent, mIoU in percent (also multi-scale with flip), parameters in
            millions, GMACs (at 224 x 224, detectors at 800 x 1280, Sparse R-CNN at 608 x 1024, segmenters at
            768 x 768).
        file_id: on Google Drive.
    """

    name: str
    task: str
    method: str
    backbone: str
    dataset: str
    schedule: str
    metrics: dict[str, float]
    file_id: str

    @property
    def builder(self) -> str:
        """The network's name in its task's module, for instance `semantic_fpn`."""
        return self.name.removesuffix(f"_{self.backbone}")

    @property
    def file(self) -> Path:
        """The converted weights that `dgmn zoo download` fetched.

        Raises:
            InputError (a ValueError): it did not yet.
        """
        path = cached_file(self.name)
        if path is None:
            raise InputError(
                f"{self.name} was not downloaded yet: dgmn zoo download {self.name}, or give its file as --ckpt_path"
            )
        return path

    @property
    def url(self) -> str:
        return f"https://drive.google.com/file/d/{self.file_id}/view"


def _classifier(size: str, file_id: str, **metrics: float) -> ZooModel:
    name = f"dgmn2_{size}"
    return ZooModel(
        name, "classification", f"DGMN2-{size.title()}", name, "ImageNet-1k val", "300 epochs", metrics, file_id
    )


def _detector(method: str, size: str, schedule: str, file_id: str, **metrics: float) -> ZooModel:
    # The repository's "+" is the form with box refinement and two stages.
    slug = method.replace("+", " refine two stage").replace("R-CNN", "RCNN").replace(" ", "_").lower()
    return ZooModel(
        f"{slug}_dgmn2_{size}", "detection", method, f"dgmn2_{size}", "COCO val2017", schedule, metrics, file_id
    )


def _segmenter(method: str, size: str, file_id: str, **metrics: float) -> ZooModel:
    slug = method.replace("-", "_").replace(" ", "_").lower()
    return ZooModel(
        f"{slug}_dgmn2_{size}", "segmentation", method, f"dgmn2_{size}", "Cityscapes val", "40k", metrics, file_id
    )


ZOO: tuple[ZooModel, ...] = (
    _classifier("tiny", "1H21VwFOzkv47GIXnV2a47F2K98wn3s0a", top1=78.7, params_m=12.1, gmacs=2.3),
    _classifier("small", "1bOhpFnZLO8Va4LJccrlnazD1aL61wm5b", top1=81.7, params_m=21.0, gmacs=4.3),
    _classifier("medium", "13iDrUlynBs83pdhUoFmwQoZbAf4oDvTm", top1=82.5, params_m=35.8, gmacs=7.1),
    _classifier("large", "1nXvXHXJZpsScPnI2VQe8ZgrGXuMpbHia", top1=83.3, params_m=48.3, gmacs=10.4),
    _detector("RetinaNet", "tiny", "1x", "14gjw75Cz8iytUFDQP9ioIfiMni6e-xRl", box_ap=39.7, params_m=21.8, gmacs=206.8),
    _detector("RetinaNet", "small", "1x", "1JIIuf7iNA9-tJoUefUNc1O1laJSW30Hx", box_ap=42.5, params_m=30.7, gmacs=248.2),
    _detector(
        "RetinaNet", "medium", "1x", "1WU4Kv1Z0Q4b3VMIcJPi7LSmUSYqlywWU", box_ap=43.7, params_m=45.6, gmacs=312.0
    ),
    _detector("RetinaNet", "large", "1x", "1kws1Q6Ccwipaimour9F67EAg2bMzXlAj", box_ap=44.7, params_m=57.9, gmacs=382.1),
    _detector(
        "Mask R-CNN",
        "tiny",
        "1x",
        "17vGTzN1dazQ1Euu5mpBMvEro5HafAedT",
        box_ap=40.2,
        mask_ap=37.2,
        params_m=31.8,
        gmacs=223.0,
    ),
    _detector(
        "Mask R-CNN",
        "small",
        "1x",
        "1g1lp7kUIM5gvxROfTAvI2EVjpPL-HW6r",
        box_ap=43.4,
        mask_ap=39.7,
        params_m=40.6,
        gmacs=264.5,
    ),
    _detector(
        "Mask R-CNN",
        "medium",
        "1x",
        "1MO0BLtIrRohAW7BPEnr5G63mCBDA4Yey",
        box_ap=44.4,
        mask_ap=40.2,
        params_m=55.5,
        gmacs=328.2,
    ),
    _detector(
        "Mask R-CNN",
        "large",
        "1x",
        "1DFkSQmfHI9z6IKag21BzRb7LhWvHotXm",
        box_ap=46.2,
        mask_ap=41.6,
        params_m=67.9,
        gmacs=398.4,
    ),
    _detector(
        "Deformable DETR", "tiny", "50e", "1FZ9HIzQ9ty3TUeW30TCLxI9zKopVcHHG", box_ap=44.4, params_m=24.0, gmacs=163.6
    ),
    _detector(
        "Deformable DETR", "small", "50e", "1cy9-HftCSkX5gSMH22ThjJNn8Br8EPke", box_ap=47.3, params_m=32.9, gmacs=205.1
    ),
    _detector(
        "Deformable DETR", "medium", "50e", "1bXNPKpWSAu_i0vtQCcBcoP7yUJQUIHN3", box_ap=48.4, params_m=47.7, gmacs=268.9
    ),
    _detector(
        "Deformable DETR+", "small", "50e", "1svE9XGe6bwvGtiauQenYIjpnaOkQ0x9e", box_ap=48.5, params_m=34.0, gmacs=214.3
    ),
    _detector(
        "Sparse R-CNN",
        "small",
        "3x",
        "1EvzDIdc_zNPhUlDweP_g9-Iqf2_XXMr6",
        box_ap=48.2,
        params_m=102.6,
        gmacs=114.86,
    ),
    _segmenter(
        "Semantic FPN",
        "tiny",
        "1sg6Mlzg12uTIQvE5XEebzNkd-Tino0eU",
        miou=78.09,
        miou_ms_flip=79.4,
        params_m=15.84,
        gmacs=76.35,
    ),
    _segmenter(
        "Semantic FPN",
        "small",
        "19H1ynlczV3dKC5qvTl3l2r-ygp26g5ho",
        miou=80.65,
        miou_ms_flip=81.58,
        params_m=24.71,
        gmacs=99.57,
    ),
    _segmenter(
        "Semantic FPN",
        "medium",
        "1IWXPpx6ra7n1svK0yJHD9E4lr7M0lhVU",
        miou=80.6,
        miou_ms_flip=81.79,
        params_m=39.55,
        gmacs=136.01,
    ),
    _segmenter(
        "Semantic FPN",
        "large",
        "1gtE2IhkUtsjY6HPajUwlz3pE2szyjNuS",
        miou=81.75,
        miou_ms_flip=82.64,
        params_m=52.02,
        gmacs=175.94,
    ),
    _segmenter(
        "SETR-Naive",
        "tiny",
        "1RuPaccxYYcpTJ38hpTzUmThL4yRlgT6o",
        miou=77.23,
        miou_ms_flip=78.23,
        params_m=11.6,
        gmacs=117.52,
    ),
    _segmenter(
        "SETR-Naive",
        "small",
        "1Vrg25uAGUf0ASeLHgUQCLsMzYWAO-BQO",
        miou=80.31,
        miou_ms_flip=81.04,
        params_m=20.47,
        gmacs=204.97,
    ),
    _segmenter(
        "SETR-Naive",
        "medium",
        "1HoGC-t51bhMqLYr35vDkAIHDlVPJQ8Wy",
        miou=80.83,
        miou_ms_flip=81.39,
        params_m=35.31,
        gmacs=347.76,
    ),
    _segmenter(
        "SETR-Naive",
        "large",
        "1hYqUr0nF9tKKDhIuJ-heAQwtFCKtPMp9",
        miou=81.8,
        miou_ms_flip=82.61,
        params_m=47.78,
        gmacs=467.46,
    ),
    _segmenter(
        "SETR-PUP",
        "tiny",
        "1Fz_VgIDvX7WcrEJcdYiB85KWOUGz7qPC",
        miou=78.25,
        miou_ms_flip=79.26,
        params_m=13.95,
        gmacs=242.51,
    ),
    _segmenter(
        "SETR-PUP",
        "small",
        "1w-XcAmeTUIAQG1WjYubmTRm88_IMPigP",
        miou=79.78,
        miou_ms_flip=80.73,
        params_m=22.82,
        gmacs=329.96,
    ),
    _segmenter(
        "SETR-PUP",
        "medium",
        "1zQM9CUxXDVfGZsXSkoRt1u-Yak3g_9jN",
        miou=80.97,
        miou_ms_flip=81.8,
        params_m=37.67,
        gmacs=472.75,
    ),
    _segmenter(
        "SETR-PUP",
        "large",
        "1-ZbdeKIFGGBo73QZjGsIBJTA8vdbeZBL",
        miou=81.58,
        miou_ms_flip=82.27,
        params_m=50.14,
        gmacs=592.45,
    ),
    _segmenter(
        "SETR-MLA",
        "tiny",
        "1EpgGGDzRzwMslW07ML93fO0VgIKbqFWr",
        miou=78.25,
        miou_ms_flip=79.32,
        params_m=13.37,
        gmacs=141.72,
    ),
    _segmenter(
        "SETR-MLA",
        "small",
        "1SxjazS3tTwC43H-t1fs1--I3LpgwH9ty",
        miou=80.79,
        miou_ms_flip=81.62,
        params_m=22.24,
        gmacs=229.17,
    ),
    _segmenter(
        "SETR-MLA",
        "medium",
        "1L_VZSB3TjnEUtzz1cXTY2iR5Grsl-yzM",
        miou=81.09,
        miou_ms_flip=82.0,
        params_m=37.08,
        gmacs=371.96,
    ),
    _segmenter(
        "SETR-MLA",
        "large",
        "1yRz3yjk6Aox-weRZLQL7-buW0G_RqiPX",
        miou=81.55,
        miou_ms_flip=81.98,
        params_m=49.56,
        gmacs=491.66,
    ),
)


def find(name: str, task: str | None = None) -> ZooModel:
    """The row of this name; a network's name alone, for instance "retinanet", is its smallest model.

    Raises:
        InputError (a ValueError): no such row (the message suggests near names), or one of another task.
    """
    for model in ZOO:
        if name in (model.name, model.builder):
            if task not in (None, model.task):
                raise InputError(
                    f"{name} is a model for {model.task}, one for {task} is needed: dgmn zoo --task {task}"
                )
            return model
    near = difflib.get_close_matches(name.lower().replace("-", "_"), [model.name for model in ZOO], n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else "`dgmn zoo` lists them"
    raise InputError(f"no published model {name!r}; {hint}")


def cache_folder() -> Path:
    """Where downloads are kept: beside torch.hub's own, so `TORCH_HOME` moves it."""
    return Path(torch.hub.get_dir()) / "dgmn"


def cached_file(name: str) -> Path | None:
    """The converted weights of a published model, None if it was not downloaded."""
    path = cache_folder() / f"{name}.safetensors"
    return path if path.is_file() else None


def download(name: str, file: str | PathLike[str] | None = None) -> Path:
    """Fetches a published checkpoint, verifies it and keeps its weights as safetensors.

    Verified is that the file can be read without executing anything, and that the backbone in it has all names and
    shapes of the row's. Nothing is left behind if a step fails.

    Args:
        name: of a row in [`ZOO`][dgmn.weights.ZOO].
        file: the published file, fetched otherwise; None downloads it.

    Returns:
        The path of the `.safetensors` in the cache.

    Raises:
        InputError (a ValueError): no such row, or the file is not that model.
        ImportError: gdown is not installed.
        ConnectionError: no network, or the file is gone or over its quota.
    """
    model = find(name)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model.name}.safetensors"
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{model.name}-") as temporary:
        original = Path(file) if file is not None else _fetch(model, Path(temporary) / "original.pth")
        state_dict = read_checkpoint(original).state_dict
        _verify(model, state_dict, original)
        converted = Path(temporary) / target.name
        metadata = {"format": "pt", "model": model.name, "source": model.url, "sha256": _sha256(original)}
        # Some upstream files hold one tensor under several names, which safetensors refuses.
        save_file({key: value.clone().contiguous() for key, value in state_dict.items()}, converted, metadata)
        os.replace(converted, target)
    return target


def _fetch(model: ZooModel, target: Path) -> Path:
    try:
        import gdown
    except ImportError as error:
        raise ImportError("downloading needs gdown: pip install 'dgmn[zoo]'") from error
    try:
        gdown.download(id=model.file_id, output=str(target), quiet=False)
    except Exception as error:  # gdown raises its own errors, those of requests, and OSError
        reason = str(error).strip().split("\n")[0][:200]
        raise ConnectionError(
            f"{model.name} could not be downloaded from {model.url}: {reason}\n"
            f"With the file from elsewhere: dgmn zoo download {model.name} --file FILE"
        ) from error
    return target


def _verify(model: ZooModel, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    import timm

    with torch.device("meta"):
        network = timm.create_model(model.backbone, features_only=model.task != "classification")
    try:
        match_keys(state_dict, network)
    except InputError as error:
        raise InputError(f"{path} is not the published {model.name}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
