"""Runs of a process that differ in numbers alone share compiled programs, and get what each gets alone."""

import json
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.configs import NEEDED, made_stats, make_config
from helpers.program import lines_of, run, weights_of, write_config
from helpers.tiny import GPT2, random_batch
from sparsepo_jax.build.lora import make_lora
from sparsepo_jax.build.masks import initial_masks
from sparsepo_jax.build.models import decoder_graph
from sparsepo_jax.build.objective import make_mask_source, make_objective, make_problem
from sparsepo_jax.build.optimizer import make_optimizer
from sparsepo_jax.build.reading import make_score_batch
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import random_weights
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.generate.sampler import Sampling, make_sampler
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh, put_batch
from sparsepo_jax.train.problem import pair_keys
from sparsepo_jax.train.step import make_pair_loss, make_update

ONE, OTHER = (
    ["seed=3", "objective.beta=0.8"],
    [
        "seed=4",
        "objective.beta=0.1",
        "objective.l1_reward=0.02",
        "objective.mask.learning_rate=0.1",
        "objective.mask.weight_decay=0.3",
        "sft.optimizer.learning_rate=0.01",
        "po.optimizer.learning_rate=0.01",
        "po.optimizer.weight_decay=0.1",
        "po.clip_norm=0.5",
        "po.steps=8",
        "po.schedule={kind: cosine, warmup_steps: 3, end: 0.1}",
        "generation.temperature=0.7",
    ],
)
STAGES = "stages=[sft, po, score, eval, generate]"


