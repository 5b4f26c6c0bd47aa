"""The pictures of the results are those that benchmarks/figures.py draws from the result files."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PICTURES = {
    "long_run-cpu.svg",
    "scaling-cpu.svg",
    "sentiment-frontier.png",
    "heatmap-quickstart.png",
    "heatmap-polite.png",
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    directory = tmp_path_factory.mktemp("figures")
    spec = importlib.util.spec_from_file_location("figures", BENCHMARKS / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert figures.main(["--output", str(directory)]) == 0
    return directory


def test_every_picture_of_the_results_is_drawn_from_them(drawn):
    assert {path.name for path in drawn.iterdir()} == PICTURES
    committed = {
        path.name for ending in ("svg", "png") for path in (BENCHMARKS / "results").glob(f"*.{ending}")
    }
    assert committed == PICTURES


def test_a_picture_says_what_its_axes_are(drawn):
    words = (drawn / "scaling-cpu.svg").read_text()
    for text in (
        "response tokens",
        "vocabulary",
        "262,144",
        "seconds a step",
        "operations / measured matrix rate",
    ):
        assert f">{text}<" in words, text
    words = (drawn / "long_run-cpu.svg").read_text()
    assert ">resident memory, MB<" in words and ">milliseconds a step<" in words
