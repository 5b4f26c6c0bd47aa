"""Objectives against hand arithmetic, the same formulas in float64, finite differences, and identities."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsepo_jax.core.types import TokenMasks, TokenStats
from sparsepo_jax.losses import margins, separate, sequence, token_weighted, wrappers
from sparsepo_jax.train.metrics import log_ratio_metrics, pair_metrics

# ---------------------------------------------------------------- the objectives, in plain NumPy


class Response(NamedTuple):
    """One response's tokens, float64, without padding."""

    logp: np.ndarray
    ref_logp: np.ndarray
    kl: np.ndarray
    reward_mask: np.ndarray
    kl_mask: np.ndarray

    @property
    def ratio(self):
        """Of each token, by its weight."""
        return self.reward_mask * (self.logp - self.ref_logp)

    @property
    def mean_ratio(self):
        return self.ratio.sum() / abs(self.reward_mask).sum()

    @property
    def mean_logp(self):
        return (self.reward_mask * self.logp).sum() / abs(self.reward_mask).sum()

    @property
    def kls(self):
        """Of each token, by its weight."""
        return self.kl_mask * self.kl


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def dpo_difference(c, r):
    return c.ratio.sum() - r.ratio.sum()


def numpy_sparsepo(c, r, beta, l1_reward, l1_kl, shared):
    reward_c, reward_r, kl_c, kl_r = c.ratio.sum(), r.ratio.sum(), c.kls.sum(), r.kls.sum()
    l1 = l1_reward * (abs(c.reward_mask).sum() + abs(r.reward_mask).sum()) + l1_kl * (
        abs(c.kl_mask).sum() + abs(r.kl_mask).sum()
    )
    return -log_sigmoid(beta * ((reward_c - reward_r) - (kl_r - kl_c))) + (l1 / 2 if shared else l1)


def numpy_d2po(c, r, beta, gamma):
    discounted = [sum(gamma**t * ratio for t, ratio in enumerate(y.ratio, start=1)) for y in (c, r)]
    return -log_sigmoid(beta * (discounted[0] - discounted[1]))


def numpy_ldpo(c, r, beta, alpha):
    shorter = min(len(c.logp), len(r.logp))
    weighted = [y.ratio[:shorter].sum() + alpha * y.ratio[shorter:].sum() for y in (c, r)]
    return -log_sigmoid(beta * (weighted[0] - weighted[1]))


def numpy_orpo(c, r, odds_weight):
    prob_c, prob_r = np.exp(c.mean_logp), np.exp(r.mean_logp)
    log_odds_ratio = np.log(prob_c / (1 - prob_c)) - np.log(prob_r / (1 - prob_r))
    return -c.logp.mean() - odds_weight * log_sigmoid(log_odds_ratio)


def numpy_confpo(c, r, beta, gamma):
    chosen = [np.exp(y.logp) <= np.exp(y.logp).mean() for y in (c, r)]
    unsure = [
        Response(*(x[kept] for x in y)).mean_logp if y.reward_mask[kept].any() else 0.0
        for y, kept in zip((c, r), chosen, strict=True)
    ]
    return -log_sigmoid(beta * (unsure[0] - unsure[1]) - gamma)


def numpy_robust(c, r, beta, label_smoothing):
    margin, e = beta * dpo_difference(c, r), label_smoothing
    return (-(1 - e) * log_sigmoid(margin) + e * log_sigmoid(-margin)) / (1 - 2 * e)


def numpy_cdpo(c, r, beta, label_smoothing):
    margin, e = beta * dpo_difference(c, r), label_smoothing
    return -(1 - e) * log_sigmoid(margin) - e * log_sigmoid(-margin)


def numpy_caldpo(c, r, beta):
    calibration = (c.ratio.sum() - 1 / (2 * beta)) ** 2 + (r.ratio.sum() + 1 / (2 * beta)) ** 2
    return -log_sigmoid(dpo_difference(c, r)) + 0.5 * calibration


def numpy_dpop(c, r, beta, penalty):
    return -log_sigmoid(beta * (dpo_difference(c, r) - penalty * max(0.0, -c.ratio.sum())))


def numpy_alphapo(c, r, beta, gamma, alpha):
    shaped = [(1 - np.exp(y.mean_logp) ** -alpha) / alpha for y in (c, r)]
    return -log_sigmoid(beta * (shaped[0] - shaped[1]) - gamma)


def numpy_exo(c, r, beta, label_smoothing):
    kept = 1 / (1 + np.exp(-beta * dpo_difference(c, r)))
    labels, policy = np.array([1 - label_smoothing, label_smoothing]), np.array([kept, 1 - kept])
    return (policy * np.log(policy / labels)).sum()


def numpy_discopop(c, r, beta, temperature):
    margin = beta * dpo_difference(c, r)
    share = 1 / (1 + np.exp(-margin / temperature))
    return (1 - share) * -log_sigmoid(margin) + share * np.exp(-margin)


def numpy_risk(margin, power, scale):
    """From the definition of a Bregman divergence; the constant makes it ours."""
    if power is None:
        return -log_sigmoid(margin)

    def h(ratio):
        return (ratio ** (1 + power) - ratio) / (scale * power * (1 + power))

    def slope(ratio):
        return ((1 + power) * ratio**power - 1) / (scale * power * (1 + power))

    ratio = np.exp(-margin)
    return slope(ratio) * ratio - h(ratio) - slope(1 / ratio) + 1 / (scale * (1 + power))


def numpy_tbpo_a(c, r, beta, power, scale):
    shorter = min(len(c.logp), len(r.logp))
    chosen, rejected = ((y.ratio + y.kls)[:shorter] for y in (c, r))
    return np.mean([numpy_risk(beta * (x - y), power, scale) for x, y in zip(chosen, rejected, strict=True)])


def numpy_fdpo(c, r, beta, alpha):
    def slope(y):
        ratio = np.exp(y.ratio.sum())
        if alpha is None:
            return np.log(2 * ratio / (ratio + 1))
        return (ratio ** (alpha - 1) - 1) / (alpha - 1)

    return -log_sigmoid(beta * (slope(c) - slope(r)))


def numpy_sppo(c, r, beta):
    return (c.ratio.sum() - 0.5 / beta) ** 2 + (r.ratio.sum() + 0.5 / beta) ** 2


def softplus_of_minus(margin):
    """-log sigmoid(margin), with the standard library only."""
    return math.log1p(math.exp(-margin))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class Objective(NamedTuple):
    ours: object
    settings: dict
    numpy: object
    margin_by_hand: float
    loss_by_hand: float


