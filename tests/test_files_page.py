"""docs/reference/files.md explains every name in a run's files, and no name that no run writes."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from helpers.configs import NEEDED, made_stats, make_config
from helpers.files_page import PAGE, explained, metric
from sparsepo_jax.build.objective import make_objective
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.core.labels import SHARES
from sparsepo_jax.eval.scores import ResponseScore
from sparsepo_jax.eval.which_tokens import FIGURES
from sparsepo_jax.masks.source import unit_source
from sparsepo_jax.ops.routing import RouterSums, router_metrics
from sparsepo_jax.run.places import WRITTEN
from sparsepo_jax.train.metrics import log_ratio_metrics, pair_metrics

# What a step has beside the metrics of its rows; finished runs are held against the page in test_run.py.
OF_STEPS = {"grad_norm", "grad_norm/masks", "learning_rate", "skipped", "real_token_share", "pair_weight"}
OF_STEPS |= {"pairs_per_s", "responses_per_s", "rows_per_s", "tokens_per_s", "time_s", "programs"}
STATS, MASKS = made_stats()
KEYS = jax.random.split(jax.random.key(0), len(STATS.valid_BPT))


def metrics_of(kind: str) -> set[str]:
    """The names that rows of an objective may have, all that can be added to it included."""
    added = {"nll_weight": 0.1, "policy_weight": "aot" not in kind, "mask": {"kind": "learned"}}
    config = make_config(objective={"kind": kind, **added, **NEEDED.get(kind, {})})
    stats, masks = STATS, MASKS
    if "label" in config.objective.reads:  # rows of one response
        stats = type(STATS)(*(None if x is None else x[:, :1] for x in STATS))
        stats = stats._replace(desirable_BP=jnp.ones((len(KEYS), 1), bool), anchor=jnp.float32(0.1))
        masks = type(MASKS)(*(x[:, :1] for x in MASKS))
    loss = make_objective(config, unit_source())
    output = jax.eval_shape(lambda: loss(stats, masks, KEYS))
    others = jax.eval_shape(lambda: pair_metrics(stats, masks, beta=0.1) | log_ratio_metrics(stats))
    return {"loss", *output.metrics, *others}


def test_the_page_explains_the_metrics_of_every_objective_and_no_others():
    of_rows = set().union(*map(metrics_of, members(Objective)))
    assert set(SHARES.values()) <= of_rows
    ones = jnp.ones((1, 2))
    of_routers = set(router_metrics(RouterSums(ones, ones, jnp.float32(1.0))))
    named = explained("metrics.jsonl")
    assert {metric(name) for name in of_rows} | of_routers | OF_STEPS == named - {"loss/part_2"}


def test_the_page_names_what_lies_in_a_run_s_directory():
    package = Path(__file__).parent.parent / "sparsepo_jax"
    source = "".join(path.read_text() for path in package.rglob("*.py"))
    named = set(re.findall(r'output_dir\)? / "([\w.]+)"', source))
    assert len(named) > 20 and not {name for name in named if f"`{name}" not in PAGE}


def test_the_table_of_the_summary_is_that_of_the_report():
    docs = Path(__file__).parent.parent / "docs"
    spec = importlib.util.spec_from_file_location("docs_summary", docs / "summary.py")
    summary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(summary)
    models = sys.modules["models"]
    assert models.rendered(PAGE, summary.PAGE, summary.BLOCKS) == PAGE, "run: python docs/summary.py"


def test_every_file_of_the_page_is_kept_from_being_written_over():
    """Where no run was. What is found in these others goes on where it is."""
    of_page = PAGE.split("| file | content |")[1].split("\n\n")[0]
    named = {name for row in of_page.splitlines() for name in re.findall(r"`([\w.]+)`", row.split(" | ")[0])}
    assert named - {"stages.json", "template_date.json", "mlflow.db"} == set(WRITTEN)


@pytest.mark.parametrize("name", FIGURES)
def test_the_page_explains_every_figure_of_masks(name):
    assert f"`mask.{name}`" in PAGE


def test_the_page_explains_what_is_kept_of_each_token():
    of_tokens = {"token_ids", *ResponseScore._fields, "decisive", "before_ids"}
    assert explained("scores.jsonl and pairs.jsonl") == of_tokens
