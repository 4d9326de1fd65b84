"""A hook of mkdocs: what lies outside of docs/ in the repository is part of the site, under links that hold in both."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "measured.md",
    "benchmarks/results/": "results/",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, there in OUTSIDE.items():
        source = ROOT / name
        for path in sorted(source.glob("*.png")) if source.is_dir() else [source]:
            place = there + path.name if source.is_dir() else there
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    for name, there in OUTSIDE.items():
        markdown = markdown.replace(f"](../{name}", f"]({there}")
    return markdown.replace("](../docs/", "](").replace("](docs/", "](")
