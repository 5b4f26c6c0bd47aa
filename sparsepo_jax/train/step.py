"""The update: pure functions of state and batch, to be jitted with a donated state."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from sparsepo_jax.core.labels import of_classes
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.sequence import sft_nll
from sparsepo_jax.ops.routing import router_metrics
from sparsepo_jax.train.anchor import Running, anchor_sums, next_anchor, start_running, with_labels
from sparsepo_jax.train.change import Facts, changed, changed_in_turn
from sparsepo_jax.train.forward import forward, response_logp
from sparsepo_jax.train.metrics import log_ratio_metrics, pair_metrics
from sparsepo_jax.train.problem import Problem, pair_keys
from sparsepo_jax.train.rounding import rounding_words, widened


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
        weights: {"policy": ..., "masks": ...}, float32; the policy's matrices may be bfloat16. Under LoRA
            "policy" holds the adapters alone, and the frozen base comes in as the reference.
        optimizer: the optimizer's state.
        step: batches done so far.
        skipped: those of them whose update was left out.
    """

    weights: dict[str, Weights]
    optimizer: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]


class RunningState(NamedTuple):
    """The same with a running mean: a kind of its own, so that checkpoints of all others stay as they were.

    Attributes:
        weights: see TrainState, as for the next three.
        optimizer: the optimizer's state.
        step: batches done so far.
        skipped: those of them whose update was left out; they do not count in the running mean.
        running: the mean log-ratio of all rows so far.
    """

    weights: dict[str, Weights]
    optimizer: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    running: Running


State = TrainState | RunningState
MicroBatches = Annotated[PairBatch, "every array has a leading axis U of micro-steps"]
Metrics = dict[str, Float[Array, ""]]
PairScores = Callable[
    [dict[str, Weights], Weights | None, PairBatch, Int[Array, ""]],
    tuple[dict[str, Float[Array, "B"]], TokenStats, TokenMasks],
]
# (weights, reference, batch, step), the anchor where the objective has one, and sums=; see Problem
SummedLoss = Callable[..., tuple[Float[Array, ""], tuple[Metrics, Array, Float[Array, "B"]]]]
Update = Callable[[State, Weights | None, MicroBatches], tuple[State, Metrics, Bool[Array, "U B"]]]


def start_state(
    weights: dict[str, Weights], optimizer: optax.GradientTransformation, *, running: bool = False
) -> State:
    """The state before the first step.

    Args:
        weights: {"policy": ..., "masks": ...}, taken as they are, without a copy.
        optimizer: one of make_optimizer.
        running: whether the objective reads the mean log-ratio of all rows so far.
    """
    state = TrainState(weights, optimizer.init(weights), jnp.int32(0), jnp.int32(0))
    return RunningState(*state, start_running()) if running else state


def make_pair_scores(problem: Problem, *, training: bool) -> PairScores:
    """The objective and all metrics of single pairs.

    Args:
        problem: what is computed.
        training: switches dropout on.

    Returns:
        `scores(weights, reference, batch, step)`, which gives (metrics [B], "loss" among them; statistics;
        masks). Where the problem is cached, metrics of the KL are left out: it is unknown. So are those of
        masks where the objective has none.
    """

    def scores(
        weights: dict[str, Weights], reference: Weights | None, batch: PairBatch, step: Int[Array, ""]
    ) -> tuple[dict[str, Float[Array, "B"]], TokenStats, TokenMasks]:
        key_B = pair_keys(problem.seed, step, batch.row_B)
        stats, masks, routers = forward(
            problem,
            weights["policy"],
            weights["masks"],
            reference,
            batch,
            key_B,
            training=training,
            step=step if training else None,
        )
        stats = with_labels(problem, stats, batch)
        with jax.named_scope("objective"):
            output = problem.objective(stats, masks, key_B)
        with jax.named_scope("metrics"):
            metrics = {
                "loss": output.loss_B,
                **output.metrics,
                **pair_metrics(stats, masks, beta=problem.beta),
                **log_ratio_metrics(stats),
            }
            if routers is not None:  # of all pairs together
                B = batch.row_B.shape
                metrics |= {name: jnp.broadcast_to(x, B) for name, x in router_metrics(routers).items()}
        if problem.cached:  # unknown is not zero
            metrics = {name: value for name, value in metrics.items() if not name.startswith("kl/")}
        if not problem.mask_source.reported:  # no mask is not a mask of ones
            metrics = {name: value for name, value in metrics.items() if not name.startswith("mask/")}
        return metrics, stats, masks

    return scores


