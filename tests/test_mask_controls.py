"""benchmarks/mask_controls.py: how masks are compared at one KL. Nothing is trained here."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_masks_are_compared_on_the_line_through_the_shuffled_ones_of_their_own_seed(monkeypatch):
    """Shuffled of seed 0 at KL 0.2 and 0.4: accuracy 0.6 and 0.8, so 0.75 at the learned mask's 0.35; of seed
    1 0.5 at 0.3, between 0.4 at 0.1 and 0.6 at 0.5. Seed 2's lies beyond. Differences 0.2 and 0.1.
    Kills: lines through other seeds, through the learned mask, beyond the ends, by the order of betas."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    controls = importlib.import_module("mask_controls")

    def row(seed, control, kl, accuracy):
        return {
            "seed": seed,
            "control": control,
            "kl": kl,
            "accuracy_unmasked": accuracy,
            "generated_kl": 9.0 if control == "shuffled" else 8.0,
            "generated_preferred": 0.7,
        }

    rows = [
        row(0, "while it is learned", 0.3, 0.1),
        row(0, "the learned mask", 0.35, 0.95),
        row(0, "shuffled, beta 0.4", 0.4, 0.8),
        row(0, "shuffled", 0.2, 0.6),
        row(1, "the learned mask", 0.3, 0.6),
        row(1, "shuffled", 0.1, 0.4),
        row(1, "shuffled, beta 0.4", 0.5, 0.6),
        row(2, "the learned mask", 0.9, 0.9),
        row(2, "shuffled", 0.1, 0.6),
        row(2, "shuffled, beta 0.4", 0.5, 0.8),
    ]
    apart = controls.at_equal_kl(rows)
    accuracy = apart["accuracy_unmasked"]
    assert accuracy["n"] == 2 and accuracy["mean"] == pytest.approx(0.15)
    assert apart["generated_preferred"]["n"] == 3  # at the end of the line, 8.0, in every seed
    assert controls.at_equal_kl(rows[:4]) == {}
