"""What follows from a configuration and a few facts of models and data, for `--check` and for the run.

No JAX here.
"""

import math
from typing import Literal

from sparsepo_jax.config.schema.compute import Mesh
from sparsepo_jax.config.schema.data import Data, Source
from sparsepo_jax.config.schema.masks import LearnedMask
from sparsepo_jax.config.schema.models import BpeTokenizer, ByteTokenizer, Tokenizer
from sparsepo_jax.config.schema.objectives import AotBase, Mix, Objective
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Schedule, Training
from sparsepo_jax.config.schema.weighing import Weighs
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.steps import steps_of_epochs

DEFAULT_LENGTH = 2048  # tokens of prompt and response
DEFAULT_WARMUP_SHARE = 0.1
BYTE_TOKENS = 257  # a token for each byte, and one for the beginning and end of text
MASK_HIDDEN = 200  # width of the two-layer mask nets


def is_unpaired(objective: Objective) -> bool:
    """Whether the objective is one of single responses with a label."""
    return "label" in objective.reads


def masked_terms(objective: Objective) -> Literal["both", "reward", "kl", "reward_only"]:
    """Where the objective's mask is put: what `on` says, but the reward alone where there is no KL term."""
    mask = objective.mask
    if isinstance(objective.weighs, Weighs) and not objective.weighs.kl:
        return "reward_only"
    return "both" if mask is None else mask.on


def shown_mask(objective: Objective) -> Literal["reward", "kl"] | None:
    """Which mask figures are of: the KL's where it is put on that alone; None: there is no mask."""
    if objective.mask is None:
        return None
    return "kl" if masked_terms(objective) == "kl" else "reward"


def length_limits(data: Data, positions: int | None, note: str = "") -> tuple[int, int]:
    """The longest prompt + response and the longest prompt, tokens.

    By default the smaller of 2048 and the model's positions, and half of that.

    Args:
        positions: of the model; None: not known.
        note: why the model has no more positions, for the message.

    Raises:
        UserError: they do not fit the model or each other.
    """
    most = DEFAULT_LENGTH if positions is None else positions
    longest = data.max_length or min(DEFAULT_LENGTH, most)
    if positions is not None and longest > positions:
        raise UserError(
            f"data.max_length: {longest} tokens do not fit the model's {positions} positions{note}; "
            f"set it to {positions} or less"
        )
    prompt = data.max_prompt_length or longest // 2
    if prompt >= longest:
        raise UserError(
            f"data.max_prompt_length: {prompt} leaves no room for a response within {longest} tokens; "
            "set it lower"
        )
    return longest, prompt


def stage_steps(training: Training, rows_per_epoch: int) -> int:
    """Optimizer steps of a training stage."""
    if training.steps is not None:
        return training.steps
    return steps_of_epochs(training.epochs or 1.0, math.ceil(rows_per_epoch / training.batch_size))


def warmup_steps(schedule: Schedule, steps: int) -> int:
    """Steps of the warm-up in a stage of `steps`; all of them at the most."""
    if schedule.warmup_steps is not None:
        return min(schedule.warmup_steps, steps)
    share = DEFAULT_WARMUP_SHARE if schedule.warmup_share is None else schedule.warmup_share
    return round(steps * share)


def micro_steps_matter(config: Config, stage: str) -> bool:
    """Whether another number of micro-steps changes an update by more than rounding.

    So it does where a part of the loss is that of a micro-step as a whole.

    Args:
        stage: sft or po.
    """
    if getattr(config, stage).router_aux_coefficient > 0:
        return True
    return stage == "po" and sorts_pairs(config.objective)


def layout_matters(config: Config, stage: str) -> bool:
    """Whether another compute.layout changes an update by more than rounding.

    So it does where each token of a prompt counts by itself: in the routers' auxiliary loss, and in what is
    drawn for an adapter's dropout.

    Args:
        stage: sft, po, or another, which does not train.
    """
    if stage != "po":  # sft has one response a prompt
        return False
    return config.po.router_aux_coefficient > 0 or (config.po.lora is not None and config.po.lora.dropout > 0)