def make_pair_loss(problem: Problem) -> SummedLoss:
    """The objective over the pairs of a batch, each counted by its weight.

    Args:
        problem: what is computed.

    Returns:
        `summed(weights, reference, batch, step, anchor, sums)`, which gives (sum of the losses, the routers'
        auxiliary loss among them if the problem asks for it; (sums of all metrics, sum of the pairs' weights,
        weighted loss [B])). anchor: see train/anchor; sums: see Problem.
    """

    def summed(
        weights: dict[str, Weights],
        reference: Weights | None,
        batch: PairBatch,
        step: Int[Array, ""],
        anchor: Scalar = 0.0,
        sums: Weights | None = None,
    ) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, ""], Float[Array, "B"]]]:
        scores = make_pair_scores(problem._replace(anchor=anchor, sums=sums), training=True)
        metrics_B, _, _ = scores(weights, reference, batch, step)
        # where, not a product: a filler pair must not bring a NaN
        weighted_B = {
            name: jnp.where(batch.weight_B > 0, batch.weight_B * x_B, 0.0) for name, x_B in metrics_B.items()
        }
        metrics = {name: jnp.sum(x_B) for name, x_B in weighted_B.items()}
        total = metrics["loss"]
        if problem.router_aux:
            total = total + problem.router_aux * metrics["router/auxiliary_loss"]
        return total, (metrics, batch.weight_B.sum(), weighted_B["loss"])

    return summed


def make_sft_loss(problem: Problem) -> SummedLoss:
    """Negative log-likelihood, in which each response token of the global batch counts by its row's weight.

    Rows weigh 1 unless the data says otherwise: then every token counts the same.

    Args:
        problem: what is computed; its objective and masks are not used.

    Returns:
        `summed(weights, base, batch, step, sums)`, which gives (sum over tokens in nats, ({"loss": the
        same, ...}, number of tokens, times their rows' weights, sum of each row [B])). base: what adapters
        are trained on; None without adapters. sums: see Problem.
    """

    def summed(
        weights: dict[str, Weights],
        base: Weights | None,
        batch: PairBatch,
        step: Int[Array, ""],
        sums: Weights | None = None,
    ) -> tuple[Float[Array, ""], tuple[Metrics, Float[Array, ""], Float[Array, "B"]]]:
        key_B = pair_keys(problem.seed, step, batch.row_B)
        stats, routers = response_logp(problem._replace(sums=sums), weights["policy"], base, batch, key_B)
        with jax.named_scope("objective"):
            nll_B, tokens_B = sft_nll(stats.logp_BPT[:, 0], stats.valid_BPT[:, 0])
            nll_B = batch.weight_B * nll_B
            total, tokens = jnp.sum(nll_B), jnp.sum(batch.weight_B * tokens_B)
        metrics = {"loss": total}
        if routers is not None:
            metrics |= {name: tokens * x for name, x in router_metrics(routers).items()}
        if problem.router_aux:
            total = total + problem.router_aux * metrics["router/auxiliary_loss"]
        return total, (metrics, tokens, nll_B)

    return summed


