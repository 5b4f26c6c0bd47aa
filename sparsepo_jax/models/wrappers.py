"""Checkpoints that hold a text model of a known family beside what sees images: one row a `model_type`.

The text model is read by its own family's reader, from `text_config`. All else (vision tower, projector) is
left out of training, and an export takes it over as it lies. With text alone nothing of it is used: positions
of three kinds (Qwen's mrope) are then all the same, and rotate as plain ones do.

No JAX here.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparsepo_jax.models.config_fields import SpecError, shown
from sparsepo_jax.models.text_defaults import TEXT_DEFAULTS

ALONE = "model."  # what the names of a text model's tensors begin with, but for its head's
_NEW, _OLD, _TEXT = "model.language_model.", "language_model.model.", "model.text_model."
_TWICE = "model.language_model.model."  # as transformers 5.10 to 5.23 wrote some models
_NEW_BARE, _TEXT_BARE = "language_model.", "text_model."  # saved without the head: AutoModel's checkpoints
# What the names of the head begin with, by what the others begin with.
_BEFORE_HEAD = dict.fromkeys((ALONE, _NEW, _TWICE, _TEXT, _NEW_BARE, _TEXT_BARE), "") | {
    _OLD: "language_model."
}


class Wrapper(NamedTuple):
    """What is to be known of a model around a text model.

    Attributes:
        architecture: transformers' class.
        image_tokens: config fields with tokens that stand for a piece of an image -> their defaults.
        text: `model_type` of a text_config that names none.
        trunks: what the text model's names begin with in checkpoints; first that of transformers' modules.
        takes_flat: the text model's fields may stand beside the others, without a text_config.
        tied_by_either: head and embedding are one if the config or its text_config says so; else the config
            decides, and where it is silent the text_config.
        tied_from_outside: the config alone decides, and where it is silent they are two.
        plain_logits: its logits are neither scaled nor capped, whatever the text model alone does.
        stacked_experts: all experts of a layer are two tensors [E, in, out] of checkpoints, not one by one.
    """

    architecture: str
    image_tokens: Mapping[str, int]
    text: str
    trunks: tuple[str, ...] = (_NEW, _OLD, _TWICE, _NEW_BARE)
    takes_flat: bool = False
    tied_by_either: bool = False
    tied_from_outside: bool = False
    plain_logits: bool = True
    stacked_experts: bool = False


_QWEN_TOKENS = {"image_token_id": 151655, "video_token_id": 151656}
WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("Gemma3ForConditionalGeneration", {"image_token_index": 262144}, "gemma3_text"),
    "gemma4": Wrapper(
        "Gemma4ForConditionalGeneration",
        {"image_token_id": 258880, "video_token_id": 258884, "audio_token_id": 258881},
        "gemma4_text",
        trunks=(_NEW, _TWICE, _NEW_BARE),
        plain_logits=False,
    ),
    "mistral3": Wrapper("Mistral3ForConditionalGeneration", {"image_token_index": 10}, "mistral"),
    "qwen2_vl": Wrapper(
        "Qwen2VLForConditionalGeneration",
        _QWEN_TOKENS,
        "qwen2_vl_text",
        trunks=(_NEW, ALONE, _NEW_BARE),
        takes_flat=True,
        tied_by_either=True,
    ),
    "qwen2_5_vl": Wrapper(
        "Qwen2_5_VLForConditionalGeneration",
        _QWEN_TOKENS,
        "qwen2_5_vl_text",
        trunks=(_NEW, ALONE, _NEW_BARE),
        takes_flat=True,
        tied_by_either=True,
    ),
    "qwen3_vl": Wrapper(
        "Qwen3VLForConditionalGeneration",
        _QWEN_TOKENS,
        "qwen3_vl_text",
        trunks=(_NEW, _TWICE, _NEW_BARE),
        tied_from_outside=True,
    ),
    "qwen3_vl_moe": Wrapper(
        "Qwen3VLMoeForConditionalGeneration",
        _QWEN_TOKENS,
        "qwen3_vl_moe_text",
        trunks=(_NEW, _TWICE, _NEW_BARE),
        tied_from_outside=True,
        stacked_experts=True,
    ),
    "qwen3_5": Wrapper(
        "Qwen3_5ForConditionalGeneration",
        {"image_token_id": 248056, "video_token_id": 248057},
        "qwen3_5_text",
        trunks=(_NEW, _TWICE, _NEW_BARE),
    ),
    "qwen3_5_moe": Wrapper(
        "Qwen3_5MoeForConditionalGeneration",
        {"image_token_id": 248056, "video_token_id": 248057},
        "qwen3_5_moe_text",
        trunks=(_NEW, _TWICE, _NEW_BARE),
    ),
    "llava": Wrapper(
        "LlavaForConditionalGeneration", {"image_token_index": 32000}, "llama", tied_by_either=True
    ),
    "llava_next": Wrapper(
        "LlavaNextForConditionalGeneration", {"image_token_index": 32000}, "llama", tied_by_either=True
    ),
    "llava_onevision": Wrapper(
        "LlavaOnevisionForConditionalGeneration",
        {"image_token_index": 151646, "video_token_index": 151647},
        "qwen2",
        tied_by_either=True,
    ),
    "aya_vision": Wrapper("AyaVisionForConditionalGeneration", {"image_token_index": 255036}, "cohere2"),
    "cohere2_vision": Wrapper(
        "Cohere2VisionForConditionalGeneration",
        {"image_token_id": 255036},
        "cohere2",
        trunks=(_NEW, _TWICE, _NEW_BARE),
    ),
    "idefics3": Wrapper(
        "Idefics3ForConditionalGeneration", {"image_token_id": 128257}, "llama", trunks=(_TEXT, _TEXT_BARE)
    ),
    "smolvlm": Wrapper(
        "SmolVLMForConditionalGeneration", {"image_token_id": 128257}, "llama", trunks=(_TEXT, _TEXT_BARE)
    ),
    "internvl": Wrapper("InternVLForConditionalGeneration", {"image_token_id": 151667}, "qwen2"),
}
# Models that we have not, and that are near to some that we have -> why.
REFUSED = {
    "mllama": "layers of its text model look at the image (cross-attention)",
    "idefics": "layers of its text model look at the image (cross-attention)",
    "paligemma": "its text model sees a prompt in both directions",
    "gemma3n": "its layers get embeddings of their own and share keys and values",
    "llama4": "its text model has experts and layers of several kinds",
    "internvl_chat": "it needs code of its own: take the checkpoint for transformers, whose name ends in -hf",
}
# Text models with three kinds of positions (mrope), and the family that computes the same from text.
_FAMILIES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_5_text": "qwen3_5_text",
    "qwen3_5_moe_text": "qwen3_5_moe_text",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# Those of which transformers has a model of text alone that it loads from a wrapper's checkpoint, and saves
# under the wrapper's names again (AutoModelForCausalLM of Qwen3.5).
_ALONE_WITHIN = {"qwen3_5_text", "qwen3_5_moe_text"}
# What they always do, whatever their config says.
_ALWAYS = {"qwen3_vl_moe_text": {"norm_topk_prob": True}}
_MROPE = ("mrope_section", "mrope_interleaved")
# Fields of a flat config that are none of the text model's.
_NOT_OF_TEXT = {
    "text_config",
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
}


@dataclass(frozen=True)
class Wrapping:
    """What is kept of the wrapper of a text model.

    Attributes:
        model_type: of the config around it, one of WRAPPERS.
        image_tokens: ids in whose place the model expects a piece of an image, video or sound.
    """

    model_type: str
    image_tokens: tuple[int, ...]

    @property
    def row(self) -> Wrapper:
        """Its row in the table."""
        return WRAPPERS[self.model_type]


def read_wrapping(config: Mapping[Any, Any]) -> Wrapping | None:
    """The wrapper that a config describes; None: the config is that of a text model.

    Args:
        config: the content of a config.json.

    Raises:
        SpecError: a wrapper whose text model is none of ours, or a field that holds what it cannot.
    """
    name = config.get("model_type")
    if not isinstance(name, str):
        return None
    if name in REFUSED:
        raise SpecError(f"model_type: {name} is not supported: {REFUSED[name]}")
    if name not in WRAPPERS:
        return None
    tokens = []
    for field, default in WRAPPERS[name].image_tokens.items():
        other_name = field.replace("_index", "_id") if field.endswith("_index") else f"{field[:-3]}_index"
        value = config.get(field, config.get(other_name, default))
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise SpecError(f"{name}: {field}: expected a token id, got {shown(value)}")
        tokens.append(value)
    return Wrapping(name, tuple(tokens))


def read_text_config(config: Mapping[Any, Any], wrapping: Wrapping) -> dict[Any, Any]:
    """The config of the text model as if it stood alone, with what its class in transformers defaults.

    Args:
        config: the content of the wrapper's config.json.
        wrapping: what `read_wrapping` gave.

    Raises:
        SpecError: there is none, or one of another family.
    """
    row, name = wrapping.row, wrapping.model_type
    stored = config.get("text_config")
    if stored is None and row.takes_flat:
        stored = {key: value for key, value in config.items() if key not in _NOT_OF_TEXT}
        stored = {key: value for key, value in stored.items() if key not in ("model_type", "architectures")}
    if not isinstance(stored, Mapping):
        raise SpecError(
            f"{name}: text_config: expected an object, got {shown(stored)}; where the fields of the text "
            "model stand beside the others, the checkpoint is for its authors' code: take the one for "
            "transformers (its name often ends in -hf)"
        )
    kind = stored.get("model_type") or row.text
    if row.takes_flat and kind == name:  # as older versions wrote it
        kind = row.text
    if not isinstance(kind, str) or kind not in TEXT_DEFAULTS:
        known = ", ".join(TEXT_DEFAULTS)
        raise SpecError(f"{name}: text_config.model_type: {shown(kind)} is not supported; known: {known}")
    defaults = TEXT_DEFAULTS[kind]
    if "num_local_experts" in stored:  # another name of the field
        defaults = {field: value for field, value in defaults.items() if field != "num_experts"}
    text = {**defaults, **stored, **_ALWAYS.get(kind, {}), "model_type": _FAMILIES.get(kind, kind)}
    text["tie_word_embeddings"] = _is_tied(config, text, row, name)
    if kind in _FAMILIES:
        for field in ("rope_scaling", "rope_parameters"):
            if isinstance(text.get(field), Mapping):
                text[field] = _as_plain_rotation(text[field])
    return text


def _is_tied(config: Mapping[Any, Any], text: Mapping[Any, Any], row: Wrapper, name: str) -> bool:
    """text: with the defaults of its class."""
    outer, inner = config.get("tie_word_embeddings"), text.get("tie_word_embeddings", False)
    for value in (outer, inner):
        if value is not None and not isinstance(value, bool):
            raise SpecError(f"{name}: tie_word_embeddings: expected true or false, got {shown(value)}")
    if row.tied_from_outside:
        return bool(outer)
    if row.tied_by_either:
        return bool(outer or inner)
    return bool(inner if outer is None else outer)


def _as_plain_rotation(rope: Mapping[Any, Any]) -> dict[Any, Any]:
    """The rotary fields for text: all three positions of a token are then the same."""
    plain = {key: value for key, value in rope.items() if key not in _MROPE}
    for key in ("rope_type", "type"):
        if plain.get(key) == "mrope":
            plain[key] = "default"
    return plain


def from_scratch_problem(config: Mapping[Any, Any]) -> str | None:
    """What to do with a config that describes a wrapper, where no checkpoint is; None: it describes none.

    Args:
        config: the content of policy.config.
    """
    name = config.get("model_type")
    if name not in WRAPPERS:
        return None
    return (
        f"{name} is a text model and what sees images, which only a checkpoint can bring: set policy.path, "
        "or give the fields of text_config alone, with its model_type"
    )


# ---------------------------------------------------------------- names of tensors


def placed(name: str, trunk: str, new_trunk: str) -> str:
    """A tensor's name where the text model lies elsewhere.

    Args:
        name: where it lies in `trunk`.
        trunk: ALONE, or one of a wrapper's `trunks`.
        new_trunk: another of them.
    """
    if name.startswith(trunk):
        return new_trunk + name.removeprefix(trunk)
    return _BEFORE_HEAD[new_trunk] + name.removeprefix(_BEFORE_HEAD[trunk])


def name_in(wrapping: Wrapping | None, names: Collection[str]) -> Callable[[str], str]:
    """A function from a tensor's full name, as transformers' modules have it, to its name in a checkpoint.

    Args:
        wrapping: of the checkpoint; None: the text model stands alone, and all names stay.
        names: of the checkpoint's tensors.
    """
    if wrapping is None:
        return str
    trunks = wrapping.row.trunks
    return functools.partial(placed, trunk=trunks[0], new_trunk=_stored_trunk(wrapping, names))


def names_within(family: str, name: str) -> list[str]:
    """Other names that a tensor of a text model alone may have; none in most families.

    Args:
        family: its `model_type`.
        name: the tensor's full name.
    """
    return [placed(name, ALONE, _NEW)] if family in _ALONE_WITHIN else []


def trunks_of_adapters(wrapping: Wrapping | None, family: str) -> tuple[str, ...]:
    """What the text model's names begin with in adapters for a wrapper, first that of its own modules.

    Args:
        wrapping: the wrapper; None: the text model stands alone, and there is one name.
        family: the text model's `model_type`.
    """
    if wrapping is None:
        return ()
    alone = (ALONE,) if family in _ALONE_WITHIN else ()
    return tuple(dict.fromkeys((*wrapping.row.trunks, *alone)))


def carried_names(wrapping: Wrapping | None, names: Collection[str]) -> list[str]:
    """The tensors of a wrapper that are none of its text model's; an export takes them over.

    Args:
        wrapping: of the checkpoint; None: the text model stands alone, and there are none.
        names: of the checkpoint's tensors.
    """
    if wrapping is None:
        return []
    trunk = _stored_trunk(wrapping, names)
    of_text = (trunk, f"{_BEFORE_HEAD[trunk]}lm_head.")
    return [name for name in names if not name.startswith(of_text)]


def _stored_trunk(wrapping: Wrapping, names: Collection[str]) -> str:
    """What the text model's names begin with in a checkpoint; as in transformers' modules if nothing fits."""
    trunks = wrapping.row.trunks
    fitting = (trunk for trunk in trunks if any(name.startswith(f"{trunk}layers.") for name in names))
    return next(fitting, trunks[0])


# ---------------------------------------------------------------- config.json of an export


def with_text_fields(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other fields of its text model, where these stand.

    Args:
        config: the content of a config.json.
        fields: name -> value.
    """
    if config.get("model_type") in WRAPPERS and isinstance(config.get("text_config"), Mapping):
        return {**config, "text_config": {**config["text_config"], **fields}}
    return {**config, **fields}
