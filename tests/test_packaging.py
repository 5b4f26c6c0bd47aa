"""What is installed is complete, and what is written down in two places is the same in both."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ROOT / "sparsepo_jax"


def load_yaml(path: str):
    return YAML(typ="safe").load((ROOT / path).read_text())


def test_every_file_of_the_package_is_installed():
    """Kills: a template or a directory that a clone has and the wheel has not."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    modules = [path for path in files if path.suffix == ".py"]
    assert all((path.parent / "__init__.py").exists() for path in modules)
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["sparsepo_jax"]
    installed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert set(files) - set(modules) == installed


def test_the_console_script_is_there():
    module, function = PROJECT["project"]["scripts"]["sparsepo"].split(":")
    assert callable(getattr(import_module(module), function))


def test_the_version_is_the_same_everywhere():
    version = PROJECT["project"]["version"]
    assert load_yaml("CITATION.cff")["version"] == version
    assert re.search(
        rf"^## \[(Unreleased|{re.escape(version)})\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_workflows_test_the_ends_of_what_is_allowed():
    """The lowest and the newest jax, the lowest and the newest Python."""
    [jax] = [line for line in PROJECT["project"]["dependencies"] if line.startswith("jax>")]
    lowest, limit = re.fullmatch(r"jax>=([\d.]+),<([\d.]+)", jax).groups()
    matrix = load_yaml(".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {job["requirement"] for job in matrix} == {f"jax=={lowest}.*", f"jax<{limit}"}
    versions = [
        classifier.removeprefix("Programming Language :: Python :: ")
        for classifier in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", classifier)
    ]
    assert {job["python"] for job in matrix} == {versions[0], versions[-1]}
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"


def test_commits_are_formatted_by_the_ruff_that_ci_installs():
    [ruff] = [line for line in PROJECT["project"]["optional-dependencies"]["lint"] if line.startswith("ruff")]
    [repository] = [
        entry for entry in load_yaml(".pre-commit-config.yaml")["repos"] if "ruff" in entry["repo"]
    ]
    assert ruff.startswith(f"ruff>={repository['rev'].removeprefix('v')},")
