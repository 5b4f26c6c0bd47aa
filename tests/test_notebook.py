"""A run in a notebook: its masks under a cell; the notebook of the repository, which is executed."""

import html
import json
import os
import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from helpers.report_files import Page, lines, metric_rows, pair
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.report.notebook import load_run

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "sparsepo.ipynb"
SUMMARY = {
    "before": {"accuracy_unmasked": 0.5},
    "after": {"accuracy_unmasked": 0.9, "kl": 0.3},
    "pairs": 400,
    "words": "Learnt: all of it.",
}


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(lines(pair(index) for index in (3, 4, 7, 9)))
    (tmp_path / "metrics.jsonl").write_text(lines(metric_rows()))
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    return load_run(tmp_path)


def inner_page(shown: str) -> Page:
    """What the frame shows. Nothing of it may act: no script, and a frame that would not run one."""
    [content] = re.findall(r'<iframe srcdoc="([^"]*)" sandbox=""', shown)
    page = Page(html.unescape(content))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    return page


def test_a_run_shows_its_words_and_masks_under_a_cell(loaded):
    """Hostile tokens, of which the page makes text. Kills: style or markup that leaks into the notebook."""
    shown = loaded._repr_html_()
    assert shown.startswith("<iframe ") and shown.endswith("</iframe>") and shown.count("<") == 2
    page = inner_page(shown)
    assert page.text.count("Learnt: all of it.") == 1
    assert [title for title in re.findall(r"Pair (\d+)", page.text)] == ["3", "4", "7"]
    tokens = [token for token in page.tokens if "good" in token["text"]]
    assert len(tokens) == 3 and all("--u:0.8" in token["style"] for token in tokens)
    assert "reward mask 0.500" in tokens[0]["title"]


def test_pairs_are_chosen_by_index_or_number(loaded):
    by_index, by_number = (
        inner_page(masks._repr_html_()).text for masks in (loaded.masks(9, 4), loaded.masks(first=1))
    )
    assert re.findall(r"Pair (\d+)", by_index) == ["9", "4"] and "Learnt" not in by_index
    assert re.findall(r"Pair (\d+)", by_number) == ["3"]
    with pytest.raises(UserError, match="no pair 5; there are 3, 4, 7, 9"):
        loaded.masks(5)


def test_what_a_run_left_is_there_as_values(loaded):
    assert loaded.summary["after"]["kl"] == 0.3
    assert loaded.metrics["po", "margin_unmasked"][5] == 0.25
    assert loaded.pairs[0].chosen[0].values["u"] == 0.5
    assert "Learnt: all of it." in repr(loaded) and "accuracy, unmasked" in repr(loaded)


def test_a_directory_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="expected the output_dir of a run, found none of summary.json"):
        load_run(tmp_path / "nothing")


def test_a_run_without_pairs_says_which_stage_writes_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(lines(metric_rows()))
    assert (
        "There is nothing to show: the stages eval and score write"
        in inner_page(load_run(tmp_path)._repr_html_()).text
    )


# ---------------------------------------------------------------- the notebook


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs_and_runs_the_main_job():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells())
    [source] = ["".join(cell["source"]) for cell in code_cells() if "CONFIG = " in "".join(cell["source"])]
    yaml = YAML(typ="safe", pure=True)
    expected = yaml.load((ROOT / "configs" / "quickstart.yaml").read_text())
    expected |= {"output_dir": "runs/notebook"}
    assert yaml.load(source.split('"""')[1]) == expected


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Every cell, shrunk by the settings in its second cell, as Colab and Kaggle would run it on a CPU."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    fewer = ["sft.steps=20", "po.steps=10"]
    fewer += ["data.sft.0.rows=200", "data.train.0.rows=100", "data.eval.0.rows=20"]
    parameters.source += f"\nSETTINGS = {fewer!r}"
    nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    pages = [inner_page(text) for text in shown]
    assert [len(re.findall(r"Pair \d+", page.text)) for page in pages] == [3, 5]
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()
