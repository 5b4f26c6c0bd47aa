"""`stages: [score]` on what a user has on disk gives transformers' log-probabilities, for every family."""

import pytest
import torch

from helpers.score_parity import largest_difference, scored, write_checkpoint
from helpers.tiny import CONFIGS
from helpers.tolerances import SCORED
from helpers.wrapped import WRAPPED

ALL = CONFIGS | WRAPPED
# The rows that differ most in how they are read; the parity benchmark and the slow tests have all of them.
QUICK = ("gpt2", "qwen2_5_vl", "gpt-oss")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ALL]
)
def test_every_log_probability_is_that_of_transformers(name, tmp_path):
    model = write_checkpoint(ALL[name], tmp_path / "model")
    assert largest_difference(model, tmp_path / "model", scored(tmp_path, tmp_path / "model")) < SCORED


@pytest.mark.parametrize("name", ["llama", "mistral3 around mistral"])
def test_bfloat16_in_shards_scores_as_the_rounded_weights_do(name, tmp_path):
    model = write_checkpoint(ALL[name], tmp_path / "model", torch.bfloat16, max_shard_size="3KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert largest_difference(model, tmp_path / "model", scored(tmp_path, tmp_path / "model")) < SCORED
