"""The weights that a stage starts from, holds against, or reads: policy, reference and masks."""

from typing import NamedTuple

import jax.numpy as jnp

from sparsepo_jax.build.compute import compute_dtype, reference_type
from sparsepo_jax.build.loading import load_weights
from sparsepo_jax.build.masks import stored_masks
from sparsepo_jax.build.weights import (
    abstract,
    adapter_weights,
    add_adapter,
    held_base,
    initial_adapters,
    offloaded,
    offloads_reference,
    random_weights,
    start_shapes,
    trained_shapes,
)
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.lora import is_matrix, split_adapters
from sparsepo_jax.run.adapters import same_model
from sparsepo_jax.run.resume import trains_adapter_further
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.train.checkpoint import load_once
from sparsepo_jax.train.rounding import spread


class Compared(NamedTuple):
    """The weights that an evaluation compares.

    start: before po, without what it has changed; None: not known. now: as they are.
    """

    start: dict[str, Weights] | None
    now: dict[str, Weights]
    reference: Weights


def trained(run: Run, stage: str) -> dict[str, Weights]:
    """{"policy", "masks"} as a finished stage left them: what po trains, or the whole policy after sft."""
    lora = run.lora("po") if stage == "po" else None
    masks = run.problem.mask_source if stage == "po" else None
    like = abstract(trained_shapes(run.spec, lora), masks, run.mesh, held=run.config.compute.weights)
    return load_once(run.marks.origin(stage) / stage / "final", like)


def say_finished(run: Run, stage: str, where: str = "") -> None:
    """Says that a training stage is finished, and if the weights that it left here are gone."""
    final = run.output_dir / stage / "final"
    is_gone = "taken_from" not in run.marks.all()[stage] and not final.exists()
    say(f"{stage}: finished before{where}" + (f"; {final} is gone" if is_gone else ""))


def starting_policy(run: Run) -> Weights:
    """The policy that po starts from, held as compute.weights says.

    What sft left (here or in sft.taken_from), else policy.path, else random weights.

    policy.adapter is merged into policy.path, or lies beside it where po trains it further.
    """
    return held_base(_read_policy(run), run.config.compute.weights, run.mesh)


def policy_to_train(run: Run) -> Weights:
    """The starting policy as all its weights are trained from it: it computes what starting_policy does.

    Where weights are rounded to bfloat16 in every step, those that are such numbers are moved within what
    rounds to the same number, see train/rounding: else training would not be seen before it has moved a
    weight by half of its last digit.
    """
    policy = starting_policy(run)
    if compute_dtype(run.config, run.mesh) != jnp.bfloat16 or run.config.compute.weights != "float32":
        return policy
    matrices = {path: policy.pop(path) for path in list(policy) if is_matrix(path)}
    return policy | spread(matrices, run.config.seed)


def _read_policy(run: Run) -> Weights:
    config = run.config
    if run.marks.finished("sft"):
        return trained(run, "sft")["policy"]
    own = run.output_dir / "sft"  # of an sft that was interrupted, or whose stages.json was deleted
    if "sft" not in config.stages and (run.marks.begun("sft") or (own / "final").exists()):
        raise UserError(
            f"{own} lies there, and stages.json does not say that the stage sft is finished: run it again "
            f"with the stage sft first, which goes on from its last checkpoint, or delete {own} to do "
            "without it"
        )
    if config.sft.taken_from is not None and "sft" not in config.stages:
        raise UserError(
            f"sft.taken_from: the stage sft takes what {config.sft.taken_from} has trained, and has not been "
            "run here: add it to stages"
        )
    if config.policy.path is None:
        if "sft" not in config.stages:
            run.note("the policy is random weights: there is no policy.path, and no sft has trained it")
        return random_weights(run.spec, config.seed, run.mesh)
    _ = run.checkpoint_dtype  # says which type the weights come in
    merged = not trains_adapter_further(config)
    # An adapter is merged in float32, and rounded with what it changes.
    held = "float32" if merged and config.policy.adapter is not None else config.compute.weights
    weights = load_weights(config.policy.path, run.spec, run.mesh, held)
    return _with_adapter(run, weights, config.policy.adapter, "policy.adapter", merged=merged)


def _with_adapter(run: Run, weights: Weights, path: str | None, where: str, *, merged: bool) -> Weights:
    """The weights with the adapter in `path`, if any, merged or beside them."""
    if path is None:
        return weights
    adapter = Adapter(path, run.spec if where == "policy.adapter" else run.reference_spec, where)
    _say_other_base(adapter, run.config)
    if merged:
        return add_adapter(weights, adapter, run.mesh)
    return weights | adapter_weights(adapter, run.mesh)


def _say_other_base(adapter: Adapter, config: Config) -> None:
    """Notes that an adapter was trained on a model of another name.

    Names may differ and mean the same model.
    """
    base = adapter.config.base
    path = getattr(config, adapter.where.removesuffix(".adapter")).path or config.policy.path
    if base and not same_model(base, path):
        say(
            f"note: {adapter.where}: {adapter.path} says that it was trained on {base}; it is put onto {path}"
        )


