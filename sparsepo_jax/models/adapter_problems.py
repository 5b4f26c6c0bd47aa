"""What an adapter holds that its model cannot take, and what to do. No JAX here."""

import re
from collections.abc import Iterable

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.weight_rules import Rule

# Towers and projectors around text models, as their modules are called in transformers.
_OF_TOWER = re.compile(r"\.(visual|vision_\w+|audio_\w+|embed_vision|multi_modal_projector|connector)\.")
_OF_TOKENS = {"embed.embedding", "head.embedding"}


def tower_problem(names: Iterable[str]) -> str | None:
    """A line if an adapter adapts what lies around a text model; None: it does not.

    Args:
        names: of its tensors.
    """
    of_tower = min(filter(_OF_TOWER.search, names), default=None)
    if of_tower is None:
        return None
    return (
        f"{of_tower} adapts what sees images, which is not loaded here: merge the adapter into its model "
        "with PEFT (merge_and_unload), and start from that"
    )


def rows_problem(name: str, rows: int, rule: Rule, spec: DecoderSpec) -> str | None:
    """A line if a complete embedding or head is one of another vocabulary; None: it fits, or is none.

    Args:
        name: the tensor's.
        rows: that it has.
        rule: which of our arrays it is.
        spec: the decoder.
    """
    if rule.ours[0] not in _OF_TOKENS or rows == spec.vocab_size:
        return None
    return (
        f"{name} has {rows:,} rows and the model {spec.vocab_size:,}: where tokens were added for training, "
        f"add them to the model, too (transformers: resize_token_embeddings({rows})), save it, and take that"
    )
