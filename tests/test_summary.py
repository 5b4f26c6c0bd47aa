"""What happened in one line of words: never more than the pairs can tell."""

import numpy as np
import pytest

from sparsepo_jax.eval.scores import PairScore, independent_pairs
from sparsepo_jax.report.outcome import outcome


def summary(
    after=0.88,
    *,
    before=0.5,
    pairs=1350,
    kl=0.34,
    sparsity=0.84,
    left=(0.88, 0.78, 0.86),
    independent=None,
    **changes,
):
    """left: accuracy without no tokens, without the top tenth, without any tenth."""
    deletion = {"0": {"accuracy_top": left[0]}, "0.1": {"accuracy_top": left[1], "accuracy_random": left[2]}}
    return {
        "before": {"accuracy_unmasked": before},
        "after": {"accuracy_unmasked": after, "kl": kl},
        "pairs": pairs,
        "independent_pairs": independent,
        "mask": {"sparsity_end": sparsity, "deletion": deletion},
    } | changes


def test_a_run_that_learnt():
    assert outcome(summary()) == (
        "Learnt: 0.88 of the 1350 held-out pairs are preferred rightly (95 % interval 0.86 to 0.90; "
        "0.50 before) at a KL of 0.34 nats a response; the mask has 84 % zeros; without its top tenth of "
        "tokens accuracy falls to 0.78, without any tenth 0.86: it carries the preference."
    )


@pytest.mark.parametrize(
    "after, before, pairs, begins",
    [
        (0.55, 0.5, 300, "Not learnt: 0.55"),  # 0.493 to 0.605
        (0.57, 0.5, 300, "Learnt: "),
        (0.62, 0.5, 60, "Not learnt, as far as so few pairs can tell: 0.62"),
        (0.9, 0.5, 10, "Learnt: "),
        (1.0, 0.5, 3, "Not learnt, as far as so few pairs can tell: 1.00"),
        (0.43, 0.5, 300, "Learnt the wrong way round: "),
        (0.7, 0.68, 400, "Not learnt: "),  # a reference of its own: it was right before
        (0.55, 0.4, 100, "Not learnt: "),  # better than it was, but a coin's
        (0.7, 0.4, 400, "Learnt: "),
        (0.5, 0.5, 50, "Not learnt, as far as so few pairs can tell"),
    ],
)
def test_the_verdict_is_that_of_the_interval(after, before, pairs, begins):
    assert outcome(summary(after, before=before, pairs=pairs)).startswith(begins)


def test_of_single_responses_the_larger_class_is_no_merit():
    """Four of five are desirable. Kills: a policy that likes everything, called one that has learnt."""
    rows = {"rows": "responses", "desirable": 0.8}
    assert outcome(summary(0.8, **rows)).startswith("Not learnt: 0.80 of the 1350 held-out responses")
    assert "0.80 if all were called alike" in outcome(summary(0.8, **rows))
    assert outcome(summary(0.25, **rows)).startswith("Not learnt: ")
    assert outcome(summary(0.9, **rows)).startswith("Learnt: ")


def test_few_responses_are_not_called_pairs():
    rows = {"rows": "responses", "desirable": 0.5}
    words = outcome(summary(0.6, pairs=20, **rows))
    assert words.startswith(
        "Not learnt, as far as so few responses can tell: 0.60 of the 20 held-out responses"
    )
    assert "the interval of 20 independent responses is" in words and "pair" not in words
    assert "of 1 independent response is" in outcome(summary(0.6, pairs=20, independent=1.0, **rows))


def test_few_pairs_are_told_to_be_few_and_many_are_not():
    assert "the interval of 20 independent pairs is 0.39 wide: evaluate on more" in outcome(
        summary(0.6, pairs=20)
    )
    assert "evaluate on more" not in outcome(summary(0.51, pairs=2000)) + outcome(summary(0.95, pairs=20))


def test_pairs_of_one_prompt_count_less():
    assert outcome(summary(0.57, pairs=300)).startswith("Learnt: 0.57 of the 300")
    assert outcome(summary(0.57, pairs=300, independent=120.4)).startswith("Not learnt: 0.57 of the 300")
    assert outcome(summary(0.57, pairs=300, independent=1e9)) == outcome(summary(0.57, pairs=300))


def test_a_policy_that_has_not_moved_has_not_learnt_whatever_the_pairs():
    words = outcome(summary(0.5, pairs=9, kl=0.0))
    assert (
        words.startswith("Not learnt: ")
        and "the policy is where it was" in words
        and "evaluate on more" not in words
    )


def test_without_training_nothing_is_called_learnt():
    words = outcome(summary(0.9, before=None))
    assert (
        words.startswith("Not trained here: 0.90 of the 1350")
        and "before" not in words
        and "top tenth" not in words
    )


