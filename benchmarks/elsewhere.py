"""A task whose answer lies elsewhere: `python benchmarks/elsewhere.py`.

An object is a small arrow. Its class is the colour of the marker that lies somewhere along the arrow, within a quarter
of the given distance; markers in other directions have colours of their own. So what a position needs is far away, at a
place that the content decides.
Small networks of equal recipe learn it, with one module between their convolutions and their classifier. A run that was
stopped goes on where it stopped. `--table` writes the table of docs/proof.md from the CSV file. The picture shows where
the nodes of the last contender lie before and after training: `--picture FILE`.
"""

import argparse
import multiprocessing
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.complexity import count
from dgmn.layers import DGMN, DGMN2Attention
from dgmn.layers.context import DeformableConv2d, context_module

from pages import RESULTS, ROOT, append_row, markdown, row_facts, rows_of, spread, write_table

SIDE = 32  # of an image, in pixels
CHANNELS = 32
CSV, PAGE = RESULTS / "elsewhere.csv", ROOT / "docs/proof.md"
COLORS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32)
DIRECTIONS = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])
NOTHING = -100  # the label of pixels that count for nothing, as in PyTorch


def images(number: int, distance: int, seed: int, objects: int = 2, markers: int = 4) -> tuple[Tensor, Tensor]:
    """Images (N, 3, SIDE, SIDE) and labels (N, SIDE, SIDE), which only the pixels of arrows have."""
    random = np.random.default_rng(seed)
    pixels = random.normal(0, 0.1, (number, 3, SIDE, SIDE)).astype(np.float32)
    labels = np.full((number, SIDE, SIDE), NOTHING)
    for image, label in zip(pixels, labels, strict=True):
        taken = np.zeros((SIDE, SIDE), bool)
        for _ in range(objects):
            center, ways, squares = place(random, taken, distance, markers)
            for square in squares:
                taken[square] = True
            colors = random.integers(len(COLORS), size=markers)
            (y, x), (dy, dx) = center, ways[0]
            image[:, y, x] = image[:, y + dy, x + dx] = 1
            image[:, y - dy, x - dx] = -1
            label[squares[0]] = colors[0]
            for square, color in zip(squares[1:], colors, strict=True):
                image[:, square[0], square[1]] = COLORS[color][:, None, None]
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def place(random: np.random.Generator, taken: np.ndarray, distance: int, markers: int) -> tuple[Any, Any, Any]:
    """The centre of an arrow, its directions, of which the arrow shows the first, and its squares of 3 x 3 pixels.

    It overlaps what is there only if a hundred places did.
    """
    for _ in range(100):
        ways = random.permutation(DIRECTIONS)[:markers]
        spread = distance // 4
        spots = ways * random.integers(distance - spread, distance + spread + 1, (markers, 1))
        margin = 1 + np.stack(((-spots).max(0), spots.max(0))).clip(0)
        center = random.integers(margin[0], SIDE - margin[1])
        squares = [tuple(slice(at - 1, at + 2) for at in spot) for spot in (center, *(center + spots))]
        if not any(taken[square].any() for square in squares):
            break
    return center, ways, squares


