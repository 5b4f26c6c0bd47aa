"""What mkdocs does beyond its plugins: the configuration reference, tables of settings, pictures.

Pages also read well on GitHub: they link pictures where these lie in the repository, and where the table of
an objective's settings goes they have a mark, `<!-- settings: KIND -->`.
"""

import ast
import functools
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import configuration

REPOSITORY = Path(__file__).parent.parent
PICTURES = REPOSITORY / "benchmarks" / "results"
PACKAGE = REPOSITORY / "sparsepo_jax"
MAP_INTRODUCTION = """# Map of the code

Made from the first paragraph of every file. `core` imports no other room, and the rooms after it know no
config; a test walks the imports and holds who may import whom (`tests/test_structure.py`).

For an afternoon: `core/types`, `losses`, `masks/learned`, `ops/logprob_kl`, `train/forward`, `train/step`,
`train/loop`, `models/decoder`.
"""
FIRST_ROOMS = ("core", "losses", "masks", "ops", "models", "data", "train", "sharding")


@functools.cache
def schema() -> Any:
    return configuration.load_schema()


def code_map() -> str:
    """Every file of the package with the first paragraph of its docstring."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        if docstring is None:
            continue
        paragraph = configuration.cell(docstring.split("\n\n")[0])
        room = path.relative_to(PACKAGE).parent.as_posix()
        rooms.setdefault(room, []).append(f"| `{path.name}` | {paragraph} |")
    order = [*FIRST_ROOMS, *sorted(rooms.keys() - {*FIRST_ROOMS, "."}), "."]
    parts = [MAP_INTRODUCTION]
    for room in order:
        title = "The package itself" if room == "." else f"{room}/"
        parts.append(f"\n## {title}\n\n| file | |\n|---|---|\n" + "\n".join(rooms[room]) + "\n")
    return "".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    page = configuration.make_page(schema())
    files.append(File.generated(config, "reference/configuration.md", content=page))
    files.append(File.generated(config, "reference/map.md", content=code_map()))
    for picture in sorted([*PICTURES.glob("*.png"), *PICTURES.glob("*.svg")]):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\((?:\.\./)+benchmarks/results/", f"({up}pictures/", markdown)
    return re.sub(
        r"<!-- settings: (\w+) -->",
        lambda match: configuration.objective_table(schema(), match[1]),
        markdown,
    )
