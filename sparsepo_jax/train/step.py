"""The update: pure functions of state and batch, to be jitted with a donated state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.losses.sequence import sft_nll
from sparsepo_jax.train.forward import Problem, forward, pair_keys, response_logp
from sparsepo_jax.train.metrics import log_ratio_metrics, pair_metrics


class TrainState(NamedTuple):
    """All that training changes. weights: {"policy": ..., "masks": ...}, float32; step: batches done so far; skipped: those of them whose update
    was left out. Under LoRA "policy" holds the adapters alone, and the frozen base comes in as the reference."""

    weights: dict[str, Weights]
    optimizer: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]


Metrics = dict[str, Float[Array, ""]]


def start_state(weights: dict[str, Weights], optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(weights, optimizer.init(weights), jnp.int32(0), jnp.int32(0))


def make_pair_scores(problem: Problem, *, training: bool):
    """scores(weights, reference, batch, step) -> (metrics [B] of each pair, "loss" among them, TokenStats, TokenMasks)."""

    def scores(weights: dict[str, Weights], reference: Weights, batch: PairBatch, step: Array):
        key_B = pair_keys(problem.seed, step, batch.row_B)
        stats, masks = forward(
            problem, weights["policy"], weights["masks"], reference, batch, key_B, training=training
        )
        output = problem.objective(stats, masks, key_B)
        metrics = (
            {"loss": output.loss_B}
            | output.metrics
            | pair_metrics(stats, masks, beta=problem.beta)
            | log_ratio_metrics(stats)
        )
        if problem.cached:  # unknown is not zero
            metrics = {name: value for name, value in metrics.items() if not name.startswith("kl/")}
        return metrics, stats, masks

    return scores


def make_pair_loss(problem: Problem):
    """summed(weights, reference, batch, step) -> (loss, (sums of metrics, weight, loss [B])): the objective over the pairs of a batch, each
    counted by its weight."""
    scores = make_pair_scores(problem, training=True)

    def summed(weights, reference: Weights, batch: PairBatch, step: Array):
        metrics_B, _, _ = scores(weights, reference, batch, step)
        # where, not a product: a filler pair must not bring a NaN
        weighted_B = {
            name: jnp.where(batch.weight_B > 0, batch.weight_B * x_B, 0.0) for name, x_B in metrics_B.items()
        }
        sums = {name: jnp.sum(x_B) for name, x_B in weighted_B.items()}
        return sums["loss"], (sums, batch.weight_B.sum(), weighted_B["loss"])

    return summed


def make_sft_loss(problem: Problem):
    """summed(weights, base, batch, step) -> (loss, ({"loss"}, tokens, loss [B])): negative log-likelihood, each response token of the global batch
    counted the same. base: what adapters are trained on, None without."""

    def summed(weights, base: Weights | None, batch: PairBatch, step: Array):
        stats = response_logp(
            problem, weights["policy"], base, batch, pair_keys(problem.seed, step, batch.row_B)
        )
        nll_B, tokens_B = sft_nll(stats.logp_BPT[:, 0], stats.valid_BPT[:, 0])
        total, tokens = jnp.sum(nll_B), jnp.sum(tokens_B)
        return total, ({"loss": total}, tokens, nll_B)

    return summed


def make_update(summed_loss, optimizer: optax.GradientTransformationExtraArgs, learning_rate: optax.Schedule):
    """update(state, reference, batch) -> (state, metrics, finite [micro-steps, rows]). The batch is [micro-steps, rows, ...]: gradients of sums
    are added up and divided once, so that any number of micro-steps gives the update of one large batch.

    finite: whether the loss of each row is a finite number. If the whole loss or the gradient is not, weights and optimizer stay as they were:
    what came before is not lost by one batch.
    optimizer: one of optimizer.make_optimizer, which keeps its own state then. Of arrays of the weights' size a step with AdamW holds, beside the state,
    the gradient alone (with micro-steps twice: the sum, and what is added to it).
    """

    def update(
        state: TrainState, reference: Weights | None, batch: PairBatch
    ) -> tuple[TrainState, Metrics, Bool[Array, "A B"]]:
        differentiate = jax.value_and_grad(summed_loss, has_aux=True)

        def sums(micro_batch):
            (_, (metrics, weight, loss_B)), gradient = differentiate(
                state.weights, reference, micro_batch, state.step
            )
            return (gradient, metrics, weight), loss_B

        if batch.row_B.shape[0] == 1:
            (gradient, metrics, weight), loss_B = sums(jax.tree.map(lambda x: x[0], batch))
            loss_AB = loss_B[None]
        else:

            def add(total, micro_batch):
                more, loss_B = sums(micro_batch)
                return jax.tree.map(jnp.add, total, more), loss_B

            shapes, _ = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], batch))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (gradient, metrics, weight), loss_AB = jax.lax.scan(add, zeros, batch)
        scale = 1.0 / jnp.maximum(weight, 1e-30)
        norm = scale * optax.global_norm(gradient)
        metrics = {name: value * scale for name, value in metrics.items()}
        metrics |= {
            "grad_norm": norm,
            "learning_rate": jnp.asarray(learning_rate(state.step - state.skipped), jnp.float32),
        }
        if state.weights["masks"]:
            metrics["grad_norm/masks"] = scale * optax.global_norm(gradient["masks"])
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        mean = jax.tree.map(lambda g: g * scale, gradient)
        updates, optimizer_state = optimizer.update(
            mean, state.optimizer, state.weights, norm=norm, sound=sound
        )
        weights = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            optax.apply_updates(state.weights, updates),
            state.weights,
        )
        state = TrainState(weights, optimizer_state, state.step + 1, state.skipped + ~sound)
        return state, metrics | {"skipped": state.skipped.astype(jnp.float32)}, jnp.isfinite(loss_AB)

    return update