class Blocks(nn.Module):
    """Two Transformer blocks of DGMN2; without walks, the nodes stay on the grid."""

    def __init__(self, walks: bool = True, zero: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(4))
        self.attentions = nn.ModuleList(DGMN2Attention(CHANNELS, 2, (SIDE, SIDE)) for _ in range(2))
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(CHANNELS, 2 * CHANNELS), nn.GELU(), nn.Linear(2 * CHANNELS, CHANNELS))
            for _ in range(2)
        )
        for attention in self.attentions:
            if zero or not walks:
                nn.init.zeros_(attention.offset.weight)
            attention.offset.requires_grad_(walks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for number, (attention, perceptron) in enumerate(zip(self.attentions, self.perceptrons, strict=True)):
            x = attention(self.norms[2 * number](x), x)
            x = x + perceptron(self.norms[2 * number + 1](x))
        return x.permute(0, 3, 1, 2)


def convolutions(kind: type[nn.Conv2d] | type[DeformableConv2d], number: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(number):
        layers += [kind(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers)


def of_dgmn(
    affinity: bool = True, weights: bool = True, sampling: bool = True, rates: Sequence[int] = (1, 4, 8)
) -> Callable[[], nn.Module]:
    return lambda: DGMN(CHANNELS, rates, 4 * weights, affinity, sampling)


# Name: the module, and the factor of the learning rate for the layers that predict walks or offsets.
CONTENDERS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "nothing": (nn.Identity, 1),
    "two 3x3 convolutions": (lambda: convolutions(nn.Conv2d, 2), 1),
    "six 3x3 convolutions": (lambda: convolutions(nn.Conv2d, 6), 1),
    "non-local": (lambda: context_module("non_local", CHANNELS), 1),
    "criss-cross": (lambda: context_module("criss_cross", CHANNELS), 1),
    "two deformable convolutions": (lambda: convolutions(DeformableConv2d, 2), 1),
    "two deformable convolutions, rate x 10": (lambda: convolutions(DeformableConv2d, 2), 10),
    "DGMN: DA": (of_dgmn(weights=False, sampling=False), 1),
    "DGMN: DA+DW": (of_dgmn(sampling=False), 1),
    "DGMN: DA+DW+DS": (of_dgmn(), 1),
    "DGMN: DA+DW+DS, rate x 10": (of_dgmn(), 10),
    "DGMN: DA+DW+DS, rate / 18": (of_dgmn(), 1 / 18),
    "DGMN: DA+DW+DS, sampling rates 1, 1, 1": (of_dgmn(rates=(1, 1, 1)), 1),
    "DGMN2, nodes on the grid": (lambda: Blocks(walks=False), 1),
    "DGMN2, walks from zero": (lambda: Blocks(zero=True), 1),
    "DGMN2": (Blocks, 1),
    "DGMN2, walks from zero, rate x 10": (lambda: Blocks(zero=True), 10),
    "DGMN2, rate x 18": (Blocks, 18),
    "DGMN2, rate x 10": (Blocks, 10),
}


def network(module: nn.Module) -> nn.Sequential:
    def convolution(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]

    return nn.Sequential(*convolution(3), *convolution(CHANNELS), module, nn.Conv2d(CHANNELS, len(COLORS), 1))


def walks_of(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """What every layer that samples predicts for the pixels of arrows: walks (N, K, 2), in pixels."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, DGMN2Attention):
            found.append(module.predict_walks(inputs[0])[labels != NOTHING].flatten(0, 1))
        elif isinstance(module, DeformableConv2d):
            offsets = module.offset_and_mask(inputs[0])[:, :18]
            found.append(offsets.permute(0, 2, 3, 1)[labels != NOTHING].unflatten(1, (9, 2)))
        else:
            for message in module.messages:
                walks = message.predict_walks(inputs[0])
                if walks is not None:
                    found.append(walks[labels != NOTHING])

    kinds = (DGMN, DGMN2Attention, DeformableConv2d)
    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return found


def walk_length(model: nn.Module, images: Tensor, labels: Tensor) -> float | None:
    """The mean length of the walks that arrows take, in pixels."""
    walks = walks_of(model, images, labels)
    return torch.cat([x.flatten(0, 1) for x in walks]).norm(dim=-1).mean().item() if walks else None


def trained(name: str, distance: int, seed: int, steps: int, device: str) -> tuple[nn.Module, dict[str, object]]:
    """A network after training, and the row of the table."""
    build, factor = CONTENDERS[name]
    torch.set_num_threads(1)
    data, labels = (part.to(device) for part in images(4096, distance, 1000 + seed))
    held_out, truth = (part.to(device) for part in images(1024, distance, 2000 + seed))
    torch.manual_seed(seed)
    model = network(build()).to(device)
    before = walk_length(model, held_out[:64], truth[:64])
    walks = [p for n, p in model.named_parameters() if any(part in n for part in ("offset", "walks"))]
    others = [p for p in model.parameters() if all(p is not walk for walk in walks)]
    groups = [{"params": others, "lr": 3e-3}, *([{"params": walks, "lr": 3e-3 * factor}] if walks else [])]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(data), (32,), generator=order).to(device)
        loss = F.cross_entropy(model(data[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in held_out.split(128)])
    asked = truth != NOTHING
    after = walk_length(model, held_out[:64], truth[:64])
    cost = count(model.cpu(), (SIDE, SIDE))
    return model, {
        "contender": name,
        "distance": distance,
        "seed": seed,
        "steps": steps,
        "accuracy": round(100 * (guesses == truth)[asked].float().mean().item(), 2),
        "parameters": cost.params,
        "mmacs": round(cost.macs / 1e6, 2),
        "walk_before": "" if before is None else round(before, 3),
        "walk_after": "" if after is None else round(after, 3),
        **row_facts(device),
    }


def row_of(name: str, distance: int, seed: int, steps: int, device: str) -> dict[str, object]:
    return trained(name, distance, seed, steps, device)[1]


def table(path: Path) -> str:
    """Mean, and the lowest and the highest of the seeds, in Markdown."""
    rows = rows_of(path)
    distances = sorted({int(row["distance"]) for row in rows})
    titles = [
        "module",
        "parameters",
        "MMACs",
        *(f"{distance} ± {distance // 4} px away" for distance in distances),
        "mean walk",
    ]
    seeds = Counter((row["contender"], row["distance"]) for row in rows).values()
    most, cells = max(seeds), []
    for name in CONTENDERS:
        own = [row for row in rows if row["contender"] == name]
        if not own:
            continue
        cells.append([name, f"{int(own[0]['parameters']):,}", own[0]["mmacs"]])
        for distance in distances:
            scores = [float(row["accuracy"]) for row in own if int(row["distance"]) == distance]
            few = f" ({len(scores)} of {most})" if 0 < len(scores) < most else ""
            cells[-1].append(spread(scores) + few)
        lengths = [float(row["walk_after"]) for row in own if row["walk_after"]]
        cells[-1].append(f"{statistics.mean(lengths):.1f} px" if lengths else "")
    counted = f"{most}" if min(seeds) == most else f"{min(seeds)} to {most}"
    made = {
        key: ", ".join(sorted({row[key] for row in rows})) for key in ("steps", "device", "torch", "commit", "date")
    }
    about = (
        f"Accuracy in %, mean (lowest to highest) of {counted} trainings; chance is 25 %. {made['steps']} steps; "
        f"{made['device']}; {made['torch']}; commit {made['commit']}; {made['date']}."
    )
    return markdown(titles, cells) + "\n" + about + "\n"


def draw(path: Path, distance: int, steps: int) -> None:
    """Where the nodes of the last contender lie, before and after training, for four arrows."""
    from matplotlib import pyplot

    name = list(CONTENDERS)[-1]
    shown, labels = images(4, distance, 3000, objects=1)
    torch.manual_seed(0)
    models = (network(CONTENDERS[name][0]()), trained(name, distance, 0, steps, "cpu")[0])
    figure, axes = pyplot.subplots(2, 4, figsize=(10, 5.4), layout="constrained")
    grid = torch.tensor([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    for row, (model, when) in enumerate(zip(models, ("before training", "after training"), strict=True)):
        for column, axis in enumerate(axes[row]):
            image, label = shown[column : column + 1], labels[column : column + 1]
            ys, xs = torch.nonzero(label[0] != NOTHING).float().mean(0).tolist()
            axis.imshow((image[0].permute(1, 2, 0).clamp(-1, 1) + 1) / 2, interpolation="nearest")
            center = torch.full_like(label, NOTHING)
            center[0, int(ys), int(xs)] = 0
            for layer, walks in enumerate(walks_of(model, image, center)):
                nodes = (grid + walks).flatten(0, 1) + torch.tensor([ys, xs])
                axis.scatter(nodes[:, 1], nodes[:, 0], s=6, c=("cyan", "magenta")[layer], label=f"block {layer + 1}")
            axis.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5), xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(when)
    figure.suptitle(
        f"Nodes of the arrow's centre, {name}, marker {distance} ± {distance // 4} pixels away", x=0.02, ha="left"
    )
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2, facecolor="grey")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distances", type=int, nargs="+", default=[4, 7, 10])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parallel", type=int, default=1, help="networks that are trained at the same time")
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--picture", type=Path, help="only draw the nodes, at the middle distance")
    given = parser.parse_args()
    if given.picture:
        draw(given.picture, sorted(given.distances)[len(given.distances) // 2], given.steps)
        return
    if given.table:
        write_table(PAGE, "elsewhere.py", table(given.out))
        return
    done = {(r["contender"], int(r["distance"]), int(r["seed"]), int(r["steps"])) for r in rows_of(given.out)}
    wanted = [
        (name, distance, seed, given.steps)
        for seed in range(given.seeds)
        for distance in given.distances
        for name in given.contenders
        if (name, distance, seed, given.steps) not in done
    ]
    with ProcessPoolExecutor(given.parallel, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(row_of, *one, given.device) for one in wanted]):
            row = future.result()
            append_row(given.out, row)
            print(f"seed {row['seed']}, {row['distance']} pixels, {row['contender']}: {row['accuracy']} %", flush=True)
    print(table(given.out))


if __name__ == "__main__":
    main()
