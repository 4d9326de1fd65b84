"""What `dgmn quickstart` reaches, and what 8 bits cost two of its networks: `python benchmarks/quickstart.py`.

Every form trains once, in a folder of its own, and is tested on digits that it never saw. Writes `quickstart_cpu.csv`
and `quickstart_int8_cpu.csv`, and their rows as the tables of `docs/quickstart.md` and `docs/export.md`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dgmn
from dgmn.exporting import export

from pages import ROOT, publish

FORMS = {
    "": "`dgmn2_nano` on 1,085 digits",
    "--task segmentation": "Semantic FPN on `dgmn2_nano`, 700 steps",
    "--task detection": "Mask R-CNN on `dgmn2_nano`, 360 steps",
    "--task detection --model retinanet": "RetinaNet on `dgmn2_nano`, 810 steps",
    "--task detection --model sparse_rcnn": "Sparse R-CNN on `dgmn2_nano`, 630 steps",
    "--task detection --model deformable_detr": "Deformable DETR on `dgmn2_nano`, 630 steps",
}
# Forms whose networks can have 8 bits: what scores them, on what, the images, and the size of the file.
IN_8_BITS = {
    "": ("digits, `dgmn2_nano`, 32 x 32", "top-1", "images", "digits/test", None),
    "--task segmentation": ("scenes, `semantic_fpn` on `dgmn2_nano`, 96 x 128", "mIoU", "pixels", "scenes", (96, 128)),
}


def trained(form: str, folder: Path) -> dict[str, str]:
    """Runs the command and returns the row of its table."""
    start = time.monotonic()
    command = [sys.executable, "-m", "dgmn_cli", "quickstart", *form.split(), "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"dgmn quickstart {form}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    told = done.stdout.rpartition("\nquickstart")[2]  # the title of its last table
    scores = re.findall(r"^(top-1|mIoU|box AP|mask AP) +([\d.]+)%", told, re.MULTILINE)
    images = re.search(r"never trained on +(\d+)", told)
    if not scores or images is None:
        raise SystemExit(f"dgmn quickstart {form}: tells no score: {told}")
    return {
        "`dgmn quickstart`": form and f"`{form}`",
        "trains": FORMS[form],
        "reaches, on digits that it never saw": ", ".join(f"{name} {score} %" for name, score in scores),
        "test images": images[1],
        "minutes": f"{(time.monotonic() - start) / 60:.1f}",
    }


def in_8_bits(form: str, folder: Path) -> dict[str, str]:
    """Exports the network with and without our operators, and returns the row of the table."""
    title, score, parts, images, size = IN_8_BITS[form]
    model = dgmn.load(folder / "run")
    plain, kernel = (
        export(model, folder / f"{own}.onnx", size=size, int8=True, calibrate=folder / images, kernel=own)
        for own in (False, True)
    )
    changed = plain.int8
    return {
        "network": title,
        "score in float32": f"{score} {changed.score[0]:.1%}, {changed.compared} images",
        "in int8": f"{changed.score[1]:.1%}",
        "same class": f"{changed.agreement:.1%} of the {parts}",
        "MB": f"{changed.megabytes:.1f} → {plain.path.stat().st_size / 1e6:.1f}",
        "ms": f"{changed.milliseconds:.1f} → {plain.milliseconds:.1f}",
        "ms, `--kernel`": f"{kernel.int8.milliseconds:.1f} → {kernel.milliseconds:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="only these")
    parser.add_argument("--out", type=Path, help="folder of the CSVs; by default benchmarks/results, and the tables")
    given = parser.parse_args()
    rows, small = [], []
    with tempfile.TemporaryDirectory() as place:
        for i, form in enumerate(given.forms):
            folder = Path(place) / str(i)
            rows.append(trained(form, folder))
            print(*rows[-1].values(), flush=True)
            if form in IN_8_BITS:
                small.append(in_8_bits(form, folder))
    publish(Path(__file__), "quickstart.md", rows, given.out and given.out / "quickstart_cpu.csv", "cpu")
    if small:
        out = given.out and given.out / "quickstart_int8_cpu.csv"
        publish(Path(__file__), "export.md", small, out, "cpu", name="quickstart_int8")


if __name__ == "__main__":
    main()