@pytest.mark.slow
def test_a_second_run_with_other_numbers_compiles_nothing_and_gets_what_it_gets_alone(tmp_path, caplog):
    """Alone: in a process of its own.

    Kills: a number of the first run built into a program that the second one uses; a seed, a rate, a
    temperature or the lengths of answers that make a program anew.
    """
    config = write_config(tmp_path / "alone")
    alone = subprocess.Popen(
        [sys.executable, "-m", "sparsepo_jax.main", "--config", config, STAGES, *OTHER],
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        first = run(tmp_path / "first", STAGES, *ONE)
        jax.config.update("jax_log_compiles", True)
        with caplog.at_level(logging.WARNING):
            other = run(tmp_path / "other", STAGES, *OTHER)
    finally:
        jax.config.update("jax_log_compiles", False)
        output = alone.communicate()[0]
    assert alone.returncode == 0, output
    assert [line for line in caplog.messages if line.startswith("Compiling")] == []
    assert {row["programs"] for row in lines_of(other / "metrics.jsonl")} == {0}
    expected = tmp_path / "alone" / "run"
    for stage in ("sft", "po"):
        ours = weights_of(other / stage)
        for path, weights in weights_of(expected / stage).items():
            np.testing.assert_allclose(ours[path], weights, atol=1e-6, err_msg=f"{stage} {path}")
    of_first = weights_of(first / "po")
    assert all((ours[path] != of_first[path]).any() for path in ours)
    for name in ("samples.jsonl", "generations.jsonl"):
        assert lines_of(other / name) == lines_of(expected / name) != lines_of(first / name), name
    ours, theirs = (
        json.loads((output / "summary.json").read_text())["after"] for output in (other, expected)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("kind", members(Objective))
def test_an_objective_takes_its_numbers_as_arguments(kind):
    """One structure for all values, and as arguments they do what they do as constants.

    Kills: a loss that branches on the value of a setting.
    """
    stats, masks = made_stats()
    base = {"kind": kind, "nll_weight": 0.2, "mask": {"kind": "learned"}, **NEEDED.get(kind, {})}
    objective = make_config(objective=base).objective
    # policy_weight is a switch: it makes another program. Without a KL term there is no mask of it, and a
    # mean over a mask takes no L1.
    left_out = {"kind", "mask", "policy_weight", "parts"} | (set() if objective.weighs.kl else {"l1_kl"})
    left_out |= {"l1_reward"} if objective.weighs.over == "mean" else set()
    fields = objective.model_dump(exclude=left_out)
    changed = base | {name: 0.4 if value == 0 else 0.5 * value for name, value in fields.items()}
    if "parts" in base:
        changed["parts"] = [part | {"weight": 0.3} for part in base["parts"]]

    def objective_of(objective):
        config = make_config(objective=objective)
        return make_objective(config, make_mask_source(config, spec_from_hf(GPT2)))

    keys = pair_keys(0, jnp.int32(0), jnp.arange(stats.valid_BPT.shape[0]))
    with_arguments = jax.jit(lambda objective: objective(stats, masks, keys).loss_B)
    for objective in map(objective_of, (base, changed)):
        expected = objective(stats, masks, keys).loss_B
        np.testing.assert_allclose(with_arguments(objective), expected, rtol=1e-5, atol=1e-6)
    assert with_arguments._cache_size() == 1


def problem_of(family=GPT2, objective=None, **changes):
    config = make_config(policy={"config": family}, objective=objective or {"kind": "sparsepo"}, **changes)
    spec, mesh = spec_from_hf(family), make_mesh(None, 1, 1)
    return make_problem(config, spec, spec, mesh, make_lora(config.po, "po", spec)), config


def test_what_is_no_number_makes_another_program():
    """Kills: a key of programs that leaves something out."""
    same, structure = problem_of()[0], jax.tree.structure
    numbers = {
        "kind": "sparsepo",
        "beta": 0.3,
        "l1_reward": 0.1,
        "l1_kl": 0.2,
        "mask": {"learning_rate": 0.5, "weight_decay": 0.3},
    }
    assert structure(problem_of(objective=numbers, seed=5)[0]) == structure(same)

    def learned(**mask):
        return {"objective": {"kind": "sparsepo", "mask": {"kind": "learned", **mask}}}

    for change in (
        {"objective": {"kind": "dpo"}},
        {"objective": {"kind": "sparsepo", "nll_weight": 0.1}},
        learned(net="simple_last"),
        learned(sharing="independent"),
        learned(on="kl"),
        learned(normalise=True),
        learned(dropout=0.1),
        {"objective": {"kind": "sparsepo", "mask": {"kind": "ones"}}},
        {"objective": {"kind": "sparsepo", "mask": {"kind": "activation"}}},
        {"family": GPT2 | {"n_layer": 3}},
        {"compute": {"dtype": "bfloat16"}},
        {"compute": {"remat": True}},
        {"compute": {"attention": "xla"}},
        {"compute": {"head": {"vocabulary": 8}}},
        {"po": {"lora": {"rank": 2}}},
    ):
        assert structure(problem_of(**change)[0]) != structure(same), change


@pytest.mark.slow
def test_the_step_with_numbers_as_arguments_is_the_step_with_constants():
    """Two settings go through one program, and each through a program that has everything built in, as a run
    alone might have it."""
    batch, spec, mesh = random_batch(rows=8, pairs=8), spec_from_hf(GPT2), make_mesh(None, 1, 1)
    seen = []
    on_mesh = put_batch(jax.tree.map(lambda x: x[None], batch), mesh)
    for rate, beta, seed in ((0.1, 0.5, 0), (0.03, 0.2, 1)):
        objective = {
            "kind": "sparsepo",
            "beta": beta,
            "l1_kl": 0.1 * beta,
            "mask": {"kind": "learned", "init": "ones", "dropout": 0.3},
        }
        optimizer = {"kind": "adamw", "eps": 1e-2, "learning_rate": rate, "weight_decay": 0.1 * beta}
        problem, config = problem_of(objective=objective, po={"optimizer": optimizer}, seed=seed)
        step = make_step(config, "po", problem, spec, 10, mesh)
        compiled_before = len(step.program)
        constants = jax.jit(
            make_update(make_pair_loss(problem), *make_optimizer(config, config.po, 10, spec.width))
        )
        weights = {
            "policy": random_weights(spec, 0, mesh),
            "masks": initial_masks(config, problem.mask_source, mesh),
        }
        reference = random_weights(spec, 1, mesh)
        with jax.set_mesh(mesh):
            expected, metrics, _ = constants(step.start(weights), reference, on_mesh)
            state, ours, _ = step.update(step.start(weights), reference, on_mesh)
        for a, b in zip(jax.tree.leaves((state, ours)), jax.tree.leaves((expected, metrics)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        seen.append((ours["loss"], ours["learning_rate"], step.program))
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]
    assert seen[0][2] is seen[1][2] and len(step.program) == compiled_before, (
        "the second setting needs no program of its own"
    )


def test_samplers_share_programs_but_for_greedy_and_cut_ones():
    graph = decoder_graph(spec_from_hf(GPT2), jnp.dtype(jnp.float32))
    mesh = make_mesh(None, 1, 1)

    def program(**sampling):
        return make_sampler(graph, jnp.dtype(jnp.float32), mesh, Sampling(4, **sampling)).begin.func

    assert program(seed=1, temperature=0.5, stop=("x",)) is program()
    others = ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"samples": 2}, {"ends": (1,)})
    assert len({program(**sampling) for sampling in others}) == len(others)


def test_programs_hold_no_weights():
    """What a run made is collected when the run is gone. Kills: a program that closes over arrays."""
    import gc
    import weakref

    spec, mesh = spec_from_hf(GPT2), make_mesh(None, 1, 1)
    problem, _ = problem_of(objective={"kind": "dpo"})
    weights = {"policy": random_weights(spec, 0, mesh), "masks": {}}
    batch = put_batch(jax.tree.map(lambda x: x[None], random_batch(rows=8, pairs=8)), mesh)
    with jax.set_mesh(mesh):
        make_score_batch(problem, mesh)(weights, weights["policy"], batch)
    gone = [weakref.ref(x) for x in jax.tree.leaves((weights, batch))]
    del weights, batch
    gc.collect()
    assert not any(ref() is not None for ref in gone)
