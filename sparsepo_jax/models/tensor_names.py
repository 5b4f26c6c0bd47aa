"""Under which name a checkpoint has each tensor of a decoder, and which tensors are left out.

Both as transformers does when it loads. No JAX here.
"""

from collections.abc import Callable, Collection, Iterator

from sparsepo_jax.core.errors import escaped
from sparsepo_jax.models.config_fields import listed
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.families import family_rules
from sparsepo_jax.models.stored_tensors import BUFFERS, is_mask_tensor
from sparsepo_jax.models.wrappers import carried_names, name_in, names_within

# What the head may be called, besides a tied one that is stored under this name alone.
HEADS = ("lm_head.weight", "embed_out.weight", "language_model.lm_head.weight")
# Qwen's heads that predict later tokens, which transformers leaves out without a word.
_LATER_TOKENS = "mtp."
_TOWER = "model.visual."  # beside a text model under its wrapper's names


def embedding_name(spec: DecoderSpec) -> str:
    """The full name of the token embedding.

    Args:
        spec: the decoder.
    """
    return next(rule.theirs for rule in family_rules(spec) if rule.ours == ("embed.embedding",))


def stored_names(spec: DecoderSpec, names: Collection[str]) -> Callable[[str], str]:
    """A function from a tensor's full name to its name in a checkpoint; the full name if it is not there.

    A checkpoint of the bare trunk lacks the first part of the names, one of a module that calls the model as
    the model calls its trunk has it twice, and one of a wrapper may have another. A tied embedding may be
    stored under the name of the head alone.

    Args:
        spec: the decoder.
        names: of the checkpoint's tensors.
    """
    embedding, placed_name = embedding_name(spec), name_in(spec.wrapping, names)

    def candidates(full_name: str) -> Iterator[str]:
        name = placed_name(full_name)
        yield name
        yield name.split(".", 1)[1]
        if spec.wrapping is None:
            yield f"{embedding.split('.', 1)[0]}.{name}"
            yield from names_within(spec.family, name)
            yield module_name(spec, name)
        if full_name in HEADS or (full_name == embedding and spec.tied_head):
            yield from HEADS

    def stored_name(full_name: str) -> str:
        return next((name for name in candidates(full_name) if name in names), full_name)

    return stored_name


def module_name(spec: DecoderSpec, name: str) -> str:
    """A tensor's name as transformers' modules have it, where checkpoints have another: Mixtral's experts.

    Args:
        spec: the decoder.
        name: in a checkpoint.
    """
    return name.replace(".block_sparse_moe.", ".mlp.") if spec.family == "mixtral" else name


def carried(spec: DecoderSpec, names: Collection[str]) -> list[str]:
    """The tensors of a checkpoint that an export takes over as they lie.

    All of a wrapper's that are none of its text model's, and heads that predict later tokens.

    Args:
        spec: the decoder.
        names: of the checkpoint's tensors.
    """
    if not may_carry(spec):
        return []
    if spec.wrapping is not None:
        return carried_names(spec.wrapping, names)
    return [name for name in names if name.startswith(_LATER_TOKENS)]


def may_carry(spec: DecoderSpec) -> bool:
    """Whether checkpoints of a decoder have such tensors: wrappers, and Qwen's models with delta nets.

    Args:
        spec: the decoder.
    """
    return spec.wrapping is not None or any(kind.shape.delta is not None for kind in spec.kinds)


def unread_names(spec: DecoderSpec, names: Collection[str]) -> tuple[set[str], set[str]]:
    """(tensors that a checkpoint may have and that are not read, those of them that a note must name).

    transformers leaves out whatever its class has not. We do so outside of the decoder (heads for values,
    rewards or drafts) and with buffers; a tensor within the decoder would mean another model.

    Args:
        spec: the decoder.
        names: of the checkpoint's tensors.
    """
    silent = {name for name in names if name.endswith(BUFFERS) or is_mask_tensor(name)}
    silent |= set(carried(spec, names))
    if spec.wrapping is not None:
        return silent, set()
    if any(names_within(spec.family, embedding_name(spec))):
        silent |= {name for name in names if name.startswith(_TOWER)}
    first_parts = {part for rule in family_rules(spec) for part in rule.theirs.split(".")[:2]}
    first_parts |= {head.split(".")[0] for head in HEADS}
    outside = {name for name in names if name.split(".")[0] not in first_parts} - silent
    return silent | outside, outside


def note_of_tensors(spec: DecoderSpec, names: Collection[str], where: str) -> str | None:
    """One line that lists the tensors of a checkpoint which are left out; None: there are none.

    Args:
        spec: the decoder.
        names: of the checkpoint's tensors.
        where: the checkpoint's name.
    """
    _, outside = unread_names(spec, names)
    if not outside:
        return None
    why = f"tensors ignored, since transformers' {spec.family} does not read them either"
    return escaped(f"{where}: {why}: {listed(outside, 12)}")