def sorts_pairs(objective: Objective) -> bool:
    """Whether an objective, or a part of it, compares quantiles of a batch instead of pairs.

    Args:
        objective: the section.
    """
    singles = [part.objective for part in objective.parts] if isinstance(objective, Mix) else [objective]
    return any(isinstance(single, AotBase) for single in singles)


def least_shards(mesh: Mesh) -> int:
    """Parts that a micro-step's rows are cut into, over data x fsdp; an axis that is free counts as 1."""
    return (mesh.data or 1) * (mesh.fsdp or 1)


def batch_problem(name: str, batch_size: int, micro_steps: int, shards: int) -> str | None:
    """What is wrong if the rows of a micro-step cannot be cut evenly; None: nothing.

    Args:
        name: the setting to blame.
        batch_size: rows, over all micro-steps and devices.
        shards: of each micro-step.
    """
    if batch_size % (micro_steps * shards) == 0:
        return None
    remedy = f"take a multiple of {micro_steps * shards}"
    if micro_steps > 1 and batch_size % shards == 0:  # the same update, by other micro-steps
        fewer = math.gcd(batch_size // shards, micro_steps)
        remedy = f"set {name.removesuffix('batch_size')}accumulation={fewer}, or {remedy}"
    return (
        f"{name}: {batch_size} rows in {micro_steps} micro-step(s) cannot be cut over {shards} shards "
        f"(data x fsdp); {remedy}"
    )


def vocabulary_size(tokenizer: Tokenizer) -> int | None:
    """Tokens of a tokenizer that is made here (of a BPE at the most); None: its files or its words tell."""
    match tokenizer:
        case ByteTokenizer():
            return BYTE_TOKENS
        case BpeTokenizer():
            return tokenizer.vocab_size
    return None


def mask_parameters(objective: Objective, width: int, num_layers: int) -> int:
    """Parameters of the learned mask nets, one or two; 0 where no mask is learned.

    Args:
        width: of the reference's states, which the nets read.
        num_layers: of the reference.
    """
    mask = objective.mask
    if not isinstance(mask, LearnedMask):
        return 0
    of_layer = width + 1
    if mask.net.startswith("ml"):
        of_layer = width * MASK_HIDDEN + MASK_HIDDEN + MASK_HIDDEN + 1
    net = of_layer
    if mask.net.endswith("all"):
        mixer, shared_norm = num_layers, 2 * width
        net = num_layers * of_layer + mixer + shared_norm
    return 2 * net if mask.sharing == "independent" and masked_terms(objective) == "both" else net


def evaluation_lists(data: Data) -> dict[str, list[Source]]:
    """The lists of sources in data.eval by their place in the section `data`: eval, or eval.NAME for each."""
    if isinstance(data.eval, dict):
        return {f"eval.{name}": sources for name, sources in data.eval.items()}
    return {"eval": data.eval}


def evaluation_sources(data: Data) -> list[Source]:
    """All sources of data.eval, whatever set they belong to."""
    return [source for sources in evaluation_lists(data).values() for source in sources]


def main_set(config: Config) -> str | None:
    """The name of the set that headlines are about; None where the sets have no names."""
    names = config.data.set_names
    return config.evaluation.main or names[0] if names else None


def metric_starts(config: Config, name: str) -> list[str]:
    """How names of a set's metrics begin: eval of the main set, eval_NAME of each that has a name.

    Args:
        name: of the set; "" where data.eval has no names.
    """
    starts = ["eval"] if name == (main_set(config) or "") else []
    return [*starts, f"eval_{name}"] if name else starts


def decided_by_evaluation(config: Config) -> bool:
    """Whether what po leaves depends on its evaluations: when it stops, or which weights are kept."""
    return config.po.early_stopping is not None or config.po.keep == "best"
