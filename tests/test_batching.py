"""The plan of batches, and the batches that come of it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import pair_table
from sparsepo_jax.data.batching import BatchPlan, _deal, choose_lengths, plan_prompts
from sparsepo_jax.data.packing import FILLER, Shape, pack, sizes_of
from sparsepo_jax.data.pipeline import make_batches, make_prompt_batches


def lengths(rows, seed=0, responses=2):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 40, rows), rng.integers(1, 90, (rows, responses))


def make_plan(
    rows=50,
    *,
    weights=None,
    batch_size=8,
    token_rows=1,
    micro_steps=1,
    strata=4,
    buckets=3,
    seed=0,
    shuffle=True,
    epochs=3.0,
    shared=True,
    **length,
):
    return BatchPlan(
        sizes_of(*lengths(rows), shared=shared),
        weights,
        batch_size=batch_size,
        rows=token_rows,
        micro_steps=micro_steps,
        strata=strata,
        buckets=buckets,
        seed=seed,
        shuffle=shuffle,
        epochs=epochs,
        **length,
    )


def plan_of(table, *, batch_size, rows=1, micro_steps=1, buckets=1, seed=0, shuffle=False, shared=True):
    sizes = sizes_of(table.prompt_lengths_N, table.response_lengths_NP, shared=shared)
    return BatchPlan(
        sizes,
        None,
        batch_size=batch_size,
        rows=rows,
        micro_steps=micro_steps,
        strata=4,
        buckets=buckets,
        seed=seed,
        shuffle=shuffle,
        epochs=3,
    )


def rows_of(plan, epoch):
    count = plan.batches_per_epoch
    rows = np.concatenate([plan.batch(n).rows for n in range(epoch * count, (epoch + 1) * count)])
    return rows[rows != FILLER]


@given(
    rows=st.integers(1, 70),
    per_row=st.integers(1, 10),
    token_rows=st.integers(1, 4),
    strata=st.integers(1, 9),
    buckets=st.integers(1, 8),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
    shared=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_sees_each_row_once_in_a_shape_that_holds_it(
    rows, per_row, token_rows, strata, buckets, seed, shuffle, shared
):
    prompt_N, response_NP = lengths(rows)
    batch_size = per_row * token_rows
    plan = make_plan(
        rows,
        batch_size=batch_size,
        token_rows=token_rows,
        strata=strata,
        buckets=buckets,
        seed=seed,
        shuffle=shuffle,
        shared=shared,
    )
    assert plan.batches_per_epoch == -(-rows // batch_size)
    shapes, fillers = set(), []
    for epoch in range(3):
        assert sorted(rows_of(plan, epoch)) == list(range(rows))
    for n in range(3 * plan.batches_per_epoch):
        batch = plan.batch(n)
        assert len(batch.rows) == batch_size
        shapes.add(batch.shape)
        fillers.append((batch.rows == FILLER).sum())
        for row in batch.rows.reshape(token_rows, per_row):
            row = row[row != FILLER]
            prompts = 1 if shared else 2
            assert (prompts * prompt_N[row] + response_NP[row].sum(axis=1) - 2).sum() <= batch.shape.positions
            assert response_NP[row].sum() <= batch.shape.tokens
    assert len(shapes) <= buckets, "whatever an epoch brings"
    assert sum(x > 0 for x in fillers) <= 3, "one batch of an epoch lacks rows"


def test_the_plan_is_a_function_of_seed_and_number_alone():
    first, second = make_plan(), make_plan()
    forwards = [first.batch(n).rows.tolist() for n in range(20)]
    backwards = [second.batch(n).rows.tolist() for n in reversed(range(20))][::-1]
    assert forwards == backwards
    assert forwards != [make_plan(seed=1).batch(n).rows.tolist() for n in range(20)]


def test_epochs_differ_when_shuffled_and_only_then():
    assert rows_of(make_plan(), 0).tolist() != rows_of(make_plan(), 1).tolist()
    still = make_plan(shuffle=False)
    assert rows_of(still, 0).tolist() == rows_of(still, 1).tolist()


def test_row_weights_repeat_rows_and_draw_the_fraction_anew():
    weights = np.array([2.0] * 10 + [0.5] * 20 + [1.0] * 10)
    plan = make_plan(40, weights=weights)
    halves = []
    for epoch in range(2):
        seen = np.bincount(rows_of(plan, epoch), minlength=40)
        assert (seen[:10] == 2).all() and (seen[30:] == 1).all()
        assert seen[10:30].sum() == 10 and seen[10:30].max() == 1
        halves.append(seen[10:30].tolist())
    assert halves[0] != halves[1]


def test_another_number_of_micro_steps_changes_no_batch():
    """Kills: batches composed by the rows of tokens they are laid in, so that a run that goes on with more
    micro-steps loses pairs."""
    in_one_row, in_four = make_plan(100), make_plan(100, token_rows=4)
    for n in range(3 * in_one_row.batches_per_epoch):
        assert sorted(in_one_row.batch(n).rows) == sorted(in_four.batch(n).rows)


@given(seed=st.integers(0, 99), strata=st.integers(1, 5), micro_steps=st.sampled_from([1, 2, 4]))
@settings(max_examples=30, deadline=None)
def test_another_layout_or_number_of_devices_changes_no_batch_and_no_micro_step(seed, strata, micro_steps):
    """Kills: rows sorted by what they take up, so that a run of the other layout sees other batches, and one
    that goes on in it sees pairs twice and others never; and micro-steps that are dealt over together with
    devices, so that AOT, which sorts those of a micro-step, is another thing on another mesh."""
    rng = np.random.default_rng(seed)
    prompts, responses = rng.integers(1, 200, 60), rng.integers(1, 90, (60, 2))

    def micro_steps_of(devices, shared):
        plan = BatchPlan(
            sizes_of(prompts, responses, shared=shared),
            None,
            batch_size=8,
            rows=micro_steps * devices,
            micro_steps=micro_steps,
            strata=strata,
            buckets=3,
            seed=seed,
            shuffle=True,
            epochs=2.0,
        )
        batches = (plan.batch(n).rows.reshape(micro_steps, -1) for n in range(plan.steps))
        return [np.sort(rows, axis=1).tolist() for rows in batches]

    expected = micro_steps_of(1, shared=True)
    assert micro_steps_of(1, shared=False) == expected
    assert micro_steps_of(2, shared=True) == micro_steps_of(2, shared=False) == expected


def test_more_buckets_pad_less():
    shares = [make_plan(400, token_rows=2, buckets=buckets).real_token_share() for buckets in (1, 2, 4, 8)]
    assert shares == sorted(set(shares)) and shares[-1] <= 1


def test_little_padding_whatever_the_lengths():
    """Lengths over a factor of forty: several pairs in a row of tokens pad less than a tenth, one pair in
    a row a fifth at the most."""
    rng = np.random.default_rng(0)
    prompts, responses = (
        np.exp(rng.normal(4.5, 0.8, 2000)).astype(int) + 1,
        np.exp(rng.normal(3.5, 0.9, (2000, 2))).astype(int) + 1,
    )
    for per_row, strata, least in ((8, 4, 0.95), (4, 4, 0.92), (1, 1, 0.8)):
        sizes = sizes_of(prompts, responses, shared=True)
        plan = BatchPlan(
            sizes, None, batch_size=4 * per_row, rows=4, strata=strata, buckets=8, seed=0, shuffle=True
        )
        assert plan.real_token_share() > least, per_row


def test_part_of_an_epoch_is_rounded_up_to_whole_steps():
    steps = [make_plan(240, epochs=epochs).steps for epochs in (0.01, 0.1, 1.0, 2.5)]
    assert steps == [1, 3, 30, 75]
    assert make_plan(240, steps=7).steps == 7


LONG_TAILED = np.random.default_rng(0).lognormal(4.5, 0.8, (3, 3000)).astype(int) + 1


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("epochs", "weights"), [(3.0, None), (0.3, None), (3.0, np.tile([0.5, 1.5, 0.25, 1.0], 750))]
)
def test_the_shapes_are_those_of_all_epochs_and_no_other(seed, epochs, weights):
    """Kills: shapes that are known of the first epoch, of all rows alike, or that no batch has."""
    sizes = sizes_of(LONG_TAILED[0], LONG_TAILED[1:].T, shared=True)
    plan = BatchPlan(
        sizes,
        weights,
        batch_size=16,
        rows=4,
        strata=4,
        buckets=4,
        seed=seed,
        shuffle=True,
        epochs=epochs,
        shape_steps=10,
    )
    assert set(plan.shapes) == {plan.batch(n).shape for n in range(plan.steps)} and len(plan.shapes) <= 4
    assert len(plan.shapes) > 1 or epochs < 1


def test_runs_that_differ_in_the_seed_have_the_same_shapes():
    sizes = sizes_of(LONG_TAILED[0], LONG_TAILED[1:].T, shared=True)
    shapes = [
        BatchPlan(
            sizes, None, batch_size=32, rows=1, strata=4, buckets=1, seed=seed, shuffle=True, epochs=2
        ).shapes
        for seed in range(8)
    ]
    assert Counter(map(tuple, shapes)).most_common(1)[0][1] >= 5, (
        "nearly always; here, with a long tail, most often"
    )


def test_a_short_run_has_fewer_shapes():
    """A shape more must save what it costs. Kills: shapes by `buckets` alone."""
    sizes = sizes_of(LONG_TAILED[0], LONG_TAILED[1:].T, shared=True)
    counts = [
        len(
            BatchPlan(
                sizes,
                None,
                batch_size=8,
                rows=4,
                strata=4,
                buckets=8,
                seed=0,
                shuffle=True,
                steps=steps,
                shape_steps=64,
            ).shapes
        )
        for steps in (24, 1000, 20_000)
    ]
    assert counts[0] == 1 < counts[1] < counts[2] <= 8


@given(
    rows=st.integers(1, 60),
    per_row=st.integers(1, 8),
    devices=st.integers(1, 3),
    micro_steps=st.integers(1, 3),
    buckets=st.integers(1, 4),
    seed=st.integers(0, 9),
    shared=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_batch_exceeds_what_a_run_too_long_to_look_at_takes(
    rows, per_row, devices, micro_steps, buckets, seed, shared
):
    """Its largest shape is a bound, with fractional weights, too, and where a short row takes more."""
    prompts, responses = lengths(rows, seed)
    weights = np.random.default_rng(seed).choice([0.3, 0.5, 1.0, 1.7], rows)
    weights[0] = 1.0
    plan = BatchPlan(
        sizes_of(prompts, responses, shared=shared),
        weights,
        batch_size=per_row * devices * micro_steps,
        rows=devices * micro_steps,
        micro_steps=micro_steps,
        strata=4,
        buckets=buckets,
        seed=seed,
        shuffle=True,
        steps=2**30,
    )
    assert plan.batches_per_epoch * 6 < plan.steps
    taken = {plan.batch(n).shape for n in range(6 * plan.batches_per_epoch)}
    assert taken <= set(plan.shapes) and len(plan.shapes) <= buckets


def test_rows_of_one_length_that_take_more_where_the_prompt_runs_twice_have_room():
    """Kills: a bound by the order of the table, where an epoch has the rows of one length in any order."""
    prompts = np.repeat([600, 2], 16)
    plan = BatchPlan(
        sizes_of(prompts, np.stack([(700 - prompts) // 2 + 1] * 2, axis=1), shared=False),
        None,
        batch_size=8,
        rows=1,
        strata=4,
        buckets=3,
        seed=0,
        shuffle=True,
        steps=2**30,
    )
    assert {plan.batch(n).shape for n in range(50)} <= set(plan.shapes)


def test_rows_are_dealt_to_and_fro():
    """Sizes 9, 8, 5, 4, 1 and a filler to two hands: 9 + 4 + 1 and 8 + 5. Kills: 9 + 5 + 1 and 8 + 4."""
    sizes = np.array([4, 9, 1, 8, 5])
    [hands] = _deal(np.array([[0, 1, 2, 3, 4, FILLER]]), sizes, 2)
    assert hands.tolist() == [[1, 0, 2], [3, 4, FILLER]]


def test_batches_are_of_about_the_same_size_and_mix_lengths():
    """Kills: batches of long pairs and batches of short ones."""
    plan, (prompts, responses) = make_plan(400, batch_size=8), lengths(400)
    sizes = prompts + responses.sum(axis=1)
    batches = [sizes[plan.batch(n).rows] for n in range(plan.batches_per_epoch)]
    assert np.std([batch.sum() for batch in batches]) < 0.6 * np.std(sizes) * 8**0.5, (
        "six tenths of what random batches have"
    )
    assert np.mean([batch.max() - batch.min() for batch in batches]) > 2 * np.std(sizes)


def test_real_token_share_counts_positions():
    """2 rows of 4 + (5 - 1) + (6 - 1) positions in one row of tokens of 32: 26 of 32."""
    plan = BatchPlan(
        sizes_of(np.array([4, 4]), np.array([[5, 6], [5, 6]]), shared=True),
        None,
        batch_size=2,
        rows=1,
        strata=4,
        buckets=1,
        seed=0,
        shuffle=False,
    )
    assert plan.shapes == [Shape(positions=32, tokens=24, longest=16)]
    assert plan.real_token_share() == 26 / 32


def test_lengths_are_chosen_where_they_save_most():
    assert choose_lengths(np.array([8] * 50 + [9] * 2 + [64]), 2) in ([16, 64], [8, 64])
    assert choose_lengths(np.array([3, 60, 61]), 8) == [8, 64]


PAIRS = [([1, 2], [3, 4, 5], [6]), ([7], [8], [9, 10]), ([11, 12, 13], [14], [15])]


def batches_of(table, plan, *, start=0, stop=1, process=(0, 1), shared=True, with_weights=False):
    return list(
        make_batches(
            table,
            plan,
            start=start,
            stop=stop,
            process_index=process[0],
            process_count=process[1],
            shared=shared,
            with_weights=with_weights,
        )
    )


def test_packing_by_hand():
    """The example of core.types.Packing: pairs x1 x2 x3 -> c1 c2 c3 or r1 r2, and x4 -> c4 or r3 r4."""
    table = pair_table([([1, 2, 3], [11, 12, 13], [21, 22]), ([4], [14], [23, 24])])
    batch = pack(table, [0, 1], Shape(10, 9, 6), 4, rows=1, shared=True)
    packing = batch.packing
    assert packing.ids_RS.tolist() == [[1, 2, 3, 11, 12, 21, 4, 23, 0, 0]]
    assert packing.positions_RS.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 0, 0]]
    assert packing.sequence_RS.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, -1, -1]]
    assert packing.part_RS.tolist() == [[0, 0, 0, 1, 1, 2, 0, 2, 0, 0]]
    assert packing.column_RQW.tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 10, 10, 10, 10]]]
    assert packing.at_RM.tolist() == [[2, 3, 4, 2, 5, 6, 6, 7, 0]]
    assert packing.label_RM.tolist() == [[11, 12, 13, 21, 22, 14, 23, 24, 0]]
    assert packing.own_RM.tolist() == [[3, 4, 10, 5, 10, 10, 7, 10, 10]]
    assert packing.valid_RM.tolist() == [[True] * 8 + [False]]
    assert batch.slot_BPT.tolist() == [[[0, 1, 2, 0], [3, 4, 0, 0]], [[5, 0, 0, 0], [6, 7, 0, 0]]]
    assert batch.valid_BPT.sum(-1).tolist() == [[3, 2], [1, 2]]
    alone = pack(table, [1, FILLER], Shape(3, 3, 2), 2, rows=1, shared=False)
    assert alone.packing.ids_RS.tolist() == [[4, 4, 23]] and alone.packing.sequence_RS.tolist() == [[0, 1, 1]]
    assert alone.weight_B.tolist() == [1, 0] and not alone.valid_BPT[1].any()
    with pytest.raises(ValueError, match="row 0 takes more than 5 positions"):
        pack(table, [0], Shape(5, 9, 6), 4, rows=1, shared=True)


@pytest.mark.parametrize("shared", [True, False])
def test_batches_hold_the_rows(shared):
    table = pair_table(PAIRS)
    (batch,) = batches_of(table, plan_of(table, batch_size=4, rows=2, shared=shared), shared=shared)
    packing = batch.packing
    rows = {}
    assert packing.ids_RS.shape[:2] == (1, 2) and batch.valid_BPT.shape == (1, 4, 2, 8)
    for b in np.flatnonzero(batch.weight_B[0] > 0):
        r = b // 2
        responses = [
            packing.label_RM[0, r][batch.slot_BPT[0, b, p]][batch.valid_BPT[0, b, p]].tolist()
            for p in range(2)
        ]
        last = packing.at_RM[0, r][batch.slot_BPT[0, b, 0, 0]]
        first = last - packing.positions_RS[0, r, last]
        rows[int(batch.row_B[0, b])] = (packing.ids_RS[0, r, first : last + 1].tolist(), *responses)
    assert rows == dict(enumerate(PAIRS))
    filler = batch.weight_B[0] == 0
    assert filler.sum() == 1 and not batch.valid_BPT[0, filler].any()


def test_prompts_are_padded_on_the_left_and_all_there():
    table = pair_table([([n + 1] * (n % 7 + 1), [1], [2]) for n in range(11)])
    planned = plan_prompts(table.prompt_lengths_N, batch_size=4, buckets=2)
    batches = list(make_prompt_batches(table, planned, 4, process_index=0, process_count=1))
    prompts = {
        int(batch.row_B[0, b]): batch.prompt_BS[0, b][batch.valid_BS[0, b]].tolist()
        for batch in batches
        for b in np.flatnonzero(batch.weight_B[0])
    }
    assert prompts == {n: [n + 1] * (n % 7 + 1) for n in range(11)}
    assert all(batch.valid_BS[0, :, -1].all() for batch in batches), "a filler has a prompt, too"
    assert len({batch.prompt_BS.shape for batch in batches}) <= 2


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_processes_share_a_batch_without_overlap_or_loss(micro_steps):
    table = pair_table([([n + 1], [n + 2], [n + 3]) for n in range(8)])
    plan = plan_of(table, batch_size=8, rows=2 * micro_steps, micro_steps=micro_steps, shuffle=True)
    alone, *parts = (
        [batch.row_B for batch in batches_of(table, plan, stop=2, process=process)]
        for process in ((0, 1), (0, 2), (1, 2))
    )
    for n in range(2):
        np.testing.assert_array_equal(np.concatenate([part[n] for part in parts], axis=1), alone[n])


def test_a_start_in_the_middle_continues_the_same_batches():
    table = pair_table([([n + 1], [n + 2], [n + 3]) for n in range(9)])
    plan = plan_of(table, batch_size=2, shuffle=True)
    batches, rest = (
        [batch.row_B.tolist() for batch in batches_of(table, plan, start=start, stop=12)] for start in (0, 7)
    )
    assert rest == batches[7:] and len(batches) == 12


def test_an_error_while_loading_reaches_the_reader():
    """Kills: a loader that swallows it, so that training ends quietly."""
    table = pair_table(PAIRS)
    with pytest.raises(Exception, match="weights"):
        batches_of(table, plan_of(table, batch_size=2), stop=2, with_weights=True)


def test_given_weights_stand_beside_their_tokens():
    table = pair_table(PAIRS, weights=[([0.5, 2, 1], [3]), ([1], [0, 4]), ([1], [1])])
    (batch,) = batches_of(table, plan_of(table, batch_size=3), with_weights=True)
    at = {int(row): b for b, row in enumerate(batch.row_B[0])}
    np.testing.assert_array_equal(batch.weights_BPT[0, at[0], 0, :4], [0.5, 2, 1, 0])
    np.testing.assert_array_equal(batch.weights_BPT[0, at[1], 1, :3], [0, 4, 0])