def make_update(
    summed_loss: SummedLoss,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: optax.Schedule,
    *,
    dtype: DTypeLike = jnp.float32,
    seed: int | Int[Array, ""] = 0,
    in_turn: bool = False,
    anchored: Problem | None = None,
    adds: bool = False,
) -> Update:
    """A training step.

    Gradients of sums are added up over micro-steps and divided once, so that any number of micro-steps
    gives the update of one large batch (but for what looks at a micro-step as a whole: the objectives of
    losses/quantiles, and the routers' own loss). If the loss or the gradient is not finite, weights and
    optimizer stay as they were, so that one batch cannot destroy what was learnt before.

    The policy's matrices are brought into the type of the activations once a step, not once in each layer
    and pass. So their gradients come in that type, and are summed over micro-steps in float32.

    Beside the state, a step with AdamW holds the matrices in that type, if it is another one, and one array
    of the weights' size, the gradient. With several micro-steps it holds two, the sum and what is added to
    it; with `adds` of blocks the sum alone.

    Args:
        summed_loss: of make_pair_loss or make_sft_loss.
        optimizer: one of make_optimizer, which can leave its own state as it was.
        learning_rate: the policy's schedule, to be reported.
        dtype: of the policy's activations.
        seed: of the draws that round what is held in bfloat16.
        in_turn: change one weight after another, for an optimizer's state that lies on the host.
        anchored: the problem, if its objective's anchor is computed from each global batch before the loss.
        adds: of several micro-steps, let the backward pass add the gradient of each block to its sum, so that
            it never holds those of all blocks; each block is then computed again from its input.

    Returns:
        `update(state, reference, batch)`, which gives (state, metrics, finite). The batch is [micro-steps,
        rows, ...]. Metrics are means over the global batch, together with the learning rate, the gradient's
        norms, the number of updates left out so far, and the weight of the batch's rows together. finite,
        bool [micro-steps, rows], says whether the loss of each row is a finite number.
    """

    def update(
        state: State, reference: Weights | None, batch: MicroBatches
    ) -> tuple[State, Metrics, Bool[Array, "U B"]]:
        weights = {**state.weights, "policy": in_type(state.weights["policy"], dtype)}
        anchor: tuple[Scalar, ...] = ()
        running = None
        if anchored is not None:
            anchor, running = _anchor(anchored, weights, reference, batch, state)

        def loss(weights: dict[str, Weights], micro_batch: PairBatch, **sums: Weights) -> Any:
            return summed_loss(weights, reference, micro_batch, state.step, *anchor, **sums)

        gradients = _added_in_blocks if adds and batch.row_B.shape[0] > 1 else _added
        (gradient, metrics, weight), loss_UB = gradients(loss, weights, batch)
        # Else XLA puts the layers' gradients together once for each array that the optimizer changes.
        gradient = widened(jax.lax.optimization_barrier(gradient))
        weight = jnp.maximum(weight, 1e-30)
        scale = 1.0 / weight
        norm = scale * optax.tree.norm(gradient)
        # A quotient, not a product with scale: the mean of ones is 1 to the bit.
        metrics = of_classes({name: value / weight for name, value in metrics.items()}, jnp.divide)
        metrics["grad_norm"] = norm
        metrics["learning_rate"] = jnp.asarray(learning_rate(state.step - state.skipped), jnp.float32)
        if state.weights["masks"]:
            metrics["grad_norm/masks"] = scale * optax.tree.norm(gradient["masks"])
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        with jax.named_scope("optimizer"):
            mean = jax.tree.map(lambda g: g * scale, gradient)
            change = changed_in_turn if in_turn else changed
            facts = Facts(norm, sound, rounding_words(seed, state.step))
            weights, optimizer_state = change(optimizer, mean, state.weights, state.optimizer, facts)
        done = TrainState(weights, optimizer_state, state.step + 1, state.skipped + ~sound)
        if isinstance(state, RunningState):
            kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), running, state.running)
            state = RunningState(*done, kept)
        else:
            state = done
        metrics["skipped"] = state.skipped.astype(jnp.float32)
        metrics["weight"] = weight
        return state, metrics, jnp.isfinite(loss_UB)

    return update


def _anchor(
    problem: Problem,
    weights: dict[str, Weights],
    reference: Weights | None,
    batch: MicroBatches,
    state: State,
) -> tuple[tuple[Scalar], Running | None]:
    """((the anchor of a global batch,), the running mean with the batch in it): a pass without gradient."""
    fixed = jax.lax.stop_gradient(weights)

    def sums(micro_batch: PairBatch) -> tuple[tuple[Array, Array], Float[Array, "B"]]:
        return anchor_sums(problem, fixed, reference, micro_batch, state.step), micro_batch.weight_B

    (total, rows), _ = _over_micro_steps(sums, batch)
    running = state.running if isinstance(state, RunningState) else None
    anchor, running = next_anchor(total, rows, running)
    return (anchor,), running