# The hand pair, and what the table's last two columns are computed from:   chosen    log pi -0.5 -1.5
# log-ratio 0.5 -0.7        sum -0.2  mean -0.1    KL 0.1 0.3      sum 0.4   rejected  log pi -1.0 -2.0 -0.6
# log-ratio -0.2 -0.1 0.6   sum  0.3  mean  0.1    KL 0.2 0.0 0.4  sum 0.6   D = -0.5; mean log pi -1.0 and
# -1.2; sums -2.0 and -3.6; chosen NLL 1.0; lengths 2 and 3   reward mask 1 0.5 | 0 2 1      weighted ratios
# 0.5 - 0.35 = 0.15 | -0.2 + 0.6 = 0.4    size 1.5 + 3    = 4.5   KL mask     2 1   | 0.5 1 0.25 weighted KL
# 0.2 + 0.3  = 0.5  |  0.1 + 0.1 = 0.2    size 3   + 1.75 = 4.75
LOG_ODDS_C = -1.0 - math.log(1 - math.exp(-1.0))
LOG_ODDS_R = -1.2 - math.log(1 - math.exp(-1.2))

MASKED_PAIR = (
    Response(*map(np.array, ([-0.5, -1.5], [-1.0, -0.8], [0.1, 0.3], [1.0, 0.5], [2.0, 1.0]))),
    Response(
        *map(
            np.array,
            ([-1.0, -2.0, -0.6], [-0.8, -1.9, -1.2], [0.2, 0.0, 0.4], [0.0, 2.0, 1.0], [0.5, 1.0, 0.25]),
        )
    ),
)

HAND_PAIR = tuple(
    y._replace(reward_mask=np.ones(len(y.logp)), kl_mask=np.ones(len(y.logp))) for y in MASKED_PAIR
)


def hand_pair(name):
    """The masks are those of sparsepo; the others are computed without."""
    return MASKED_PAIR if name.startswith("sparsepo") else HAND_PAIR


