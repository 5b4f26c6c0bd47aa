"""What is optimised and how it is computed: everything but weights and data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key

from sparsepo_jax.core.tree import Weights, merge_module
from sparsepo_jax.core.types import LossOutput, Scalar, TokenMasks, TokenStats
from sparsepo_jax.losses.wrappers import settings_of
from sparsepo_jax.masks.source import MaskSource
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.lora import split_adapters
from sparsepo_jax.ops.attention import AttentionKernel
from sparsepo_jax.ops.grouped import HERE, Dispatch
from sparsepo_jax.ops.logit_blocks import HeadBlocks
from sparsepo_jax.ops.splash_attention import Spread


def _unchanged(x: Array) -> Array:
    return x


class Problem(NamedTuple):
    """What is optimised and how it is computed: everything but weights and data.

    A jitted function takes it as an argument. It is a pytree whose leaves are numbers: the settings of the
    objective (if that is a jax.tree_util.Partial), beta among them, seed and anchor. All other fields are
    compared, and have to be equal, so that problems that differ in numbers alone share one compiled program.

    Attributes:
        policy_graph: the policy's structure, see core/tree.
        reference_graph: the reference's structure.
        mask_source: where token masks come from.
        objective: `objective(stats, masks, key_B)` gives the loss of each pair; a loss of losses/ with its
            settings bound as keywords. None: the models alone.
        seed: of all random draws.
        dtype: type of the policy's activations.
        unroll: whether the models' blocks are written out instead of looped over.
        attention: the kernel that computes attention, see ops/attention.
        head_blocks: the blocks in which log-probs and KL are computed, see ops/logprob_kl.
        constrain: pins the sharding of a model's states [R, S, D].
        spread: runs on each device what XLA cannot partition, see ops/splash_attention. None: a single
            device.
        adapted: the policy is the reference's base with adapters (LoRA) of its own, which alone are trained.
            Adapters of the reference stay as they are.
        dispatch: where and by what experts are computed, in mixtures of them.
        router_aux: factor of the routers' auxiliary loss, which is added to the objective; 0: there is none.
        replays_routing: the policy sends tokens to the experts that the reference chose.
        reads: what the objective reads beside log-probs and KL; see config/schema/objective_base.
        anchor: the log-ratio from which an objective of single responses judges them, nats; a step puts that
            of its batch here. A number, as the seed is.
        sums: of gradients of the policy's blocks so far, by path, to which the backward pass adds; a step
            puts them here. None: gradients are the usual ones.
        adds: whether a step of several micro-steps adds to them; see train/step.make_update.
        cached: the batch brings what the objective needs of the reference. The reference is not run, and the
            KL is unknown.
    """

    policy_graph: nnx.GraphDef
    reference_graph: nnx.GraphDef
    mask_source: MaskSource
    objective: Callable[[TokenStats, TokenMasks, Array], LossOutput]
    seed: int | Int[Array, ""]
    dtype: DTypeLike = jnp.float32
    unroll: bool = False
    attention: AttentionKernel = "blocks"
    head_blocks: HeadBlocks = HeadBlocks()
    constrain: Callable[[Array], Array] = _unchanged
    spread: Spread | None = None
    adapted: bool = False
    dispatch: Dispatch = HERE
    router_aux: float = 0.0
    replays_routing: bool = False
    reads: frozenset[str] = frozenset()
    anchor: Scalar = 0.0
    sums: Weights | None = None
    adds: bool = False
    cached: bool = False

    @property
    def beta(self) -> Scalar:
        """The beta of the objective, 1/nat; 1 where it has none.

        It scales the margin that is reported without masks.
        """
        beta = settings_of(self.objective).get("beta")
        return 1.0 if beta is None else beta

    def policy_weights(self, trained: Weights, base: Weights | None) -> Weights:
        """All weights of the policy.

        Args:
            trained: those that are trained: all of them, or the adapters.
            base: the frozen model under the adapters, without regard to adapters in it; unused if the
                policy is not adapted.
        """
        if not self.adapted:
            return trained
        if base is None:
            raise ValueError("adapters need the weights of their base")
        return {**split_adapters(base)[0], **trained}

    def policy(self, trained: Weights, base: Weights | None) -> Decoder:
        """The policy as a model.

        Args:
            trained: as for `policy_weights`.
            base: as for `policy_weights`.
        """
        return merge_module(self.policy_graph, self.policy_weights(trained, base))

    def reference(self, weights: Weights | None) -> Decoder:
        """The reference as a model.

        Args:
            weights: all of its weights, by path. None is refused: only a cached problem has none.
        """
        if weights is None:
            raise ValueError("the reference cannot run without its weights")
        return merge_module(self.reference_graph, weights)


# Any: JAX puts whatever it likes in the places of the numbers.
def _flatten(problem: Any) -> tuple[tuple[Any, ...], Any]:
    numbers = (problem.objective, problem.seed, problem.anchor, problem.sums)
    return numbers, problem._replace(objective=None, seed=None, anchor=None, sums=None)


def _unflatten(structure: Any, numbers: Sequence[Any]) -> Any:
    objective, seed, anchor, sums = numbers
    return structure._replace(objective=objective, seed=seed, anchor=anchor, sums=sums)


jax.tree_util.register_pytree_node(Problem, _flatten, _unflatten)


def pair_keys(
    seed: int | Int[Array, ""], step: int | Int[Array, ""], row_B: Int[Array, "B"]
) -> Key[Array, "B"]:
    """One random key a pair, so that draws do not depend on batching, micro-steps or hosts.

    Args:
        seed: of the run.
        step: number of the step, from 0.
        row_B: the pair's row in the data.

    Returns:
        Keys derived from seed, step and row alone.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)