@pytest.mark.parametrize(
    "sparsity, said",
    [
        (0.0, "the mask has no zeros"),
        (0.004, "hardly any zeros (0.4 %)"),
        (0.01, "1 % zeros"),
        (1.0, "zero on every token"),
        (None, None),
    ],
)
def test_the_mask_in_words(sparsity, said):
    words = outcome(summary(sparsity=sparsity))
    assert said in words if said else "mask" not in words
    assert ("top tenth" in words) == (sparsity not in (1.0, None))


@pytest.mark.parametrize("sparsity, said", [(0.0, "KL mask has no zeros"), (1.0, "it lets no KL through")])
def test_the_mask_of_the_kl_is_called_so(sparsity, said):
    """Kills: a KL mask of zeros, with which TDPO's KL term is left out, that "lets no preference through"."""
    assert said in outcome(summary(sparsity=sparsity) | {"masked": "kl"})


@pytest.mark.parametrize(
    "left, pairs, said",
    [
        ((0.88, 0.78, 0.86), 1350, "falls to 0.78, without any tenth 0.86: it carries the preference"),
        ((0.867, 0.78, 0.86), 135, "it carries the preference"),
        ((0.88, 0.84, 0.86), 135, "whether it carries the preference cannot be told"),
        (
            (0.88, 0.89, 0.80),
            1350,
            "accuracy is 0.89, without any tenth 0.80: its top tokens matter less than any others",
        ),
    ],
)
def test_deletion_is_believed_as_far_as_its_interval(left, pairs, said):
    assert said in outcome(summary(left=left, pairs=pairs))


def test_what_is_not_learnt_is_not_carried():
    assert "carries" not in outcome(summary(0.5)) and "84 % zeros" in outcome(summary(0.5))


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"after": None},
        {"after": {"accuracy_unmasked": None}},
        {"after": {"accuracy_unmasked": 7}, "pairs": 5},
        {"after": {"accuracy_unmasked": 0.5}},
        {"after": {"accuracy_unmasked": 0.5}, "pairs": 0},
        {"after": {"accuracy_unmasked": 0.5}, "pairs": True},
        {"after": {"accuracy_unmasked": float("nan")}, "pairs": 5},
    ],
)
def test_where_no_pairs_were_counted_there_are_no_words(broken):
    assert outcome(broken) is None


@pytest.mark.parametrize("rows", ["pairs", "responses"])
def test_one_pair_is_not_called_pairs(rows):
    summary = {"after": {"accuracy_unmasked": 1.0}, "before": {"accuracy_unmasked": 0.5}, "rows": rows}
    unit = rows.removesuffix("s")
    assert f"1.00 of the 1 held-out {unit} is " in outcome(summary | {"pairs": 1})
    assert f"1.00 of the 2 held-out {rows} are " in outcome(summary | {"pairs": 2})


@pytest.mark.parametrize(("kl", "said"), [(0.004, "0.004"), (0.02, "0.02"), (12.345, "12.35"), (0.0, "0.00")])
def test_a_small_kl_is_not_said_to_be_none(kl, said):
    after = {"accuracy_unmasked": 0.9, "kl": kl}
    words = outcome({"before": {"accuracy_unmasked": 0.5}, "after": after, "pairs": 200})
    assert f"at a KL of {said} nats a response" in words


def test_of_a_summary_without_kl_or_mask_the_rest_is_said():
    bare = {
        "before": {"accuracy_unmasked": 0.5},
        "after": {"accuracy_unmasked": 0.9},
        "pairs": 100,
        "mask": None,
    }
    assert outcome(bare) == (
        "Learnt: 0.90 of the 100 held-out pairs are preferred rightly "
        "(95 % interval 0.83 to 0.94; 0.50 before)."
    )


def score(right):
    return PairScore(0, {"accuracy_unmasked": right}, ())


def test_independent_pairs_are_those_of_the_design_effect():
    """A prompt whose pairs are alike counts about once; pairs independent of their prompt all count."""
    draws = np.random.default_rng(0)
    of_prompt = draws.integers(0, 2, 200).astype(float)
    prompts = np.repeat(np.arange(200), 5)
    alike = independent_pairs([score(x) for x in np.repeat(of_prompt, 5)], prompts)
    assert alike == pytest.approx(199, abs=1)
    free = independent_pairs([score(x) for x in draws.integers(0, 2, 1000).astype(float)], prompts)
    assert 800 < free <= 1000
    assert (
        independent_pairs([score(1.0)] * 4, np.arange(4)) == 4
        and independent_pairs([score(1.0)] * 4, np.zeros(4)) == 1
    )
    assert independent_pairs([score(1.0)] * 4, np.array([0, 0, 1, 1])) == 2