OBJECTIVES = {
    "sparsepo": Objective(  # 0.8 [(0.15 - 0.4) - (0.2 - 0.5)] = 0.04; L1 0.01 * 4.5 + 0.02 * 4.75
        token_weighted.sparsepo_loss,
        dict(beta=0.8, l1_reward=0.01, l1_kl=0.02, shared=False),
        numpy_sparsepo,
        0.04,
        softplus_of_minus(0.04) + 0.14,
    ),
    "sparsepo shared": Objective(  # each L1 factor counts half
        token_weighted.sparsepo_loss,
        dict(beta=0.8, l1_reward=0.01, l1_kl=0.02, shared=True),
        numpy_sparsepo,
        0.04,
        softplus_of_minus(0.04) + 0.07,
    ),
    "tdpo1": Objective(  # 0.5 (-0.5 - (0.6 - 0.4))
        token_weighted.tdpo1_loss,
        dict(beta=0.5),
        lambda c, r, beta: -log_sigmoid(beta * (dpo_difference(c, r) - (r.kls.sum() - c.kls.sum()))),
        -0.35,
        softplus_of_minus(-0.35),
    ),
    "tdpo2": Objective(  # 0.5 (-0.5 - 0.5 (0.6 - 0.4))
        token_weighted.tdpo2_loss,
        dict(beta=0.5, alpha=0.5),
        lambda c, r, beta, alpha: (
            -log_sigmoid(beta * (dpo_difference(c, r) - alpha * (r.kls.sum() - c.kls.sum())))
        ),
        -0.3,
        softplus_of_minus(-0.3),
    ),
    "dpo": Objective(  # 0.5 * -0.5
        token_weighted.dpo_loss,
        dict(beta=0.5),
        lambda c, r, beta: -log_sigmoid(beta * dpo_difference(c, r)),
        -0.25,
        softplus_of_minus(-0.25),
    ),
    # 0.5 [(0.5 * 0.5 - 0.25 * 0.7) - (-0.5 * 0.2 - 0.25 * 0.1 + 0.125 * 0.6)] = 0.5 [0.075 + 0.05]
    "d2po": Objective(
        token_weighted.d2po_loss, dict(beta=0.5, gamma=0.5), numpy_d2po, 0.0625, softplus_of_minus(0.0625)
    ),
    "ldpo": Objective(  # rejected: -0.2 - 0.1 + 0.5 * 0.6 = 0, so 0.5 * -0.2
        token_weighted.ldpo_loss, dict(beta=0.5, alpha=0.5), numpy_ldpo, -0.1, softplus_of_minus(-0.1)
    ),
    "cdpo": Objective(
        sequence.cdpo_loss,
        dict(beta=0.5, label_smoothing=0.1),
        numpy_cdpo,
        -0.25,
        0.9 * softplus_of_minus(-0.25) + 0.1 * softplus_of_minus(0.25),
    ),
    "robust": Objective(
        sequence.robust_loss,
        dict(beta=0.5, label_smoothing=0.1),
        numpy_robust,
        -0.25,
        (0.9 * softplus_of_minus(-0.25) - 0.1 * softplus_of_minus(0.25)) / 0.8,
    ),
    "ipo": Objective(  # (-0.1 - 0.1 - 1)^2
        sequence.ipo_loss,
        dict(beta=0.5),
        lambda c, r, beta: (c.mean_ratio - r.mean_ratio - 1 / (2 * beta)) ** 2,
        -0.2,
        1.44,
    ),
    "hinge": Objective(  # 1 - 0.5 * -0.5
        sequence.hinge_loss,
        dict(beta=0.5),
        lambda c, r, beta: max(0.0, 1 - beta * dpo_difference(c, r)),
        -0.25,
        1.25,
    ),
    "simpo": Objective(  # 2 (-1.0 + 1.2) - 0.5
        sequence.simpo_loss,
        dict(beta=2.0, gamma=0.5),
        lambda c, r, beta, gamma: -log_sigmoid(beta * (c.mean_logp - r.mean_logp) - gamma),
        -0.1,
        softplus_of_minus(-0.1),
    ),
    "orpo": Objective(
        sequence.orpo_loss,
        dict(odds_weight=0.1),
        numpy_orpo,
        LOG_ODDS_C - LOG_ODDS_R,
        1.0 + 0.1 * softplus_of_minus(LOG_ODDS_C - LOG_ODDS_R),
    ),
    "cpo": Objective(  # 0.5 (-2.0 + 3.6); 3 * 1.0
        sequence.cpo_loss,
        dict(beta=0.5, alpha=3.0),
        lambda c, r, beta, alpha: (
            -log_sigmoid(beta * sum(sign * (y.reward_mask * y.logp).sum() for sign, y in ((1, c), (-1, r))))
            - alpha * c.logp.mean()
        ),
        0.8,
        softplus_of_minus(0.8) + 3.0,
    ),
    "dpop": Objective(  # 0.5 (-0.5 - 2 * 0.2)
        sequence.dpop_loss, dict(beta=0.5, penalty=2.0), numpy_dpop, -0.45, softplus_of_minus(-0.45)
    ),
    "rdpo": Objective(  # 0.5 * -0.5 + 0.1 (2 - 3)
        sequence.rdpo_loss,
        dict(beta=0.5, alpha=0.1),
        lambda c, r, beta, alpha: (
            -log_sigmoid(beta * dpo_difference(c, r) + alpha * (len(c.logp) - len(r.logp)))
        ),
        -0.35,
        softplus_of_minus(-0.35),
    ),
    # Probabilities .61 .22, mean .41: the second; .37 .14 .55, mean .35: the second; 2 (-1.5 + 2.0) - 0.5.
    "confpo": Objective(
        sequence.confpo_loss, dict(beta=2.0, gamma=0.5), numpy_confpo, 0.5, softplus_of_minus(0.5)
    ),
    "caldpo": Objective(  # [(-0.2 - 1)^2 + (0.3 + 1)^2] / 2 = (1.44 + 1.69) / 2
        sequence.caldpo_loss, dict(beta=0.5), numpy_caldpo, -0.5, softplus_of_minus(-0.5) + 1.565
    ),
    "dpo_norm": Objective(  # 2 (-0.1 - 0.1)
        sequence.dpo_norm_loss,
        dict(beta=2.0),
        lambda c, r, beta: -log_sigmoid(beta * (c.mean_ratio - r.mean_ratio)),
        -0.4,
        softplus_of_minus(-0.4),
    ),
    "alphapo": Objective(  # 2 [(1 - e^0.5) - (1 - e^0.6)] / 0.5 - 0.5
        sequence.alphapo_loss,
        dict(beta=2.0, gamma=0.5, alpha=0.5),
        numpy_alphapo,
        4 * (math.exp(0.6) - math.exp(0.5)) - 0.5,
        softplus_of_minus(4 * (math.exp(0.6) - math.exp(0.5)) - 0.5),
    ),
    "exo": Objective(  # sigmoid(-0.25) = 0.4378: 0.4378 log(0.4378 / 0.9) + 0.5622 log(0.5622 / 0.1)
        margins.exo_loss,
        dict(beta=0.5, label_smoothing=0.1),
        numpy_exo,
        -0.25,
        sigmoid(-0.25) * math.log(sigmoid(-0.25) / 0.9) + sigmoid(0.25) * math.log(sigmoid(0.25) / 0.1),
    ),
    "discopop": Objective(  # m = sigmoid(-0.25 / 0.5)
        margins.discopop_loss,
        dict(beta=0.5, temperature=0.5),
        numpy_discopop,
        -0.25,
        sigmoid(0.5) * softplus_of_minus(-0.25) + sigmoid(-0.5) * math.exp(0.25),
    ),
    "bpo": Objective(  # e^(1.5 * 0.25) / 6 - (e^(-0.5 * 0.25) - 1) / 2
        margins.bpo_loss,
        dict(beta=0.5, power=0.5, scale=4.0),
        lambda c, r, beta, **risk: numpy_risk(beta * dpo_difference(c, r), **risk),
        -0.25,
        math.exp(0.375) / 6 - (math.exp(-0.125) - 1) / 2,
    ),
    # r + k: chosen 0.6 -0.4, rejected 0.0 -0.1 (and a third token, past the chosen one's end); margins 0.5 *
    # 0.6 and 0.5 * -0.3
    "tbpo_a": Objective(
        margins.tbpo_a_loss,
        dict(beta=0.5, power=1.0, scale=4.0),
        numpy_tbpo_a,
        0.075,
        ((math.exp(-0.6) / 8 - math.expm1(0.3) / 4) + (math.exp(0.3) / 8 - math.expm1(-0.15) / 4)) / 2,
    ),
    "tbpo_a logistic": Objective(
        margins.tbpo_a_loss,
        dict(beta=0.5, power=None, scale=4.0),
        numpy_tbpo_a,
        0.075,
        (softplus_of_minus(0.3) + softplus_of_minus(-0.15)) / 2,
    ),
    "fdpo": Objective(  # g(r) = 2 (1 - e^(-r / 2)): 0.5 * 2 (e^-0.15 - e^0.1)
        margins.fdpo_loss,
        dict(beta=0.5, alpha=0.5),
        numpy_fdpo,
        math.exp(-0.15) - math.exp(0.1),
        softplus_of_minus(math.exp(-0.15) - math.exp(0.1)),
    ),
    "fdpo Jensen-Shannon": Objective(  # 0.5 (log sigmoid(-0.2) - log sigmoid(0.3))
        margins.fdpo_loss,
        dict(beta=0.5, alpha=None),
        numpy_fdpo,
        0.5 * math.log(sigmoid(-0.2) / sigmoid(0.3)),
        softplus_of_minus(0.5 * math.log(sigmoid(-0.2) / sigmoid(0.3))),
    ),
    # rewards 0.5 * -0.2 = -0.1 and 0.5 * 0.3 = 0.15
    "nca": Objective(
        separate.nca_loss,
        dict(beta=0.5),
        lambda c, r, beta: (
            -log_sigmoid(beta * c.ratio.sum()) - sum(log_sigmoid(-beta * y.ratio.sum()) for y in (c, r)) / 2
        ),
        -0.25,
        softplus_of_minus(-0.1) + (softplus_of_minus(0.1) + softplus_of_minus(-0.15)) / 2,
    ),
    "bco_pair": Objective(
        separate.bco_pair_loss,
        dict(beta=0.5),
        lambda c, r, beta: -log_sigmoid(beta * c.ratio.sum()) - log_sigmoid(-beta * r.ratio.sum()),
        -0.25,
        softplus_of_minus(-0.1) + softplus_of_minus(-0.15),
    ),
    "sppo": Objective(  # (-0.2 - 1)^2 + (0.3 + 1)^2
        separate.sppo_loss, dict(beta=0.5), numpy_sppo, -0.5, 3.13
    ),
    "apo_zero": Objective(
        separate.apo_zero_loss,
        dict(beta=0.5),
        lambda c, r, beta: 1 - sigmoid(beta * c.ratio.sum()) + sigmoid(beta * r.ratio.sum()),
        -0.25,
        1 - sigmoid(-0.1) + sigmoid(0.15),
    ),
    "apo_down": Objective(
        separate.apo_down_loss,
        dict(beta=0.5),
        lambda c, r, beta: sigmoid(beta * c.ratio.sum()) + 1 - sigmoid(beta * dpo_difference(c, r)),
        -0.25,
        sigmoid(-0.1) + 1 - sigmoid(-0.25),
    ),
}
SAMPO = Objective(
    token_weighted.sampo_loss, dict(beta=0.5), None, math.nan, math.nan
)  # random: has tests of its own
ALL = OBJECTIVES | {"sampo": SAMPO}