def in_type(policy: Weights, dtype: DTypeLike) -> Weights:
    """The weights with those that products read in one type.

    Embeddings keep theirs: their rows are few, and a tied head is cast where it is read.

    Args:
        policy: weights by path.
        dtype: of the activations.
    """
    return {path: x.astype(dtype) if path.endswith(_READ_BY_PRODUCTS) else x for path, x in policy.items()}


_READ_BY_PRODUCTS = (".kernel", ".lora_a", ".lora_b", "head.embedding")


def _added(
    loss: Callable[..., Any], weights: dict[str, Weights], batch: MicroBatches
) -> tuple[tuple[Any, Metrics, Array], Float[Array, "U B"]]:
    """Sums over micro-steps of gradients, metrics and the pairs' weights; the loss of each row."""
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def sums(micro_batch: PairBatch) -> tuple[tuple[Any, Metrics, Array], Float[Array, "B"]]:
        (_, (metrics, weight, loss_B)), gradient = differentiate(weights, micro_batch)
        return (gradient, metrics, weight), loss_B

    return _over_micro_steps(sums, batch)


def _added_in_blocks(
    loss: Callable[..., Any], weights: dict[str, Weights], batch: MicroBatches
) -> tuple[tuple[Any, Metrics, Array], Float[Array, "U B"]]:
    """What `_added` gives, of a backward pass that adds each block's gradient to its sum; see
    ops/adding_scan."""
    blocks = {path: x for path, x in weights["policy"].items() if path.startswith("blocks.")}
    rest = {**weights, "policy": {path: x for path, x in weights["policy"].items() if path not in blocks}}

    def loss_of_parts(rest: dict[str, Weights], sums: Weights, micro_batch: PairBatch) -> Any:
        return loss({**rest, "policy": {**blocks, **rest["policy"]}}, micro_batch, sums=sums)

    differentiate = jax.value_and_grad(loss_of_parts, argnums=(0, 1), has_aux=True)

    def gradients(sums: Weights, micro_batch: PairBatch) -> tuple[Any, Weights, Float[Array, "B"]]:
        (_, (metrics, weight, loss_B)), (gradient, sums) = differentiate(rest, sums, micro_batch)
        return (gradient, metrics, weight), sums, loss_B

    def add(carried: tuple[Any, Weights], micro_batch: PairBatch) -> tuple[Any, Float[Array, "B"]]:
        total, sums = carried
        more, sums, loss_B = gradients(sums, micro_batch)
        return (jax.tree.map(jnp.add, total, more), sums), loss_B

    sums = _zeros(blocks)
    shapes, _, _ = jax.eval_shape(gradients, sums, jax.tree.map(lambda x: x[0], batch))
    (total, sums), loss_UB = jax.lax.scan(add, (_zeros(shapes), sums), batch)
    gradient, metrics, weight = total
    return ({**gradient, "policy": {**gradient["policy"], **sums}}, metrics, weight), loss_UB


def _zeros(like: Any) -> Any:
    """Zeros to add arrays like these to, float32 for bfloat16: sums need more digits than gradients."""
    return widened(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))


def _over_micro_steps(
    sums: Callable[[PairBatch], tuple[Any, Float[Array, "B"]]], batch: MicroBatches
) -> tuple[Any, Float[Array, "U B"]]:
    """Adds `sums` up over the micro-steps of a batch, and stacks what comes beside them."""
    first = jax.tree.map(lambda x: x[0], batch)
    if batch.row_B.shape[0] == 1:
        total, loss_B = sums(first)
        return total, loss_B[None]

    def add(total: Any, micro_batch: PairBatch) -> tuple[Any, Float[Array, "B"]]:
        more, loss_B = sums(micro_batch)
        return jax.tree.map(jnp.add, total, more), loss_B

    shapes, _ = jax.eval_shape(sums, first)
    return jax.lax.scan(add, _zeros(shapes), batch)
