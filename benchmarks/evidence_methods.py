"""The methods of benchmarks/evidence.py, and the rule by which each one's rate and beta are chosen."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

RATES, BETAS = (1e-5, 3e-5), (0.1, 0.4)
LORA_RATES = (1e-4, 3e-4)
# nats a response after half of the steps: what is farther from the reference then is not chosen. From 3 nats
# there whole runs go to 10, where no other method's runs are to compare with.
MOST_KL = 1.0
BASELINE = "DPO"
FIRST_CELLS = 4  # of every method: the budget of a choice


class Method(NamedTuple):
    """kind and more: the section `objective`, without beta. betas: (None,) where it has none. First in rates
    and betas stands what is taken where nothing is chosen. more: other settings. of: the method whose
    finished run makes this one's token weights, by `how`; its rate and beta are that method's."""

    objective: dict[str, Any]
    rates: tuple[float, ...] = RATES
    betas: tuple[float | None, ...] = BETAS
    more: tuple[str, ...] = ()
    of: str | None = None
    how: str | None = None

    def cells(self, count: int) -> list[tuple[float, float | None]]:
        """The first so many (rate, beta)."""
        return [(rate, beta) for beta in self.betas for rate in self.rates][:count]

    def section(self, beta: float | None) -> dict[str, Any]:
        return self.objective | ({} if beta is None else {"beta": beta})


def sparse(**settings: Any) -> dict[str, Any]:
    return {"kind": "sparsepo", **settings}


L1 = {"l1_reward": 1e-3, "l1_kl": 1e-3}
WITH_LORA = ("po.lora={rank: 16}",)
METHODS: dict[str, Method] = {
    "SFT on the chosen": Method(
        {"kind": "orpo", "odds_weight": 0}, rates=(1e-5, 3e-5, 3e-6, 1e-4), betas=(None,)
    ),
    "DPO": Method({"kind": "dpo"}),
    "DPO, mean log-ratios": Method({"kind": "dpo_norm"}, betas=(1.0, 4.0)),
    "SimPO": Method({"kind": "simpo", "gamma": 1.0}, betas=(2.0, 4.0)),
    "TDPO-1 (mask of ones)": Method({"kind": "tdpo1"}),
    "TDPO-2": Method({"kind": "tdpo2"}),
    "MaPO": Method({"kind": "mapo"}),
    "TBPO-A": Method({"kind": "tbpo_a"}),
    "SparsePO, common": Method(sparse(mask={"sharing": "common"}, **L1)),
    "SparsePO, independent": Method(sparse(mask={"sharing": "independent"}, **L1)),
    "SparsePO, common, released": Method(sparse(mask={"sharing": "common", "official": True}, **L1)),
    "SparsePO, independent, released": Method(
        sparse(mask={"sharing": "independent", "official": True}, **L1)
    ),
    "untrained mask": Method(sparse(mask={"init": "official", "learning_rate": 0})),
    "shuffled mask": Method(sparse(mask={"kind": "given"}), of="SparsePO, common", how="shuffled"),
    "DPO, weighed by absolute log-ratio": Method(
        {"kind": "dpo", "mask": {"kind": "given", "normalise": True}}, of="DPO", how="log_ratio"
    ),
    "DPO, LoRA": Method({"kind": "dpo"}, LORA_RATES, more=WITH_LORA),
    "SparsePO, common, LoRA": Method(sparse(mask={"sharing": "common"}, **L1), LORA_RATES, more=WITH_LORA),
}


def short_name(method: str) -> str:
    """As directories are named."""
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in method.lower())


class Tried(NamedTuple):
    """A cell and what it came to on the pairs that are chosen on. accuracy: unmasked. None: the run failed,
    as a mask does that is dead at the start."""

    rate: float
    beta: float | None
    accuracy: float | None
    kl: float | None


def choose(tried: Sequence[Tried], pairs: int) -> Tried | None:
    """The cell of the least KL among those whose accuracy is at most one standard error below the highest:
    what so few pairs cannot tell apart should not differ in KL. Of equal KL the more accurate one. None: no
    cell ran to its end within MOST_KL.

    pairs: on which accuracies were measured."""
    within = {
        cell: cell.accuracy
        for cell in tried
        if cell.accuracy is not None and cell.kl is not None and cell.kl <= MOST_KL
    }
    if not within:
        return None
    highest = max(within.values())
    error = (highest * (1 - highest) / pairs) ** 0.5
    alike = [cell for cell, accuracy in within.items() if accuracy >= highest - error]
    return min(alike, key=lambda cell: (cell.kl, -within[cell]))


def as_yaml(section: dict[str, Any]) -> str:
    """In one line, as --sweep takes it."""
    return json.dumps(section)


def ordered(names: Sequence[str]) -> list[str]:
    """The methods in the order in which they can run: those that weigh by another one after it, and that one
    with them."""
    wanted = set(names) | {METHODS[name].of for name in names if METHODS[name].of}
    return sorted((name for name in METHODS if name in wanted), key=_comes_late)


def _comes_late(name: str) -> bool:
    return METHODS[name].of is not None