each_objective = pytest.mark.parametrize("name", ALL)
each_formula = pytest.mark.parametrize("name", OBJECTIVES)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None)

# ---------------------------------------------------------------- pairs to try them on

PAIRS, TOKENS = 3, 5
KEYS = jax.random.split(jax.random.key(0), PAIRS)


def padded(pairs, tokens=TOKENS, filler=0.0):
    """Pairs of Responses -> (stats, masks), float32, `filler` at padded positions."""
    arrays = np.full((5, len(pairs), 2, tokens), filler, np.float32)
    valid = np.zeros((len(pairs), 2, tokens), bool)
    for b, p in itertools.product(range(len(pairs)), range(2)):
        length = len(pairs[b][p].logp)
        arrays[:, b, p, :length] = pairs[b][p]
        valid[b, p, :length] = True
    logp, ref_logp, kl, reward, kl_mask = map(jnp.asarray, arrays)
    return TokenStats(logp, ref_logp, kl, jnp.asarray(valid)), TokenMasks(reward, kl_mask)


def random_pairs(seed, *, same_policy=False, same_length=False):
    """Responses of 1 to TOKENS tokens; float32 values, so that NumPy and JAX see the same numbers."""
    rng = np.random.default_rng(seed)

    def response(length):
        logp, ref_logp = -rng.gamma(1.0, 1.0, (2, length)) - 0.05
        kl, (reward_mask, kl_mask) = (
            rng.gamma(0.5, 0.2, length),
            np.maximum(rng.normal(0.5, 1.0, (2, length)), 0.0),
        )
        reward_mask[0] += 0.5  # means over weights need one
        if same_policy:
            ref_logp, kl = logp, np.zeros(length)
        return Response(
            *(x.astype(np.float32).astype(np.float64) for x in (logp, ref_logp, kl, reward_mask, kl_mask))
        )

    pairs = []
    for _ in range(PAIRS):
        lengths = rng.integers(1, TOKENS + 1, 2)
        pairs.append((response(lengths[0]), response(lengths[0] if same_length else lengths[1])))
    return pairs


@functools.cache
def compiled(name):
    """Jitted: (stats, masks, keys) -> LossOutput, gradient of the summed loss.

    The gradient is in (logp, ref_logp, kl, reward mask, KL mask).
    """

    def total(floats, valid, keys):
        logp, ref_logp, kl, reward, kl_mask = floats
        output = ALL[name].ours(
            TokenStats(logp, ref_logp, kl, valid), TokenMasks(reward, kl_mask), keys, **ALL[name].settings
        )
        return output.loss_B.sum(), output

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def evaluate(name, stats, masks, keys=KEYS):
    (_, output), gradient = compiled(name)((*stats[:3], *masks), stats.valid_BPT, keys)
    return output, np.stack(gradient)


def loss_of(objective, stats, masks, **other_settings):
    return np.asarray(objective.ours(stats, masks, KEYS, **(objective.settings | other_settings)).loss_B)


# ---------------------------------------------------------------- values and gradients


@each_formula
def test_a_pair_computed_by_hand(name):
    """Two chosen and three rejected tokens; the arithmetic is beside each row of OBJECTIVES."""
    objective = OBJECTIVES[name]
    output, _ = evaluate(name, *padded([hand_pair(name)] * PAIRS))
    np.testing.assert_allclose(output.metrics["margin"], objective.margin_by_hand, atol=2e-7)
    np.testing.assert_allclose(output.loss_B, objective.loss_by_hand, rtol=5e-7)
    assert objective.numpy(*hand_pair(name), **objective.settings) == pytest.approx(
        objective.loss_by_hand, rel=1e-12
    )


# Of MASKED_PAIR: weighted ratios 0.5 -0.35 | 0 -0.2 0.6, sums 0.15 and 0.4, over the weights 1.5 and 3: 0.1
# and 0.4 / 3; log pi -0.5 -0.75 | 0 -4 -0.6, sums -1.25 and -4.6, means -2.5 / 3 and -4.6 / 3; weighted KL
# 0.2 0.3 | 0.1 0 0.1, sums 0.5 and 0.2
MASKED_BY_HAND = {
    "dpo": (-0.125, softplus_of_minus(-0.125)),
    "d2po": (0.06875, softplus_of_minus(0.06875)),  # 0.5 [(0.25 - 0.0875) - (-0.05 + 0.075)]
    "rdpo": (-0.225, softplus_of_minus(-0.225)),  # lengths stay 2 and 3
    "tdpo2": (-0.05, softplus_of_minus(-0.05)),  # 0.5 [-0.25 - 0.5 (0.2 - 0.5)]
    "ipo": (-0.1 / 3, (0.1 / 3 + 1) ** 2),
    "dpo_norm": (-0.2 / 3, softplus_of_minus(-0.2 / 3)),
    "simpo": (0.9, softplus_of_minus(0.9)),  # 2 * 2.1 / 3 - 0.5
    "cpo": (1.675, softplus_of_minus(1.675) + 3.0),  # 0.5 (-1.25 + 4.6); the NLL stays 1.0
    "tbpo_a": (  # r + k: 0.7 -0.05 | 0.1 -0.2; margins 0.3 and 0.075
        0.1875,
        (math.exp(-0.6) / 8 - math.expm1(0.3) / 4 + math.exp(-0.15) / 8 - math.expm1(0.075) / 4) / 2,
    ),
}


@pytest.mark.parametrize("name", MASKED_BY_HAND)
def test_a_masked_pair_computed_by_hand(name):
    margin, loss = MASKED_BY_HAND[name]
    output, _ = evaluate(name, *padded([MASKED_PAIR] * PAIRS))
    np.testing.assert_allclose(output.metrics["margin"], margin, atol=2e-7)
    np.testing.assert_allclose(output.loss_B, loss, rtol=5e-7)


