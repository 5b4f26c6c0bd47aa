"""Rows of one response with a label: how they are read, and KTO, BCO and APO-zero on them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.configs import make_config
from helpers.tiny import GPT2, pair_table, random_rows, row_table
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import random_weights
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.labels import mean_of_steps, of_classes
from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.data.packing import Shape, pack
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.templates import make_render
from sparsepo_jax.data.unpaired import are_pairs, mismatched, parse_unpaired
from sparsepo_jax.eval.scores import PairScore, ResponseScore, headline
from sparsepo_jax.losses import separate, unpaired
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.train.anchor import Running, next_anchor

RENDER = make_render(None, "none", {}, None)
LOSSES = {
    "kto": unpaired.kto_loss,
    "bco": unpaired.bco_loss,
    "apo_zero_unpaired": unpaired.apo_zero_unpaired_loss,
}
EVEN = {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def parsed(row):
    return parse_unpaired(row, RENDER, None)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("label", [True, False, 1, 0, "true", "False", "1", 0.0])
def test_a_label_is_true_or_false(label):
    (example,) = parsed({"prompt": "a", "completion": " b", "label": label})
    assert example.label is (str(label).lower() in ("true", "1", "1.0"))
    assert (example.prompt, example.responses) == ("a", (" b",))


def test_a_pair_becomes_two_rows_with_what_belongs_to_each_response():
    """Kills: the annotation of the other response, and labels the other way round."""
    row = {"prompt": "a", "chosen": " b", "rejected": " c", "rejected_weights": [2.0], "pair_weight": 3}
    chosen, rejected = parsed(row)
    assert (chosen.responses, chosen.label) == ((" b",), True)
    assert (rejected.responses, rejected.label) == ((" c",), False)
    assert chosen.annotations != rejected.annotations
    assert chosen.pair_weight == rejected.pair_weight == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "expected a response with a label, or chosen and rejected"),
        ({"prompt": "a", "completion": "b", "label": 0.7}, "expected true or false"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "got 'good'"),
        ({"text": "b", "label": True}, "no prompt"),
    ],
)
def test_bad_rows_say_what_is_expected(row, message):
    with pytest.raises(BadRow, match=message):
        parsed(row)


def test_objectives_of_pairs_say_what_rows_with_labels_are_for():
    from sparsepo_jax.data.formats import parse_row

    with pytest.raises(
        BadRow, match="no chosen, rejected: a response with a label, which objective.kind=kto"
    ):
        parse_row({"prompt": "a", "completion": "b", "label": True}, "pairs", RENDER, None)


def test_mismatched_responses_are_those_of_the_next_other_prompt():
    """Rows 0 and 1 share a prompt. Kills: a partner of the same prompt; a response that runs over."""
    table = row_table([([1], [5], True), ([1], [6], False), ([2, 2], [7, 7, 7], True), ([3], [8], False)])
    others = mismatched(table, "data.train", 5)
    assert [others.response(i, 0).tolist() for i in range(4)] == [[7, 7, 7], [7, 7, 7], [8], [5]]
    assert [others.prompt(i).tolist() for i in range(4)] == [[1], [1], [2, 2], [3]]
    assert mismatched(table, "data.train", 3).response(0, 0).tolist() == [7, 7]
    with pytest.raises(UserError, match="all 2 rows have the same prompt"):
        mismatched(table.take([0, 1]), "data.train", 5)


def test_mismatched_responses_of_pairs_are_of_both_classes():
    """Pairs as two rows each; the last prompt is the first once more. Kills: chosen responses alone; a
    partner of the same prompt behind the last row; the partner's weight in place of the row's own."""
    prompts = ([1], [2], [2, 2], [1])
    table = row_table(
        [(prompt, [4 + n, 9 - p], p == 0) for n, prompt in enumerate(prompts) for p in range(2)]
    )
    table = table.with_columns(pair_weight_N=np.arange(8, dtype=np.float32))
    others = mismatched(table, "data.train", 9)
    responses = [others.response(i, 0).tolist() for i in range(8)]
    assert responses == [[5, 9], [5, 8], [6, 9], [6, 8], [7, 9], [7, 8], [5, 9], [5, 8]]
    assert others.pair_weight_N.tolist() == list(range(8))


def test_rows_of_one_prompt_borrow_from_others():
    """Kills: a lender of the same prompt; the lender's weight, label or line in place of the row's own."""
    table = row_table([([1], [5, 6], True), ([1], [7], False), ([1], [8], False)])
    table = table.with_columns(pair_weight_N=np.arange(3, dtype=np.float32))
    lenders = row_table([([1], [2], False), ([3], [9, 9, 9], True), ([4], [4], True)])
    others = mismatched(table, "data.eval", 3, lenders)
    assert [others.response(i, 0).tolist() for i in range(3)] == [[9, 9], [4], [9, 9]]
    assert [others.prompt(i).tolist() for i in range(3)] == [[1]] * 3
    assert others.label_N.tolist() == [True, False, False] and others.pair_weight_N.tolist() == [0, 1, 2]
    own = mismatched(row_table([([1], [5], True), ([2], [6], True)]), "data.eval", 3, lenders)
    assert own.response(0, 0).tolist() == [6], "a set that has other prompts keeps to itself"


def test_pairs_of_one_prompt_borrow_for_both_responses():
    pairs = pair_table([([1], [5], [6]), ([1], [7], [8])])
    lenders = row_table([([2], [9], True), ([1], [1], True), ([3], [3], False), ([4], [4], True)])
    others = mismatched(pairs, "data.eval", 9, lenders)
    assert [others.response(i, p).tolist() for i in range(2) for p in range(2)] == [[9], [3], [4], [9]]
    assert others.response_cut_NP.shape == (2, 2)


def test_without_lenders_of_another_prompt_there_is_one_line():
    table = row_table([([1], [5], True)])
    with pytest.raises(UserError, match=r"^data.eval a: there is one row alone, and KTO's baseline"):
        mismatched(table, "data.eval a", 5)
    with pytest.raises(UserError, match=r"one row alone and data.train has no other, and KTO's"):
        mismatched(table, "data.eval a", 5, row_table([([1], [6], True), ([1], [7], False)]))


@pytest.mark.parametrize(
    ("rows", "paired"),
    [
        ([], True),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], True),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}, {"completion": "b", "label": False}], False),
        ([{"completion": "b", "label": 1}, {"chosen": "b", "rejected": "c"}], False),
        ([{"prompt": "a", "chosen": "b"}, {"chosen": "b", "rejected": "c", "label": None}], True),
        ([{"chosen": "b", "rejected": "c", "label": 1}, BadRow("no JSON")], True),
        ([{"prompt": "a", "responses": ["b", "c"]}], True),
        ([{"prompt": "a", "completion": "b"}], False),
    ],
)
def test_a_set_is_one_of_pairs_if_no_row_is_a_response_with_a_label(rows, paired):
    """Kills: a set that is told by its first row."""
    assert are_pairs(rows) == paired


def test_exchanged_rows_with_labels_are_refused():
    from sparsepo_jax.data.sources import exchange

    fault = exchange({"prompt": "a", "completion": "b", "label": True})
    assert isinstance(fault, BadRow) and "only pairs can be exchanged" in str(fault)
    assert exchange({"chosen_ids": [1], "rejected_ids": [2]}) == {"rejected_ids": [1], "chosen_ids": [2]}


def test_cut_responses_keep_the_turns_between_their_tokens():
    table = pair_table([([1], [5, 6, 7], [8]), ([2], [9], [4])])
    table = table.with_columns(
        all_before=np.array([0, 2, 0, 0, 0, 1], np.int32),
        between=type(table.prompts)(np.array([11, 12, 13], np.int32), np.array([0, 2, 2, 2, 3])),
    )
    others = mismatched(table, "data.train", 5)  # room for 4: 5 11 12 6
    assert others.laid(1, 0)[0].tolist() == [5, 11, 12, 6]
    assert others.laid(0, 1)[0].tolist() == [13, 4]


# ---------------------------------------------------------------- losses


def made(ratio_B, desirable_B, anchor=None):
    """Statistics of single responses of two tokens, whose log-ratios add up to ratio_B."""
    ref_BPT = -jnp.ones((len(ratio_B), 1, 2))
    logp_BPT = ref_BPT + jnp.asarray(ratio_B, jnp.float32)[:, None, None] / 2
    valid_BPT = jnp.ones(ref_BPT.shape, bool)
    stats = TokenStats(logp_BPT, ref_BPT, jnp.zeros_like(ref_BPT), valid_BPT)
    stats = stats._replace(
        desirable_BP=jnp.array(desirable_B)[:, None], anchor=None if anchor is None else jnp.float32(anchor)
    )
    return stats, TokenMasks(jnp.ones_like(ref_BPT), jnp.ones_like(ref_BPT))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_two_responses_by_hand():
    """Rewards 0.5 * (2, 2) = (1, 1), anchor 0.5 * 1: s is 0.5 and -0.5."""
    stats, masks = made([2.0, 2.0], [True, False], 1.0)
    settings = {"beta": 0.5, "desirable_weight": 3.0, "undesirable_weight": 2.0}
    kto, bco, apo = (loss(stats, masks, None, **settings) for loss in LOSSES.values())
    np.testing.assert_allclose(kto.loss_B, [3 * sigmoid(-0.5), 2 * sigmoid(0.5)], rtol=1e-6)
    np.testing.assert_allclose(bco.loss_B, [-3 * np.log(sigmoid(0.5)), -2 * np.log(sigmoid(-0.5))], rtol=1e-6)
    np.testing.assert_allclose(apo.loss_B, [3 * sigmoid(-1.0), 2 * sigmoid(1.0)], rtol=1e-6)
    assert kto.metrics["rewards/accuracies"].tolist() == [1.0, 0.0]


def test_on_pairs_they_are_half_of_their_paired_kin():
    pairs = [made(x, [True, True])[0] for x in ([0.7, -2.0, 1.0], [0.2, -1.0, 3.0])]
    joined = [jnp.concatenate(arrays, axis=1) for arrays in zip(*(stats[:4] for stats in pairs), strict=True)]
    stats = TokenStats(*joined)
    masks = TokenMasks(jnp.ones(stats.logp_BPT.shape), jnp.ones(stats.logp_BPT.shape))
    for alone, paired in (
        (unpaired.apo_zero_unpaired_loss, separate.apo_zero_loss),
        (unpaired.bco_loss, separate.bco_pair_loss),
        (unpaired.kto_loss, separate.apo_zero_loss),
    ):
        np.testing.assert_allclose(
            2 * alone(stats, masks, None, beta=0.4, **EVEN).loss_B,
            paired(stats, masks, None, beta=0.4).loss_B,
            rtol=1e-6,
        )


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_passes_through_the_anchor(name):
    stats, masks = made([0.3, 0.4], [True, False], 0.2)

    def loss(anchor):
        output = LOSSES[name](stats._replace(anchor=anchor), masks, None, beta=0.5, **EVEN)
        return output.loss_B.sum()

    assert jax.grad(loss)(jnp.float32(0.2)) == 0


def test_classes_have_means_of_their_own():
    """Three desirable rows of reward 1, one undesirable of reward -2. Kills: means over all rows."""
    means = {"share/chosen": 0.75, "share/rejected": 0.25, "rewards/chosen": 0.75, "rewards/rejected": -0.5}
    of = of_classes(means | {"rewards/margins": 9.0}, lambda x, share: x / share)
    assert (of["rewards/chosen"], of["rewards/rejected"], of["rewards/margins"]) == (1.0, -2.0, 3.0)
    assert of_classes({"rewards/chosen": 2.0}, max) == {"rewards/chosen": 2.0}, "pairs are left alone"


def test_a_batch_without_one_of_the_classes_leaves_the_other_batches_figures():
    """One, two and no desirable rows of four. Kills: a NaN that takes the window; means of means."""
    nan = float("nan")
    steps = [
        {"share/chosen": share, "share/rejected": 1 - share, "rewards/chosen": x, "loss": loss}
        for share, x, loss in ((0.25, 3.0, 1.0), (0.5, 6.0, 2.0), (0.0, nan, 3.0))
    ]
    steps = [step | {"rewards/rejected": 1.0, "rewards/margins": nan} for step in steps]
    means = mean_of_steps(steps, [8.0] * 3)
    assert means["loss"] == 2.0 and means["share/chosen"] == 0.25
    assert (means["rewards/chosen"], means["rewards/rejected"], means["rewards/margins"]) == (5.0, 1.0, 4.0)
    assert np.isnan(mean_of_steps(steps[2:], [8.0])["rewards/chosen"])
    assert mean_of_steps([{"loss": 1.0}, {"loss": 2.0}], [8.0, 2.0]) == {"loss": 1.5}
    # 2 rows of 3.0 in the first step of 8, 1 of 6.0 in the second of 2, and none in the third
    means = mean_of_steps(steps, [8.0, 2.0, 8.0])
    np.testing.assert_allclose([means["rewards/chosen"], means["share/chosen"]], [4.0, 3 / 18])


def test_the_first_step_is_checked_by_the_class_that_it_has():
    """Kills: a NaN that passes for no difference."""
    from sparsepo_jax.train.first_step import check_first_step

    nan = float("nan")
    metrics = {"margin_unmasked": nan, "log_ratio/rejected": nan, "kl/rejected": nan, "loss": 0.5}
    metrics |= {"log_ratio/chosen": 0.0, "kl/chosen": 0.0}
    check = {"tokens_a_pair": 20.0, "beta": 0.1, "dtype": "float32"}
    assert check_first_step(metrics, **check) == 0.0
    with pytest.raises(UserError, match="expected policy = reference"):
        check_first_step(metrics | {"log_ratio/chosen": 0.3}, **check)


def test_a_set_without_one_of_the_classes_has_no_figures_of_it():
    stats, masks = made([2.0], [True], 0.0)
    metrics = unpaired.kto_loss(stats, masks, None, beta=0.5, **EVEN).metrics
    names = ("accuracy_unmasked", "margin_unmasked", "kl/chosen", "kl/rejected")
    numbers = dict.fromkeys(names, 0.0) | {name: float(x[0]) for name, x in metrics.items()}
    score = ResponseScore(*(np.zeros(2, np.float32),) * 5)
    figures = headline([PairScore(0, numbers, (score,))])
    assert (figures["reward_desirable"], figures["reward_undesirable"], figures["auroc"]) == (1.0, None, None)
    json.dumps(figures, allow_nan=False)


# ---------------------------------------------------------------- the step


ROWS = [(prompt, response, n % 3 != 0) for n, (prompt, response, _) in enumerate(random_rows(8, seed=3))]


@functools.cache
def step_on(kind, shape, micro_steps):
    config = make_config(
        objective={"kind": kind, "beta": 0.5},
        po={"batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01}, "steps": 4},
    )
    mesh, spec = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))]), spec_from_hf(GPT2)
    problem = make_problem(config, spec, spec, mesh)
    return config, mesh, spec, make_step(config, "po", problem, spec, 4, mesh)


def batch_of(rows, micro_steps):
    table = row_table(ROWS)
    table = table.with_columns(mismatched=mismatched(table, "rows", 32))
    batch = pack(table, np.arange(8), Shape(96, 64, 16), 8, rows=rows, shared=True)
    return jax.tree.map(lambda x: x.reshape(micro_steps, -1, *x.shape[1:]), batch)


def trained(kind, shape=(1, 1, 1), micro_steps=1, steps=3):
    """(the state, metrics of each step); the reference differs from the policy."""
    from sparsepo_jax.build.compute import put_on

    _, mesh, spec, step = step_on(kind, shape, micro_steps)
    with jax.set_mesh(mesh):
        reference = random_weights(spec, 1, mesh)
        state = step.start({"policy": random_weights(spec, 0, mesh), "masks": {}})
        batch = put_on(mesh)(batch_of(micro_steps * int(np.prod(shape)), micro_steps))
        metrics = []
        for _ in range(steps):
            state, of_step, _ = step.update(state, reference, batch)
            metrics.append({name: float(x) for name, x in of_step.items()})
    return state, metrics


@pytest.mark.parametrize(
    ("kind", "shape", "micro_steps"),
    [
        ("kto", (2, 1, 1), 2),
        pytest.param("bco", (2, 1, 1), 2, marks=pytest.mark.slow),
        pytest.param("kto", (1, 1, 1), 4, marks=pytest.mark.slow),
        pytest.param("bco", (1, 1, 1), 4, marks=pytest.mark.slow),
    ],
)
def test_micro_steps_and_meshes_do_not_change_an_update(kind, shape, micro_steps):
    """Kills: an anchor of each micro-step, or of each device, in place of the global batch's."""
    (one, alone), (other, cut) = trained(kind), trained(kind, shape, micro_steps)
    assert alone[-1]["rewards/anchor"] != 0
    for a, b in zip(alone, cut, strict=True):
        np.testing.assert_allclose(b["rewards/anchor"], a["rewards/anchor"], rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=2e-4)
        np.testing.assert_allclose(b["rewards/chosen"], a["rewards/chosen"], rtol=2e-3, atol=1e-5)
    for path, x in one.weights["policy"].items():
        np.testing.assert_allclose(other.weights["policy"][path], x, atol=2e-3)


def test_the_running_mean_is_that_of_all_rows_so_far_and_part_of_the_state(tmp_path):
    """Kills: a mean of the last batch; a state that is saved without it."""
    from sparsepo_jax.train.checkpoint import load_once, save_once

    state, metrics = trained("bco")
    rewards = [
        of_step["share/chosen"] * of_step["rewards/chosen"]
        + of_step["share/rejected"] * of_step["rewards/rejected"]
        for of_step in metrics
    ]
    np.testing.assert_allclose(metrics[-1]["rewards/anchor"], np.mean(rewards), rtol=1e-4)
    assert np.ptp(rewards) > 1e-3, "the batch's own mean is another"
    assert float(state.running.rows) == 24
    save_once(tmp_path / "state", state)
    restored = load_once(tmp_path / "state", step_on("bco", (1, 1, 1), 1)[3].like)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_estimate_below_zero_is_zero_for_kto_alone():
    negative, rows = jnp.float32(-3.0), jnp.float32(2.0)
    assert next_anchor(negative, rows, None)[0] == 0.0
    anchor, running = next_anchor(negative, rows, Running(jnp.float32(0.5), jnp.float32(2.0)))
    assert float(anchor) == float(running.mean) == -0.5 and float(running.rows) == 4
