"""The documentation: figures are those of the JSON, commands and configs are accepted, code runs."""

import ast
import copy
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from sparsepo_jax.config.load import json_schema, load_config
from sparsepo_jax.data import comparisons, ranked, unread
from sparsepo_jax.run.sweep import parse_axes, plan_sweep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESULTS, CONFIGURATION = script("results"), script("configuration")
SCHEMA = json_schema()


def blocks(language: str) -> list:
    """The fenced blocks of a language, each with the name of its page as its id."""
    return [
        pytest.param(block, id=f"{name}-{number}")
        for name, text in TEXT.items()
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    ]


# ---------------------------------------------------------------- figures


def test_pages_and_readme_have_the_figures_of_the_json():
    done = subprocess.run(
        [sys.executable, str(DOCS / "results.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run: python docs/results.py"


@pytest.mark.parametrize(
    ("path", "page"),
    [
        (("which_tokens_reviews", "means", "default", "AUROC", "mean"), "README.md"),
        (("which_tokens_reviews", "means", "default", "untrained", "mean"), "docs/results/tokens.md"),
        (("tasks_code", "length_rule"), "docs/results/tasks.md"),
        (("second_start", "second_over_first", "start_s"), "docs/results/speed.md"),
    ],
)
def test_another_figure_in_the_json_makes_another_page(path, page):
    values = copy.deepcopy(RESULTS.load_results())
    section = values
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] += 0.123
    assert RESULTS.render_all(values)[ROOT / page] != TEXT[page]


@pytest.mark.parametrize("path", sorted((DOCS / "templates").glob("*.jinja")), ids=lambda path: path.stem)
def test_no_figure_is_typed_into_a_template(path):
    """Betas are settings, 1.3 is the limit of benchmarks/loading.py, tolerances (1e-5) are the tests'."""
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|`[^`]*`", "", path.read_text(), flags=re.DOTALL)
    assert set(re.findall(r"\d+\.\d+", text)) <= {"0.1", "0.4", "0.8", "1.3"}


def test_every_result_is_on_some_page():
    templates = "".join(path.read_text() for path in (DOCS / "templates").glob("*.jinja"))
    assert not [name for name in RESULTS.load_results() if f"results.{name}" not in templates]


def test_controls_are_compared_seed_by_seed():
    """Differences 2 and 4, though the rows lie in another order; seed 2 has one of the two alone."""
    figures = [("a", 0, 3.0), ("b", 1, 1.0), ("a", 1, 5.0), ("b", 0, 1.0), ("a", 2, 90.0)]
    rows = [{"control": control, "seed": seed, "figure": value} for control, seed, value in figures]
    apart = RESULTS.paired(rows, "figure", "a", "b")
    assert (apart["n"], apart["mean"]) == (2, 3.0) and apart["low"] < 2 < 4 < apart["high"]


def test_a_difference_seed_by_seed_is_of_one_beta_and_of_equal_settings():
    def method(rate, *points):
        keys = ("beta", "seed", "reward")
        return {
            "rate": rate,
            "beta": 0.1,
            "points": [dict(zip(keys, point, strict=True)) for point in points],
        }

    dpo = method(1e-5, (0.1, 0, 0.5), (0.1, 1, 0.6), (0.4, 0, 9.0))
    ours = method(1e-5, (0.1, 1, 0.7), (0.1, 0, 0.5), (0.1, 2, 9.0))
    apart = RESULTS.seed_by_seed(ours, dpo, "reward", 0.1)
    assert apart["n"] == 2 and abs(apart["mean"] - 0.05) < 1e-9
    assert RESULTS.seed_by_seed(ours, dpo, "reward", 0.4) is None
    assert RESULTS.seed_by_seed(ours, method(3e-5, (0.1, 0, 0.5)), "reward", 0.1) is None
    assert RESULTS.seed_by_seed(ours, method(1e-5, (0.1, 3, 0.5)), "reward", 0.1) is None


def test_the_tables_of_models_are_those_of_the_package():
    models = script("models")
    text = TEXT["docs/guides/models.md"]
    assert models.rendered(text) == text, "run: python docs/models.py"


def test_the_table_of_what_masks_mean_is_that_of_the_objectives():
    models, weights = script("models"), script("weights")
    text = TEXT["docs/concepts/masks.md"]
    assert models.rendered(text, weights.PAGE, weights.BLOCKS) == text, "run: python docs/weights.py"
    assert models.MODELS.keys() == models.FAMILIES.keys() | models.WRAPPERS.keys()


# ---------------------------------------------------------------- configuration and objectives


def test_the_configuration_page_has_every_setting():
    page = CONFIGURATION.make_page(SCHEMA)
    for name, definition in SCHEMA["$defs"].items():
        section = page.split(f"{{#{CONFIGURATION.anchor(name)}}}\n")[1].split("\n##")[0]
        for field, node in definition["properties"].items():
            told_by_the_title = field == "kind" and "const" in node
            assert told_by_the_title or f"| `{field}` |" in section, f"{name}.{field}"
        assert not section.lstrip().startswith("| setting |"), f"{name} says nothing of itself"
    assert all(f"\n## {name}" in page or f"| `{name}` |" in page for name in SCHEMA["properties"])


def test_descriptions_speak_of_values_as_yaml_writes_them():
    """Kills: "None: no limit", which whoever copies it into a config is refused."""
    assert not re.search(r"\b(None|True|False)\b", CONFIGURATION.make_page(SCHEMA))


def test_links_within_the_configuration_page_have_their_target():
    page = CONFIGURATION.make_page(SCHEMA)
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= set(re.findall(r"\{#([\w-]+)\}", page))


KINDS = [
    CONFIGURATION.kind_of(SCHEMA, name)
    for name in CONFIGURATION.references(SCHEMA, SCHEMA["properties"]["objective"])
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_has_a_page(kind):
    text = TEXT[f"docs/objectives/{kind}.md"]
    assert f"<!-- settings: {kind} -->" in text and f"kind: {kind}" in text
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}|no arXiv number", text)
    assert f"({kind}.md)" in TEXT["docs/objectives/index.md"]
    assert CONFIGURATION.objective_table(SCHEMA, kind).startswith("| setting |")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_page_counts_the_objectives(page):
    assert f"[{len(set(KINDS) - {'sparsepo', 'mapo'})} relatives](" in TEXT[page]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    made_by_hooks = {"reference/configuration.md", "reference/map.md"}
    assert len(set(listed)) == len(listed)
    assert set(listed) == {path.relative_to(DOCS).as_posix() for path in PAGES[1:]} | made_by_hooks


# ---------------------------------------------------------------- what readers type

MY_CONFIG = re.findall(r"```yaml\n(.*?)```", TEXT["README.md"], re.DOTALL)[0]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_configs_are_accepted(block, tmp_path):
    """A block that is no whole config is put over the README's."""
    yaml = YAML(typ="safe")
    shown = yaml.load(block)
    if "stages" not in shown:
        shown = yaml.load(MY_CONFIG) | shown
    with (tmp_path / "config.yaml").open("w") as file:
        yaml.dump(shown, file)
    load_config(tmp_path / "config.yaml")


def commands() -> list:
    """Every command of a shell block, or of a config's header, that starts the main program."""
    blocks = [
        (name, block)
        for name, text in TEXT.items()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    ]
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        header = path.read_text().split("\nstages:")[0]
        blocks.append((path.relative_to(ROOT).as_posix(), re.sub(r"^# *", "", header, flags=re.MULTILINE)))
    lines = []
    for name, block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("python -m sparsepo_jax.main "):
                lines.append(pytest.param(line, id=f"{name}-{len(lines)}"))
    return lines


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command, tmp_path):
    """Their settings are; those that name a file of the reader's take the README's config."""
    words = shlex.split(command, comments=True)[3:]
    if words[0] in ("--schema", "--compare", "--from-trl"):
        return
    words = words[: words.index(">")] if ">" in words else words
    assert words[0] == "--config"
    path = ROOT / words[1]
    if words[1] in ("my.yaml", "FILE"):
        path = tmp_path / "my.yaml"
        path.write_text(MY_CONFIG)
    rest = [word for word in words[2:] if word not in ("--check", "--aot") and "=" in word]
    if "--sweep" in words:
        before = [word for word in words[2 : words.index("--sweep")] if "=" in word]
        assert len(plan_sweep(str(path), before, parse_axes(rest[len(before) :]))[1]) > 1
    else:
        load_config(path, rest)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code):
    names: dict = {}
    exec(code, names)
    if "gradient" in names:
        value, gradient = names["value"], np.asarray(names["gradient"])
        assert value > 0 and np.isfinite(gradient).all() and np.any(gradient != 0)


def test_extras_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].keys()
    section = TEXT["docs/guides/first-run.md"].split("## Extras")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)} == extras
    installed = {name for text in TEXT.values() for name in re.findall(r"'\.\[(\w+)\]'", text)}
    assert installed - {"NAME"} <= extras
    source = "".join(path.read_text() for path in (ROOT / "sparsepo_jax").rglob("*.py"))
    assert "install -e" not in source  # whoever meets the message may have the wheel
    assert set(re.findall(r"sparsepo_jax\[([\w-]+)\]", source)) <= extras


def test_files_that_are_named_are_there():
    pattern = r"(?:configs|tests|benchmarks|launch|docs)/[\w./-]*\w"
    named = {(name, page) for page, text in TEXT.items() for name in re.findall(pattern, text)}
    named |= {
        (name, path.name)
        for path in (ROOT / "configs").rglob("*.yaml")
        for name in re.findall(pattern, path.read_text())
    }
    missing = sorted(pair for pair in named if not (ROOT / pair[0]).exists())
    assert len(named) > 40 and not missing


def fields_below(node) -> dict:
    """The settings of the sections that a value of this node may be, by name."""
    names = CONFIGURATION.references(SCHEMA, node)
    return {name: field for below in names for name, field in SCHEMA["$defs"][below]["properties"].items()}


def types_of(node) -> set[str]:
    """The JSON types that a value of this node may have."""
    return {node.get("type")} | {name for option in node.get("anyOf", []) for name in types_of(option)}


def is_setting(path: str) -> bool:
    """Whether `section.field` is one; below a mapping of the reader's any name is."""
    node, level = {}, SCHEMA["properties"]
    for name in path.split("."):
        if not name.isdigit():
            if name not in level:
                return not level and "object" in types_of(node)
            node, level = level[name], fields_below(level[name])
    return True


def texts_in(path: Path) -> str:
    """The texts in a module: errors, notes and help, a line each, what stands in braces left out."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(x.value for x in nodes if isinstance(x, ast.Constant) and isinstance(x.value, str))


def test_settings_that_are_named_are_there():
    """In text, too, where nothing loads them: `po.skip_nonfinite` in a sentence, or in an error."""
    pages = TEXT | {path.name: path.read_text() for path in (ROOT / "launch").iterdir()}
    pages |= {path.name: path.read_text() for path in (ROOT / "configs").rglob("*.yaml")}
    pages |= {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "notebooks/sparsepo.ipynb")}
    pages |= {str(path): texts_in(path) for path in (ROOT / "sparsepo_jax").rglob("*.py")}
    sections = "|".join(name for name, node in SCHEMA["properties"].items() if fields_below(node))
    pattern = rf"(?<![\w./-])(?:{sections})(?:\.\w+)+(?![\w.])"
    named = {(name, page) for page, text in pages.items() for name in re.findall(pattern, text)}
    files = (".json", ".jsonl", ".yaml", ".html", ".safetensors", ".md", "tokenizer.model")
    figures = {"harness.arc_easy.acc", "harness.TASK.METRIC", "measures.text.rouge1"}  # of results
    wrong = {
        (name, page)
        for name, page in named
        # An underscore at the end: what follows stands in braces.
        if name not in figures and not name.endswith((*files, "_")) and not is_setting(name)
    }
    assert len(named) > 700 and not wrong


def test_tests_that_are_named_are_there():
    """`pytest FILE -k WORD` selects something by a test's name or a row's id."""
    pages = TEXT | {"CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
    commands = {
        shown for text in pages.values() for shown in re.findall(r"pytest [^`)|\n]*-k \w+[^`)|\n]*", text)
    }
    assert len(commands) > 5
    for command in commands:
        word = re.search(r"-k (\w+)", command)[1]
        paths = re.findall(r"tests/\w+\.py", command) or sorted((ROOT / "tests").glob("test_*.py"))
        source = "".join((ROOT / path).read_text() for path in paths)
        assert re.search(rf"def test_\w*{word}|id=\"\w*{word}", source), command


def test_the_page_of_the_command_line_names_every_variable_that_is_read():
    reads = r'environ(?:ment)?(?:\.get\(|\[)"(\w+)"[^=]*$|"(\w+)" in environ'
    source = [
        path.read_text() for path in (ROOT / "sparsepo_jax").rglob("*.py") if path.parent.name != "sandbox"
    ]
    named = {
        name for text in source for pair in re.findall(reads, text, re.MULTILINE) for name in pair if name
    }
    assert {"XDG_CACHE_HOME", "JAX_PROCESS_ID"} <= named
    told = TEXT["docs/reference/cli.md"]
    assert not {name for name in named if f"`{name}" not in told and not name.startswith("SLURM_")}


def test_the_page_of_data_names_every_column_that_is_read():
    """A column that nothing says is there is found by those alone who read the code."""
    compared = {name for form in comparisons._FORMS for name in (*form.answers, *form.compared)}
    ranks = {*ranked._ANSWERS, *ranked._TEXTS, *ranked._SCORES, *ranked._RANKS}
    supervised = {f"completion_{what}" for what in ("ids", "weights")} | {"messages", "text", "output"}
    # Of one response the rest is as of pairs.
    of_one = {name for name in unread._READ if name.startswith("completion_")} - supervised
    columns = (unread._READ | unread._READ_AS_PROMPT | compared | ranks | supervised) - of_one
    named = set(re.findall(r"`(\w+)`", TEXT["docs/guides/data.md"]))
    assert len(columns) > 50 and columns <= named, columns - named


def anchors(text: str) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_of_pages_that_mkdocs_does_not_read_have_their_target(page):
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", (ROOT / page).read_text()):
        path, _, anchor = link.partition("#")
        target = ROOT / (path or page)
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_api_page_of_losses_has_every_file_of_them():
    files = {path.stem for path in (ROOT / "sparsepo_jax" / "losses").glob("[!_]*.py")}
    assert set(re.findall(r"sparsepo_jax\.losses\.(\w+)", TEXT["docs/reference/api/losses.md"])) == files


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_what_is_there(path):
    """Nothing else runs them: one had been left behind by a renamed type."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sparsepo_jax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                submodule = Path(module.__file__).with_name(f"{alias.name}.py")
                assert hasattr(module, alias.name) or submodule.exists(), f"{node.module}.{alias.name}"