@each_objective
def test_masked_tokens_have_no_gradient_but_that_of_the_likelihood(name):
    """Exactly 0, in log-probs, those of the reference, and KL. Kills: a term that the mask does not reach."""
    stats, masks = padded(random_pairs(9))
    kept = jnp.asarray(np.random.default_rng(0).random(stats.valid_BPT.shape) < 0.5).at[..., 0].set(True)
    _, gradient = evaluate(name, stats, TokenMasks(*(kept * x for x in masks)))
    outside = np.asarray(stats.valid_BPT & ~kept)
    nll_weight = {"cpo": 3.0, "orpo": 1.0}.get(name, 0.0)
    tokens = np.asarray(stats.valid_BPT[:, 0].sum(-1, keepdims=True), np.float32)
    of_nll = np.zeros(outside.shape, np.float32)
    of_nll[:, 0] = -np.float32(nll_weight) / tokens
    np.testing.assert_array_equal(gradient[0][outside], of_nll[outside])
    np.testing.assert_array_equal(gradient[1:3, outside], 0.0)
    assert outside[:, 0].any() and outside[:, 1].any() and np.abs(gradient[0][np.asarray(kept)]).max() > 0


@each_formula
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_formula(name, seed):
    pairs, objective = random_pairs(seed), OBJECTIVES[name]
    output, _ = evaluate(name, *padded(pairs))
    expected = [objective.numpy(c, r, **objective.settings) for c, r in pairs]
    np.testing.assert_allclose(output.loss_B, expected, rtol=3e-6, atol=1e-12)


@each_formula
def test_gradient_equals_finite_differences_of_the_plain_formula(name):
    """At a mask of exactly 0 the central difference of |m| is 0, as its gradient is here and in torch."""
    pairs, objective, step = random_pairs(7), OBJECTIVES[name], 1e-6
    _, gradient = evaluate(name, *padded(pairs))
    for b, p, field in itertools.product(range(PAIRS), range(2), range(5)):
        values = pairs[b][p][field]
        for t in range(len(values)):
            ends = []
            for delta in (-step, step):
                moved = values.copy()
                moved[t] += delta
                pair = list(pairs[b])
                pair[p] = Response(*(moved if i == field else x for i, x in enumerate(pair[p])))
                ends.append(objective.numpy(*pair, **objective.settings))
            slope = (ends[1] - ends[0]) / (2 * step)
            if name == "tdpo2" and Response._fields[field] in ("kl", "kl_mask") and p == 0:
                slope = 0.0  # the stopped gradient
            assert gradient[field, b, p, t] == pytest.approx(slope, rel=2e-5, abs=2e-6), (
                Response._fields[field],
                b,
                p,
                t,
            )


@each_objective
def test_rewards_are_the_two_sides_of_the_margin(name):
    """rewards/chosen - rewards/rejected is the margin; SimPO and ConfPO take their target gamma off it."""
    output, _ = evaluate(name, *padded(random_pairs(3)))
    metrics = {key: np.asarray(value) for key, value in output.metrics.items()}
    assert all(value.shape == (PAIRS,) for value in metrics.values())
    difference = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    np.testing.assert_array_equal(metrics["rewards/margins"], difference)
    gamma = ALL[name].settings.get("gamma", 0.0) if name in ("simpo", "confpo", "alphapo") else 0.0
    np.testing.assert_allclose(metrics["margin"], difference - gamma, atol=1e-6)
    np.testing.assert_array_equal(metrics["rewards/accuracies"], (np.sign(difference) + 1) / 2)


def test_a_tie_is_half_an_accuracy():
    same = (HAND_PAIR[0], HAND_PAIR[0])
    output, _ = evaluate("dpo", *padded([same, HAND_PAIR, HAND_PAIR[::-1]]))
    np.testing.assert_array_equal(output.metrics["rewards/accuracies"], [0.5, 0.0, 1.0])


# ---------------------------------------------------------------- padding


@each_objective
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_padding_changes_neither_value_nor_gradient(name, garbage):
    pairs = random_pairs(11)
    clean, clean_gradient = evaluate(name, *padded(pairs))
    stats, masks = padded(pairs, filler=garbage)
    dirty, dirty_gradient = evaluate(name, stats, masks)
    np.testing.assert_array_equal(dirty.loss_B, clean.loss_B)
    for key in clean.metrics:
        np.testing.assert_array_equal(dirty.metrics[key], clean.metrics[key], err_msg=key)
    np.testing.assert_array_equal(dirty_gradient, clean_gradient)
    assert (dirty_gradient[:, ~np.asarray(stats.valid_BPT)] == 0).all()
    assert np.abs(clean_gradient).max() > 0


@each_objective
@pytest.mark.parametrize("garbage", [0.0, np.nan])
def test_a_filler_pair_is_finite_and_without_gradient(name, garbage):
    stats, masks = padded(random_pairs(5), filler=garbage)
    blank = jnp.zeros_like(stats.valid_BPT).at[1:].set(stats.valid_BPT[1:])
    floats = [x.at[0].set(garbage) for x in (*stats[:3], *masks)]
    output, gradient = evaluate(name, TokenStats(*floats[:3], blank), TokenMasks(*floats[3:]))
    assert np.isfinite(output.loss_B).all()
    assert all(np.isfinite(value).all() for value in output.metrics.values())
    assert (gradient[:, 0] == 0).all()
    assert np.isfinite(gradient).all()


# ---------------------------------------------------------------- identities

# At policy = reference all log-ratios and KL are 0, so D = 0: ln 2 for the logistic ones, 1/(4 beta^2) = 1
# for ipo, relu(1) for hinge, ln 2 + (1 + 1) / 2 for caldpo. Sigmoids are 1/2.
AT_REFERENCE = {
    name: math.log(2) for name in ("tdpo1", "tdpo2", "dpo", "d2po", "ldpo", "cdpo", "robust", "dpop", "sampo")
}
AT_REFERENCE |= {"ipo": 1.0, "hinge": 1.0, "caldpo": math.log(2) + 1.0}
AT_REFERENCE |= {"dpo_norm": math.log(2), "tbpo_a logistic": math.log(2), "bpo": 1 / 6, "tbpo_a": 1 / 8}
AT_REFERENCE |= {"fdpo": math.log(2), "fdpo Jensen-Shannon": math.log(2)}
AT_REFERENCE |= {"exo": 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)}
AT_REFERENCE |= {"discopop": 0.5 * math.log(2) + 0.5, "nca": 2 * math.log(2), "bco_pair": 2 * math.log(2)}
AT_REFERENCE |= {"sppo": 2.0, "apo_zero": 1.0, "apo_down": 1.0}