def start_weights(run: Run) -> dict[str, Weights] | None:
    """{"policy", "masks"} as po found them; None if po has not begun.

    Raises:
        UserError: they are gone, or damaged.
    """
    directory = run.output_dir / "po" / "start"
    if not directory.exists():
        if run.marks.finished("po"):
            raise UserError(
                f"{directory} is gone, from which po began and with which its end is compared; bring back a "
                f"copy, or delete {directory.parent} and stages.json beside it to run the stage po anew"
            )
        return None
    lora = run.lora("po") if trains_adapter_further(run.config) else None
    shapes, held = start_shapes(run.spec, lora), run.config.compute.weights
    return load_once(directory, abstract(shapes, run.problem.mask_source, run.mesh, held=held))


def reference_weights(run: Run, start: dict[str, Weights] | None = None) -> Weights:
    """The reference: reference.path or reference.adapter, else the policy as it was when po began.

    Where po has not begun, that is the policy itself. Under po.lora the reference brings the base that the
    policy shares with it, and the adapters that stay on it.

    Args:
        start: what start_weights gives, if the caller has it.
    """
    chosen = run.config.reference
    lora = run.config.po.lora
    if lora is None and reference_is_chosen(run.config):
        held = reference_type(run.config, run.mesh)
        weights = load_weights(
            chosen.path or run.config.policy.path,
            run.reference_spec,
            run.mesh,
            held if chosen.adapter is None else "float32",
        )
        weights = _with_adapter(run, weights, chosen.adapter, "reference.adapter", merged=True)
        weights = held_base(weights, held, run.mesh)
        return offloaded(run.config, weights)
    start = start_weights(run) if start is None else start
    policy = starting_policy(run) if start is None else start["policy"]
    if lora is None:
        return offloaded(run.config, _held_as_policy(run, policy))
    if reference_is_chosen(run.config):
        if run.marks.finished("sft"):
            raise UserError(
                "reference: under po.lora the reference stands on what sft left; leave out reference.path "
                "and "
                "reference.adapter, or po.lora"
            )
        base = split_adapters(policy)[0]
        policy = _with_adapter(run, base, chosen.adapter, "reference.adapter", merged=False)
    return held_base(policy, lora.base, run.mesh)


def _held_as_policy(run: Run, policy: Weights) -> Weights:
    """The policy as the reference is held. UserError: it would not compute what the policy does."""
    held = reference_type(run.config, run.mesh)
    reference = held_base(policy, held, run.mesh)
    if held == "bfloat16" and compute_dtype(run.config, run.mesh) != jnp.bfloat16:
        changed = [path for path, x in policy.items() if bool(jnp.any(x != reference[path]))]
        if changed:
            raise UserError(
                f"reference.dtype: bfloat16 would round {len(changed)} matrices of the reference and leave "
                "the policy's as they are, so that no log-ratio would start at 0: take auto, or also "
                "compute.weights=bfloat16"
            )
    return reference


def is_policy_itself(run: Run) -> bool:
    """Whether the reference is the very arrays that po starts from: the same model, held in the same type."""
    is_held_alike = reference_type(run.config, run.mesh) == run.config.compute.weights
    return is_held_alike and not reference_is_chosen(run.config) and not offloads_reference(run.config)


def reference_is_chosen(config: Config) -> bool:
    """Whether the config names a reference; otherwise it is the policy as po began."""
    return (config.reference.path or config.reference.adapter) is not None


def adapted(run: Run, start: dict[str, Weights]) -> dict[str, Weights]:
    """What po trains when it begins: `start` itself, or with the policy's adapters in the policy's place.

    The adapters are new where the policy brings none.
    """
    lora = run.lora("po")
    if lora is None:
        return start
    adapters = split_adapters(start["policy"])[1]
    return start | {"policy": adapters or initial_adapters(run.spec, lora, run.config.seed, run.mesh)}


def finished_po(run: Run) -> bool:
    """Whether there is a finished po. UserError: po has begun and is not finished."""
    if run.marks.finished("po"):
        return True
    if (run.output_dir / "po" / "start").exists():
        raise UserError(f"stage po in {run.output_dir} is not finished: run it again with the stage po first")
    return False


def current_policy(run: Run) -> Weights:
    """The policy as it is now, or its adapters: what answers prompts."""
    if finished_po(run):
        return trained(run, "po")["policy"]
    return adapted(run, {"policy": starting_policy(run)})["policy"]


def current_weights(run: Run) -> dict[str, Weights]:
    """{"policy", "masks"} to score with: of the finished po, else policy.path with its stored masks."""
    if finished_po(run):
        return trained(run, "po")
    masks = stored_masks(run.config, run.problem.mask_source, run.mesh)
    return adapted(run, {"policy": starting_policy(run), "masks": masks})
