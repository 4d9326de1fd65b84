"""The commands `dgmn zoo download` and `dgmn zoo verify`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dgmn.errors import InputError
from dgmn.finite import check_weights
from dgmn.loading import predictor_of
from dgmn.weights import ZooModel, download, find, match_keys, read_checkpoint
from dgmn.weights.zoo import cache_folder, cached_files, check_cached
from dgmn_base.errors import one_line


def fetch_model(name: str, file: str | None) -> int:
    """Fetches a published model, or converts the given file, and prints where its weights are."""
    model = find(name)
    print(f"verified and converted: {download(name, file, _network(model))}")
    return 0


def verify(names: Sequence[str]) -> int:
    """Checks the fetched models, all or those of these names, and prints a line each. Returns 1 if one is bad.

    Raises:
        InputError: a name is not that of a published model.
    """
    wanted = [find(name).name for name in names]
    files = {path.stem: path for path in cached_files()}
    if not (wanted or files):
        print(f"no published model in {cache_folder()}; dgmn zoo download NAME fetches one")
    bad = 0
    for name in wanted or files:
        try:
            if name not in files:
                raise InputError(f"not in {cache_folder()}; fetch it with dgmn zoo download {name}")
            _check(files[name])
        except (InputError, OSError) as error:
            print(f"BAD  {name}: {one_line(str(error))}")
            bad += 1
        else:
            print(f"ok   {name}  {files[name]}")
    return 1 if bad else 0


def _check(path: Path) -> None:
    model = check_cached(path)
    weights = read_checkpoint(path).state_dict
    check_weights(weights, str(path))
    try:
        match_keys(weights, _network(model))
    except InputError as error:
        raise InputError(f"{path} is not the published {model.name}: {error}") from error


def _network(model: ZooModel) -> nn.Module:
    """The network of a row without its numbers."""
    with torch.device("meta"):
        return predictor_of(model.task).published(model.builder, model.backbone, "meta").network