@pytest.mark.parametrize("name", AT_REFERENCE)
@given(seed=seeds)
@few
def test_policy_equal_to_reference_gives_the_known_loss_and_a_finite_gradient(name, seed):
    output, gradient = evaluate(name, *padded(random_pairs(seed, same_policy=True)))
    np.testing.assert_allclose(output.loss_B, AT_REFERENCE[name], rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(output.metrics["rewards/accuracies"], 0.5)


@given(seed=seeds)
@few
def test_sparsepo_at_the_reference_is_ln_2_plus_l1_whatever_the_mask(seed):
    output, gradient = evaluate("sparsepo", *padded(random_pairs(seed, same_policy=True)))
    np.testing.assert_allclose(output.loss_B, math.log(2) + output.metrics["loss/l1"], rtol=1e-6)
    assert np.isfinite(gradient).all()


SWAPPED = [name for name in OBJECTIVES if name != "dpop"]  # dpop's penalty is on the chosen response only


@pytest.mark.parametrize("name", SWAPPED)
@given(seed=seeds)
@few
def test_swapping_the_pair_negates_the_margin(name, seed):
    """Of rewards: SimPO's and ConfPO's gamma is a target, not a reward."""
    pairs = random_pairs(seed)
    one, _ = evaluate(name, *padded(pairs))
    other, _ = evaluate(name, *padded([pair[::-1] for pair in pairs]))
    np.testing.assert_allclose(one.metrics["rewards/margins"], -other.metrics["rewards/margins"], atol=1e-6)


def sparsepo_with(stats, masks, reward, kl, beta=0.5):
    masks = TokenMasks(reward * masks.reward_BPT, kl * masks.kl_BPT)
    return np.asarray(token_weighted.sparsepo_loss(stats, masks, None, beta=beta).loss_B)


# (left, its settings; right): the same loss on every pair, whatever the masks. None as left: SparsePO with
# these factors of its masks (reward, KL).
IDENTITIES = [
    (None, (1.0, 1.0), "tdpo1"),
    (None, (1.0, 0.0), "dpo"),
    ("cdpo", dict(label_smoothing=0.0), "dpo"),
    ("robust", dict(label_smoothing=0.0), "dpo"),
    ("d2po", dict(gamma=1.0), "dpo"),
    ("ldpo", dict(alpha=1.0), "dpo"),
    ("dpop", dict(penalty=0.0), "dpo"),
    ("rdpo", dict(alpha=0.0), "dpo"),
    ("tdpo2", dict(alpha=0.0), "dpo"),
    ("tdpo2", dict(alpha=1.0), "tdpo1"),
    ("alphapo", dict(alpha=0.0), "simpo"),
    ("bpo", dict(power=None), "dpo"),
    ("fdpo", dict(alpha=1.0), "dpo"),
]


@pytest.mark.parametrize(("left", "changed", "right"), IDENTITIES)
@given(seed=seeds)
@few
def test_special_cases_coincide(left, changed, right, seed):
    stats, masks = padded(random_pairs(seed))
    expected = evaluate(right, stats, masks)[0].loss_B
    got = (
        sparsepo_with(stats, masks, *changed) if left is None else loss_of(ALL[left], stats, masks, **changed)
    )
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_tdpo2_stops_the_gradient_of_the_chosen_kl_only():
    """Margin 0.5 (D - 0.5 (Kr - Kc)) = -0.3: the slope in a rejected KL is 0.25 sigmoid(0.3) = 0.143611."""
    _, gradient = evaluate("tdpo2", *padded([HAND_PAIR] * PAIRS))
    np.testing.assert_array_equal(gradient[2, :, 0], 0.0)
    np.testing.assert_allclose(gradient[2, :, 1, :3], 0.25 / (1 + math.exp(-0.3)), rtol=1e-6)


def test_dpop_penalises_only_a_chosen_response_that_became_less_likely():
    """Swapped, the hand pair's chosen log-ratio is 0.3 > 0: no penalty, so DPO with D = 0.5."""
    swapped, _ = evaluate("dpop", *padded([HAND_PAIR[::-1]] * PAIRS))
    np.testing.assert_allclose(swapped.loss_B, softplus_of_minus(0.25), rtol=1e-6)


def test_hinge_is_flat_past_its_margin():
    sure = (HAND_PAIR[0]._replace(logp=np.array([4.0, 4.0])), HAND_PAIR[1])
    output, gradient = evaluate("hinge", *padded([sure] * PAIRS))
    np.testing.assert_array_equal(output.loss_B, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("margin", [-2000.0, 2000.0])
@pytest.mark.parametrize(
    "name",
    [
        "dpo",
        "cdpo",
        "robust",
        "tdpo1",
        "caldpo",
        "exo",
        "discopop",
        "bpo",
        "tbpo_a",
        "apo_down",
        "fdpo",
        "alphapo",
    ],
)
def test_large_margins_do_not_overflow(name, margin):
    far = (HAND_PAIR[0]._replace(ref_logp=HAND_PAIR[0].logp - margin), HAND_PAIR[1])
    output, gradient = evaluate(name, *padded([far] * PAIRS))
    assert np.isfinite(output.loss_B).all() and np.isfinite(gradient).all()


# ---------------------------------------------------------------- single objectives


@pytest.mark.parametrize("logp", [0.0, -1e-7, -1e-4, -0.5, -0.7, -30.0, -200.0])
def test_orpo_is_stable_from_certain_to_impossible_tokens(logp):
    """log(p / (1-p)) of p = exp(logp) is logp - log(-expm1(logp)) in float64; at p = 1 it stays finite."""
    certain = (HAND_PAIR[0]._replace(logp=np.full(2, logp)), HAND_PAIR[1])
    output, gradient = evaluate("orpo", *padded([certain] * PAIRS))
    assert np.isfinite(output.loss_B).all() and np.isfinite(gradient).all()
    if logp < -1e-6:
        np.testing.assert_allclose(
            output.metrics["rewards/chosen"], logp - math.log(-math.expm1(logp)), rtol=1e-6, atol=1e-6
        )
    else:
        assert (output.metrics["rewards/chosen"] > 15).all()


def test_confpo_takes_equal_probabilities_all_even_where_their_mean_rounds_below_them():
    chosen, rejected = HAND_PAIR
    equal = [
        (chosen._replace(logp=np.full(2, logp)), rejected._replace(logp=np.full(3, logp)))
        for logp in (-0.1, -0.3, -1.7)
    ]
    output, gradient = evaluate("confpo", *padded(equal))
    np.testing.assert_allclose(output.metrics["rewards/chosen"], 2 * np.array([-0.1, -0.3, -1.7]), rtol=1e-6)
    np.testing.assert_allclose(
        output.metrics["rewards/rejected"], 2 * np.array([-0.1, -0.3, -1.7]), rtol=1e-6
    )
    assert (np.abs(gradient[0]).sum((1, 2)) > 0).all()


def test_sampo_draws_each_subset_of_the_longer_response_equally_often():
    """Chosen has 2 tokens, rejected 3.

    D is -0.2 less -0.3, 0.4 or 0.5 for the three subsets {1,2}, {1,3}, {2,3}.
    """
    draws = 900
    stats, masks = padded([HAND_PAIR] * draws)
    keys = jax.random.split(jax.random.key(1), draws)
    margins = np.asarray(token_weighted.sampo_loss(stats, masks, keys, beta=1.0).metrics["margin"])
    counts = [np.isclose(margins, d, atol=1e-6).sum() for d in (0.1, -0.6, -0.7)]
    assert sum(counts) == draws
    assert min(counts) > 300 - 5 * 14.2  # five standard deviations, sqrt(900 / 3 * 2 / 3) = 14.1


@given(seed=seeds)
@few
def test_sampo_weighs_as_many_tokens_of_each_response_as_the_shorter_has(seed):
    stats, masks = padded(random_pairs(seed))
    output, gradient = evaluate("sampo", stats, TokenMasks(*map(jnp.ones_like, masks)))
    slope = 0.5 / (1 + np.exp(output.metrics["margin"]))[:, None]
    shorter = np.asarray(stats.valid_BPT).sum(-1).min(-1)[:, None]
    np.testing.assert_allclose(
        gradient[0].sum(-1), np.concatenate([-slope * shorter, slope * shorter], 1), rtol=1e-5
    )
    np.testing.assert_array_equal((gradient[0] != 0).sum(-1), np.broadcast_to(shorter, (PAIRS, 2)))


@given(seed=seeds)
@few
def test_sampo_of_equal_lengths_is_dpo(seed):
    stats, masks = padded(random_pairs(seed, same_length=True))
    np.testing.assert_allclose(
        evaluate("sampo", stats, masks)[0].loss_B, evaluate("dpo", stats, masks)[0].loss_B, rtol=2e-6
    )


def test_sampo_draws_the_same_tokens_in_any_batch_and_padding():
    pairs = random_pairs(2)
    alone = [padded([pair], tokens=TOKENS + 4) for pair in pairs]
    together, _ = evaluate("sampo", *padded(pairs))
    for b, (stats, masks) in enumerate(alone):
        loss = token_weighted.sampo_loss(stats, masks, KEYS[b : b + 1], **SAMPO.settings).loss_B
        np.testing.assert_allclose(loss, together.loss_B[b : b + 1], rtol=1e-6)


def test_sampo_draws_anew_with_other_keys():
    stats, masks = padded([HAND_PAIR] * PAIRS)
    losses = [
        evaluate("sampo", stats, masks, jax.random.split(jax.random.key(i), PAIRS))[0].loss_B
        for i in range(8)
    ]
    assert len(np.unique(np.round(losses, 5))) == 3


@pytest.mark.parametrize(
    ("power", "scale", "expected"),
    [(0.0, 1.0, lambda z: np.exp(z) + z), (1.0, 0.5, lambda z: np.exp(2 * z) - 2 * np.expm1(-z))],
    ids=["KLIEP", "LSIF"],
)
def test_the_ends_of_basus_family_are_kliep_and_lsif(power, scale, expected):
    """z = log R of the papers, the negative margin. At power 0 the formula is a limit, with a gradient."""
    margin = jnp.array([-2.0, -0.3, 0.0, 1.5])
    risk, slope = jax.vmap(jax.value_and_grad(lambda x: margins.ratio_risk(x, jnp.float32(power), scale)))(
        margin
    )
    np.testing.assert_allclose(risk, expected(-np.float64(margin)), rtol=1e-6)
    near = margins.ratio_risk(margin, power + 1e-3, scale)
    np.testing.assert_allclose(near, risk, rtol=0.01, atol=0.01)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("margin", [-300.0, 300.0])
def test_the_risk_of_a_far_ratio_is_a_number_and_flat(power, margin):
    risk, slope = jax.value_and_grad(margins.ratio_risk)(margin, power, 4.0)
    assert np.isfinite(risk) and slope == 0


@pytest.mark.parametrize("power", [0.0, 0.2, 1.0, None])
def test_with_scale_4_a_margin_of_zero_has_dpos_slope(power):
    assert jax.grad(margins.ratio_risk)(0.0, power, 4.0) == pytest.approx(-0.5)


def test_wpo_weighs_a_pair_by_the_probability_of_its_responses():
    """Mean log-probs of the hand pair: -1.0 and -1.2. Kills: sums for means; a weight with a gradient."""
    stats, masks = padded([HAND_PAIR] * PAIRS, filler=np.nan)
    weighted = wrappers.weighted_by_policy(token_weighted.dpo_loss)

    def total(logp, loss):
        return loss(stats._replace(logp_BPT=logp), masks, None, beta=0.5).loss_B.sum()

    output = weighted(stats, masks, None, beta=0.5)
    np.testing.assert_allclose(output.loss_B, math.exp(-2.2) * softplus_of_minus(-0.25), rtol=1e-6)
    np.testing.assert_allclose(output.metrics["loss/policy_weight"], math.exp(-2.2), rtol=1e-6)
    added = wrappers.weighted_by_policy(sequence.cpo_loss)(stats, masks, None, beta=0.5, alpha=3.0)
    np.testing.assert_allclose(added.metrics["loss/nll"], math.exp(-2.2) * 3.0, rtol=1e-6)
    slope, plain = (jax.grad(total)(stats.logp_BPT, loss) for loss in (weighted, token_weighted.dpo_loss))
    np.testing.assert_allclose(slope, math.exp(-2.2) * plain, rtol=1e-6)


def test_settings_are_read_under_every_wrapper():
    """Of which some are None, as that of Jensen and Shannon. Kills: a wrapper whose beta would count 1."""
    settings = {"alpha": None}
    loss = jax.tree_util.Partial(margins.fdpo_loss, **settings)
    wrapped = [wrappers.with_nll(loss, 0.5), wrappers.with_l1(loss, l1_reward=0.1, l1_kl=0.0, shared=True)]
    wrapped += [wrappers.weighted_by_policy(loss, aligned=aligned) for aligned in (False, True)]
    wrapped += [wrappers.mixed([loss, wrapped[0]], [0.8, 0.2]), wrappers.with_nll(wrapped[-1], 0.5)]
    assert all(wrappers.settings_of(each) == settings for each in (loss, *wrapped))


def test_aligned_weights_divide_by_what_the_policy_draws():
    """Means of log pi less the expected one: -1.0 + 0.4 and -1.2 + 0.5. Kills: the other sign; a weight with
    a gradient; padding that counts."""
    stats, masks = padded([HAND_PAIR] * PAIRS, filler=np.nan)
    expected = np.full(stats.logp_BPT.shape, np.nan, np.float32)
    expected[:, 0, :2], expected[:, 1, :3] = [-0.1, -0.7], [-0.5, -0.3, -0.7]
    stats = stats._replace(expected_BPT=jnp.asarray(expected))
    weighted = wrappers.weighted_by_policy(token_weighted.dpo_loss, aligned=True)

    def total(logp, loss):
        return loss(stats._replace(logp_BPT=logp), masks, None, beta=0.5).loss_B.sum()

    output = weighted(stats, masks, None, beta=0.5)
    np.testing.assert_allclose(output.loss_B, math.exp(-1.3) * softplus_of_minus(-0.25), rtol=1e-6)
    slope, plain = (jax.grad(total)(stats.logp_BPT, loss) for loss in (weighted, token_weighted.dpo_loss))
    np.testing.assert_allclose(slope, math.exp(-1.3) * plain, rtol=1e-6)


# ---------------------------------------------------------------- likelihood


def test_sft_gives_sums_and_counts_without_padding():
    """Rows of 2 and 3 tokens: -(-0.5 - 1.5) = 2.0 and -(-1.0 - 2.0 - 0.6) = 3.6.

    The loss of the batch is 5.6 / 5.
    """
    stats, _ = padded([HAND_PAIR], filler=np.nan)
    (nll, tokens), pull = jax.vjp(lambda logp: sequence.sft_nll(logp, stats.valid_BPT[0]), stats.logp_BPT[0])
    np.testing.assert_allclose(nll, [2.0, 3.6], rtol=1e-6)
    np.testing.assert_array_equal(tokens, [2.0, 3.0])
    np.testing.assert_array_equal(
        pull((jnp.ones(2), jnp.zeros(2)))[0], -np.asarray(stats.valid_BPT[0], np.float32)
    )


@pytest.mark.parametrize(("name", "own"), [("dpo", 0.0), ("sparsepo", 0.0), ("cpo", 3.0), ("orpo", 1.0)])
def test_nll_is_added_to_any_objective(name, own):
    """Chosen mean NLL of the hand pair: 1.0. `loss/nll` reports all of it, cpo's and orpo's own included."""
    stats, masks = padded([hand_pair(name)] * PAIRS, filler=np.nan)
    output = wrappers.with_nll(ALL[name].ours, 0.25)(stats, masks, None, **ALL[name].settings)
    np.testing.assert_allclose(output.loss_B, ALL[name].loss_by_hand + 0.25, rtol=1e-6)
    np.testing.assert_allclose(output.metrics["loss/nll"], own + 0.25, rtol=1e-6)
    assert float(output.metrics["margin"][0]) == pytest.approx(ALL[name].margin_by_hand, abs=1e-6)


def test_no_nll_weight_leaves_the_objective_as_it_is():
    assert wrappers.with_nll(token_weighted.dpo_loss, 0.0) is token_weighted.dpo_loss


# ---------------------------------------------------------------- metrics of every objective


def test_pair_metrics_by_hand():
    """Sums of the hand pair (above OBJECTIVES), and masks over its five tokens.

    Reward: mean 4.5/5, one zero. KL: mean 4.75/5, none.
    """
    stats, masks = padded([MASKED_PAIR], filler=np.nan)
    expected = {
        "margin_unmasked": 0.8 * -0.5, "accuracy_unmasked": 0.0,
        "kl/chosen": 0.4, "kl/rejected": 0.6, "logps/chosen": -2.0, "logps/rejected": -3.6,
        "mask/reward_mean": 0.9, "mask/reward_max": 2.0, "mask/reward_sparsity": 0.2,
        "mask/kl_mean": 0.95, "mask/kl_max": 2.0, "mask/kl_sparsity": 0.0,
    }  # fmt: skip
    metrics = pair_metrics(stats, masks, beta=0.8)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], [value], atol=1e-6, err_msg=key)


