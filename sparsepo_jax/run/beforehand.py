"""What a run would refuse only after work is done, or for lack of what was never made. No JAX here."""

from collections.abc import Iterator
from pathlib import Path

from sparsepo_jax.config.derive import stage_steps
from sparsepo_jax.config.schema.masking import warm_gate
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.stored_tensors import SafeTensors, is_mask_tensor
from sparsepo_jax.run.local import Count
from sparsepo_jax.run.resume import Marks


def rounded_reference(config: Config, dtype: str) -> str | None:
    """Why the reference, which is the policy itself, would not compute what the policy does; None: it would,
    or its weights tell.

    Args:
        config: of the run.
        dtype: of activations.
    """
    compares = not {"po", "score", "eval"}.isdisjoint(config.stages)
    is_policy = config.reference.path is None and config.reference.adapter is None and config.po.lora is None
    is_made_here = "sft" in config.stages or config.policy.path is None  # with all digits of float32
    held_apart = config.reference.dtype == "bfloat16" and config.compute.weights == "float32"
    if not (compares and is_policy and is_made_here and held_apart and dtype == "float32"):
        return None
    return (
        "reference.dtype: bfloat16 would round the reference's matrices and leave the policy's as they are, "
        "so that no log-ratio would start at 0: take auto, or also compute.weights=bfloat16"
    )


def warm_gate_mistakes(config: Config, rows: Count) -> Iterator[str]:
    """A gate that is still warm when po has seen its epochs; where po.steps is set, the settings tell.

    A po that has begun keeps its gate: its settings may not be changed any more.

    Args:
        config: of the run.
        rows: that an epoch of po sees.
    """
    if "po" not in config.stages or Marks(config).begun("po") or rows.number is None or not rows.exact:
        return
    if line := warm_gate(config.objective.mask, stage_steps(config.po, rows.number)):
        yield line


def unmade_mistakes(config: Config) -> Iterator[str]:
    """What stages read that neither this run makes nor another has made."""
    generations = Path(config.output_dir, "generations.jsonl")
    if "measure" in config.stages and "generate" not in config.stages and not generations.is_file():
        yield f"measure: it reads {generations}, which is not there: run the stage generate first"
    if not {"score", "eval"}.isdisjoint(config.stages) and "po" not in config.stages:
        yield from _unmade_weights(config)


def _unmade_weights(config: Config) -> Iterator[str]:
    """Trained weights beside the policy's with which pairs are scored, where po does not run."""
    try:
        is_trained = "po" in Marks(config).all() or Path(config.output_dir, "po", "start").exists()
    except UserError as error:
        yield str(error)
        return
    if is_trained:
        return
    mask = config.objective.mask
    needs = {
        "mask nets": mask is not None and mask.kind == "learned",
        "baseline": "baseline" in config.objective.reads,
    }
    for what in (name for name, is_needed in needs.items() if is_needed):
        if _may_hold(config, what) is False:
            where = config.policy.path or "random weights"
            yield (
                f"objective: score and eval read its {what}, po has not run here, and the policy ({where}) "
                "brings none: run the stage po first, or give a policy.path that has them"
            )


def _may_hold(config: Config, what: str) -> bool | None:
    """Whether policy.path or policy.adapter holds mask nets or a baseline; None: that is not known here."""
    policy = config.policy
    if policy.path is None:
        return False
    places = [Path(path) for path in (policy.adapter, policy.path) if path is not None]
    if not all(place.is_dir() for place in places):
        return None
    if any((place / "masks.safetensors").exists() for place in places):
        return None
    if what == "baseline":
        return False
    try:
        return any(map(is_mask_tensor, SafeTensors(places[-1]).shapes()))
    except UserError:  # said elsewhere
        return None
