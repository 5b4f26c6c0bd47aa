"""The plan of batches, and the batches that come of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.pipeline import make_batches
from tiny import pair_table


def lengths(rows, seed=0, responses=2):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 40, rows), rng.integers(1, 90, (rows, responses))


def make_plan(rows=50, *, weights=None, batch_size=8, buckets=3, seed=0, shuffle=True):
    return BatchPlan(*lengths(rows), weights, batch_size=batch_size, buckets=buckets, seed=seed, shuffle=shuffle)


def rows_of(plan, epoch):
    count = plan.batches_per_epoch
    return np.concatenate([plan.batch(n).rows for n in range(epoch * count, (epoch + 1) * count)])


@given(rows=st.integers(1, 70), batch_size=st.integers(1, 20), buckets=st.integers(1, 8), seed=st.integers(0, 3), shuffle=st.booleans())
@settings(max_examples=40, deadline=None)
def test_an_epoch_sees_each_row_once_in_a_shape_that_holds_it(rows, batch_size, buckets, seed, shuffle):
    prompt_N, response_NP = lengths(rows)
    plan = make_plan(rows, batch_size=batch_size, buckets=buckets, seed=seed, shuffle=shuffle)
    assert plan.batches_per_epoch == -(-rows // batch_size)
    assert len(plan.shapes) <= buckets
    for epoch in range(2):
        assert sorted(rows_of(plan, epoch)) == list(range(rows))
    for n in range(plan.batches_per_epoch):
        batch = plan.batch(n)
        assert len(batch.rows) <= batch_size
        assert prompt_N[batch.rows].max() <= batch.prompt_length and response_NP[batch.rows].max() <= batch.response_length


def test_the_plan_is_a_function_of_seed_and_number_alone():
    one, two = make_plan(), make_plan()
    forwards = [one.batch(n).rows.tolist() for n in range(20)]
    backwards = [two.batch(n).rows.tolist() for n in reversed(range(20))][::-1]
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


def test_more_buckets_pad_less():
    shares = [make_plan(400, buckets=buckets).real_token_share() for buckets in (1, 2, 4, 8)]
    assert shares == sorted(set(shares)) and shares[0] + 0.1 < shares[-1] <= 1


def test_real_token_share_counts_positions():
    """2 rows of 4 + 5 + 6 tokens in the one shape 8 + 2 x 8: 30 of 48."""
    plan = BatchPlan(np.array([4, 4]), np.array([[5, 6], [5, 6]]), None, batch_size=2, buckets=1, seed=0, shuffle=False)
    assert plan.shapes == [(8, 8)]
    assert plan.real_token_share() == 30 / 48


PAIRS = [([1, 2], [3, 4, 5], [6]), ([7], [8], [9, 10]), ([11, 12, 13], [14], [15])]


def test_batches_hold_the_rows_and_pad_outside_valid():
    table = pair_table(PAIRS)
    plan = BatchPlan(table.prompt_lengths_N, table.response_lengths_NP, None, batch_size=4, buckets=1, seed=0, shuffle=False)
    (batch,) = make_batches(table, plan, start=0, stop=1, micro_steps=1, process_index=0, process_count=1, with_weights=False)
    assert batch.prompt_BS.shape == (1, 4, 8) and batch.response_BPT.shape == (1, 4, 2, 8)
    found = {}
    for b in np.flatnonzero(batch.weight_B[0] > 0):
        prompt = batch.prompt_BS[0, b][batch.prompt_valid_BS[0, b]].tolist()
        found[int(batch.row_B[0, b])] = (prompt, *(batch.response_BPT[0, b, p][batch.valid_BPT[0, b, p]].tolist() for p in range(2)))
    assert found == dict(enumerate(PAIRS))
    assert batch.prompt_valid_BS[0, :, -1].all(), "the last prompt token predicts: it must stand in the last column"
    filler = batch.weight_B[0] == 0
    assert filler.sum() == 1 and not batch.valid_BPT[0, filler].any()


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_processes_share_a_batch_without_overlap_or_loss(micro_steps):
    table = pair_table([([n + 1], [n + 2], [n + 3]) for n in range(8)])
    plan = BatchPlan(table.prompt_lengths_N, table.response_lengths_NP, None, batch_size=8, buckets=1, seed=0, shuffle=True)

    def rows(process, count):
        common = dict(start=0, stop=2, micro_steps=micro_steps, process_index=process, process_count=count, with_weights=False)
        return [batch.row_B for batch in make_batches(table, plan, **common)]

    alone, parts = rows(0, 1), [rows(process, 2) for process in range(2)]
    for n in range(2):
        np.testing.assert_array_equal(np.concatenate([part[n] for part in parts], axis=1), alone[n])


def test_a_start_in_the_middle_continues_the_same_batches():
    table = pair_table([([n + 1], [n + 2], [n + 3]) for n in range(9)])
    plan = BatchPlan(table.prompt_lengths_N, table.response_lengths_NP, None, batch_size=2, buckets=1, seed=0, shuffle=True)
    common = dict(micro_steps=1, process_index=0, process_count=1, with_weights=False)
    whole = [batch.row_B.tolist() for batch in make_batches(table, plan, start=0, stop=12, **common)]
    rest = [batch.row_B.tolist() for batch in make_batches(table, plan, start=7, stop=12, **common)]
    assert rest == whole[7:] and len(whole) == 12


def test_an_error_while_loading_reaches_the_reader():
    """Kills: a loader that swallows it, so that training ends quietly."""
    table = pair_table(PAIRS)
    plan = BatchPlan(table.prompt_lengths_N, table.response_lengths_NP, None, batch_size=2, buckets=1, seed=0, shuffle=False)
    batches = make_batches(table, plan, start=0, stop=2, micro_steps=1, process_index=0, process_count=1, with_weights=True)
    with pytest.raises(Exception, match="weights"):
        next(batches)


def test_given_weights_stand_beside_their_tokens():
    table = pair_table(PAIRS, weights=[([0.5, 2, 1], [3]), ([1], [0, 4]), ([1], [1])])
    plan = BatchPlan(table.prompt_lengths_N, table.response_lengths_NP, None, batch_size=3, buckets=1, seed=0, shuffle=False)
    (batch,) = make_batches(table, plan, start=0, stop=1, micro_steps=1, process_index=0, process_count=1, with_weights=True)
    at = {int(row): b for b, row in enumerate(batch.row_B[0])}
    np.testing.assert_array_equal(batch.weights_BPT[0, at[0], 0, :4], [0.5, 2, 1, 0])
    np.testing.assert_array_equal(batch.weights_BPT[0, at[1], 1, :3], [0, 4, 0])