def test_log_ratios_by_hand():
    """Log-probs of the policy, less the reference's: D = -0.5 of the margin above."""
    stats, _ = padded([HAND_PAIR], filler=np.nan)
    metrics = {name: float(x[0]) for name, x in log_ratio_metrics(stats).items()}
    valid = np.asarray(stats.valid_BPT[0])
    by_hand = [
        float(np.sum((np.asarray(stats.logp_BPT) - np.asarray(stats.ref_logp_BPT))[0, p][valid[p]]))
        for p in range(2)
    ]
    assert metrics == pytest.approx(
        {"log_ratio/chosen": by_hand[0], "log_ratio/rejected": by_hand[1]}
    ) and by_hand[0] - by_hand[1] == pytest.approx(-0.5)


def test_pair_metrics_of_a_tie_and_of_filler_are_finite():
    same = (HAND_PAIR[0], HAND_PAIR[0])
    stats, masks = padded([same, HAND_PAIR], filler=np.nan)
    stats = stats._replace(valid_BPT=stats.valid_BPT.at[1].set(False))
    metrics = pair_metrics(stats, masks, beta=1.0)
    np.testing.assert_array_equal(metrics["accuracy_unmasked"], 0.5)
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert metrics["mask/reward_max"][1] == 0 and metrics["mask/reward_sparsity"][1] == 0


def test_a_negative_mask_has_its_own_largest_value():
    stats, masks = padded([MASKED_PAIR])
    negative = TokenMasks(-masks.reward_BPT - 1, masks.kl_BPT)
    np.testing.assert_allclose(pair_metrics(stats, negative, beta=1.0)["mask/reward_max"], [-1.0])
