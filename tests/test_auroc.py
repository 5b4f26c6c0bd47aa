"""The ranking figures, by hand."""

import numpy as np

from sparsepo_jax.eval.auroc import auroc, position_auroc


def test_auroc_by_hand():
    """Decisive scores 3 and 1 against 2 and 0: 3 beats both, 1 beats one of two: 3 of 4."""
    assert auroc(np.array([3, 1, 2, 0]), np.array([True, True, False, False])) == 0.75


def test_ties_count_one_half():
    assert auroc(np.zeros(5), np.array([True, False, False, True, False])) == 0.5
    assert auroc(np.array([1, 1, 0]), np.array([True, False, False])) == 0.75


def test_without_both_kinds_there_is_no_figure():
    assert auroc(np.arange(3), np.ones(3, bool)) is None
    assert auroc(np.arange(3), np.zeros(3, bool)) is None


def test_position_alone_is_ranked_by_its_share():
    """Position 1 is decisive in both responses, 0 in one of two, 2 never: of 3 x 3 pairs 8 are right and 1
    is a tie."""
    position = np.array([0, 1, 2, 0, 1, 2])
    assert position_auroc(position, np.array([True, True, False, False, True, False])) == 8.5 / 9
