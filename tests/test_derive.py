"""Facts that --check derives from a config agree with what the run makes."""

import contextlib
import math

import pytest
from flax import nnx

from helpers.tiny import GPT2
from sparsepo_jax.build.objective import make_mask_source
from sparsepo_jax.config.derive import (
    batch_problem,
    mask_parameters,
    micro_steps_matter,
    stage_steps,
    vocabulary_size,
    warmup_steps,
)
from sparsepo_jax.config.schema.models import ByteTokenizer
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import PairTraining, Schedule
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import make_byte_tokenizer
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.run.resume import Marks


@pytest.mark.parametrize("net", ["simple_all", "simple_last", "ml_all", "ml_last", "binary_all"])
@pytest.mark.parametrize("placing", [{}, {"sharing": "independent"}, {"sharing": "independent", "on": "kl"}])
def test_mask_parameters_are_those_of_the_nets(net, placing):
    mask = {"kind": "learned", "net": net, **placing}
    config = Config(stages=["report"], output_dir="x", objective={"kind": "sparsepo", "mask": mask})
    spec = spec_from_hf(GPT2)
    weights = nnx.eval_shape(lambda: make_mask_source(config, spec).init(nnx.Rngs(0)))
    counted = sum(math.prod(x.shape) for x in weights.values())
    assert mask_parameters(config.objective, spec.width, spec.num_layers) == counted


def test_the_byte_tokenizer_has_its_vocabulary():
    assert vocabulary_size(ByteTokenizer(kind="bytes")) == len(make_byte_tokenizer())


@pytest.mark.parametrize(
    "training, rows, steps",
    [
        ({"steps": 7}, 5, 7),
        ({}, 5, 3),
        ({"epochs": 1.5}, 5, 5),
        ({"epochs": 0.1}, 60, 3),
        ({"epochs": 0.01}, 2, 1),
    ],
)
def test_steps_follow_epochs_unless_they_are_set(training, rows, steps):
    """0.1 epochs of 30 batches are 3 steps, not 4."""
    assert stage_steps(PairTraining(batch_size=2, **training), rows) == steps


@pytest.mark.parametrize(
    "schedule, steps",
    [({}, 10), ({"warmup_share": 0.25}, 25), ({"warmup_steps": 7}, 7), ({"warmup_steps": 200}, 100)],
)
def test_the_warm_up_is_a_share_or_a_number_and_never_longer_than_the_stage(schedule, steps):
    assert warmup_steps(Schedule(**schedule), 100) == steps


def test_a_batch_is_cut_over_micro_steps_and_shards():
    assert batch_problem("po.batch_size", 24, 2, 12) is None
    assert batch_problem("po.batch_size", 64, 2, 12).startswith("po.batch_size: 64 rows in 2 micro-step(s)")
    by_fewer = batch_problem("po.batch_size", 128, 16, 16)
    assert by_fewer.endswith("set po.accumulation=8, or take a multiple of 256")
    assert batch_problem("po.batch_size", 128, 8, 16) is None
    assert batch_problem("evaluation.batch_size", 8, 1, 16).endswith("(data x fsdp); take a multiple of 16")


AOT = {"kind": "aot"}
MIX = {"kind": "mix", "parts": [{"objective": {"kind": "dpo"}, "weight": 1}, {"objective": AOT, "weight": 1}]}


@pytest.mark.parametrize(
    "objective, router, matters",
    [
        ({"kind": "dpo"}, 0.0, False),
        ({"kind": "kto"}, 0.0, False),
        ({"kind": "dpo"}, 0.01, True),
        (AOT, 0.0, True),
        ({"kind": "aot_unpaired"}, 0.0, True),
        (MIX, 0.0, True),
    ],
)
def test_a_run_goes_on_with_other_micro_steps_where_they_change_rounding_alone(
    tmp_path, objective, router, matters
):
    settings = {
        "stages": ["report"],
        "output_dir": str(tmp_path),
        "policy": {"config": GPT2},
        "objective": objective,
        "po": {"batch_size": 8, "router_aux_coefficient": router},
    }
    Marks(Config(**settings)).begin("po", {}, {})
    later = Config(**settings | {"po": settings["po"] | {"accumulation": 2}, "data": {"buckets": 1}})
    assert micro_steps_matter(later, "po") == matters
    refused = pytest.raises(UserError, match="with other settings: po.accumulation;")
    with refused if matters else contextlib.nullcontext():
        Marks(later).check("po")


def test_the_objective_of_po_says_nothing_of_the_micro_steps_of_sft():
    config = Config(stages=["report"], output_dir="x", objective=AOT)
    assert not micro_steps_matter(config, "sft")
