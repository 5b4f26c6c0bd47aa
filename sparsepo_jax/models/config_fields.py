"""The fields of a Hugging Face `config.json`: which are read, which change nothing, which have one value.

No JAX here, and transformers is not imported (that takes seconds). The tables hold an opinion on every field
that its config classes know; a test compares them with the installed transformers.
"""

import ast
import difflib
import functools
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import escaped


class SpecError(ValueError):
    """A config that we cannot run as it is meant; the message says why in one line."""

    def __init__(self, message: str):
        super().__init__(escaped(message))


class Fields(NamedTuple):
    """The fields that are read, under the names of the family, and the names of those that change nothing."""

    config: dict[str, Any]
    ignored: tuple[str, ...]


# ---------------------------------------------------------------- what is read

_GPT2 = """vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon
    initializer_range tie_word_embeddings"""
_LLAMA = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters
    partial_rotary_factor initializer_range tie_word_embeddings"""
_QWEN = f"{_LLAMA} hidden_act use_sliding_window layer_types"
_GEMMA = f"""{_LLAMA} hidden_activation attention_bias query_pre_attn_scalar sliding_window layer_types
    final_logit_softcapping attn_logit_softcapping use_bidirectional_attention"""
_READ = {
    "gpt2": f"{_GPT2} scale_attn_weights scale_attn_by_inverse_layer_idx add_cross_attention",
    "gpt_bigcode": f"{_GPT2} scale_attn_weights add_cross_attention multi_query num_key_value_heads",
    "gptj": f"{_GPT2} rotary_dim",
    "gpt_neox": """vocab_size max_position_embeddings hidden_size num_hidden_layers num_attention_heads
        intermediate_size hidden_act layer_norm_eps rotary_pct rotary_emb_base rope_theta rope_scaling
        rope_parameters use_parallel_residual attention_bias head_dim initializer_range
        tie_word_embeddings""",
    "llama": f"{_LLAMA} hidden_act attention_bias mlp_bias",
    "mistral": f"{_LLAMA} hidden_act sliding_window",
    "qwen2": _QWEN,
    "qwen3": f"{_QWEN} attention_bias",
    "olmo2": f"{_LLAMA} hidden_act attention_bias",
    "gemma2": _GEMMA,
    "gemma3_text": f"{_GEMMA} rope_local_base_freq sliding_window_pattern",
}
READ: dict[str, frozenset[str]] = {family: frozenset(names.split()) for family, names in _READ.items()}

# Other names that transformers takes for a field of the family (its `attribute_map`).
_GPT_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
OTHER_NAMES: dict[str, dict[str, str]] = dict.fromkeys(("gpt2", "gpt_bigcode", "gptj"), _GPT_NAMES)

# Fields that transformers knows, or knew, and that do not change the forward pass of a dense decoder: names,
# token ids, dropouts (we train without, as every official recipe does), summary heads of other tasks, precision
# of the softmax (ours is float32), slices of the same product (`pretraining_tp`), training and generation.
HARMLESS = frozenset(
    [
        "model_type",
        "architectures",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "tokenizer_class",
        "task_specific_params",
        "gradient_checkpointing",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
        "summary_activation",
        "summary_first_dropout",
        "summary_last_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "reorder_and_upcast_attn",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "pretraining_tp",
        "max_window_layers",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_return_dict",
        "is_decoder",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "chunk_size_feed_forward",
        "finetuning_task",
        "prefix",
        "output_past",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "_attn_implementation",
        "attn_implementation",
        "_experts_implementation",
        "experts_implementation",
        "tie_last_hidden_states",
        "_sliding_window_pattern",
        "transformers_weights",
        "fusion_config",
        "distributed_config",
        "cache_implementation",
        "bad_words_ids",
        "do_sample",
        "early_stopping",
        "length_penalty",
        "max_length",
        "min_length",
        "max_new_tokens",
        "min_new_tokens",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "diversity_penalty",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "suppress_tokens",
        "begin_suppress_tokens",
        "return_dict_in_generate",
        "output_scores",
        "output_logits",
        "renormalize_logits",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "is_assistant",
    ]
)
_OF_FAMILY = {
    "qwen2": {"sliding_window"},
    "qwen3": {"sliding_window"},
}  # off unless use_sliding_window is true


class _Switch(NamedTuple):
    """A field that makes another model unless it is absent, null or at one value.

    off: true, false, or None where every empty value switches it off.
    """

    off: bool | None
    remedy: str = ""


_UNQUANTISED = (
    "since quantised weights are no plain numbers: take the unquantised checkpoint that it was made from"
)
_NO_DECODER = "only decoders that read nothing but their own tokens"
# What the authors of a checkpoint meant by these is plain, whether transformers' class knows them or not.
_SWITCHES = {
    "quantization_config": _Switch(None, _UNQUANTISED),
    "quantization": _Switch(None, _UNQUANTISED),
    "compression_config": _Switch(None, _UNQUANTISED),
    "rope_interleaved": _Switch(False),
    "use_mrope": _Switch(False),
    "alibi": _Switch(False),
    "scale_attn_weights": _Switch(True),
    "scale_attn_by_inverse_layer_idx": _Switch(False),
    "use_sliding_window": _Switch(False),
    "use_bidirectional_attention": _Switch(False),
    "is_causal": _Switch(True),
    "add_cross_attention": _Switch(False, _NO_DECODER),
    "cross_attention_hidden_size": _Switch(None, _NO_DECODER),
    "is_encoder_decoder": _Switch(False, _NO_DECODER),
    "tie_encoder_decoder": _Switch(False, _NO_DECODER),
    "pruned_heads": _Switch(None, "all layers must have the same heads"),
    "per_layer_config": _Switch(None, "all layers must have the same shape"),
}


# ---------------------------------------------------------------- what a field may hold


class Kind(NamedTuple):
    """What a field may hold: in words, and as a test."""

    expected: str
    fits: Callable[[Any], bool]


def _integer(most: int) -> Kind:
    def fits(value: Any) -> bool:
        return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most)

    return Kind(f"a positive integer up to {most:,}", fits)


def _number(most: float) -> Kind:
    """The upper bound keeps out infinity, NaN (no comparison holds) and integers that are no float."""

    def fits(value: Any) -> bool:
        return value is None or (
            isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most
        )

    return Kind(f"a number above 0 and up to {most:g}", fits)


def _is_texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


# null would mean false to one reader and the default to another
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = Kind("a text", lambda value: value is None or isinstance(value, str))
_TEXTS = Kind("a list of texts", _is_texts)
# Far beyond any model, far from what would hang or overflow us.
_SIZE, _COUNT, _BASE = _integer(2**24), _integer(2**14), _number(1e15)

_ROTARY: dict[str, Kind] = {
    "rope_type": _TEXT,
    "type": _TEXT,
    "rope_theta": _BASE,
    "factor": _number(1e6),
    "low_freq_factor": _number(1e6),
    "high_freq_factor": _number(1e6),
    "original_max_position_embeddings": _integer(2**31 - 1),
    "partial_rotary_factor": _number(1),
}
_LAYER_KINDS = {"full_attention": _ROTARY, "sliding_attention": _ROTARY}  # Gemma 3 has a set for each

# What the fields hold that any family reads; a mapping within has kinds of its own. null stands for absent.
_KINDS: dict[str, Kind | dict] = {
    **dict.fromkeys(
        ["vocab_size", "n_embd", "hidden_size", "n_inner", "intermediate_size", "head_dim", "rotary_dim"],
        _SIZE,
    ),
    **dict.fromkeys(
        [
            "n_layer",
            "num_hidden_layers",
            "n_head",
            "num_attention_heads",
            "num_key_value_heads",
            "sliding_window_pattern",
        ],
        _COUNT,
    ),
    **dict.fromkeys(["n_positions", "max_position_embeddings", "sliding_window"], _integer(2**31 - 1)),
    **dict.fromkeys(
        ["layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "rotary_pct", "partial_rotary_factor"],
        _number(1),
    ),
    **dict.fromkeys(["rotary_emb_base", "rope_theta", "rope_local_base_freq"], _BASE),
    **dict.fromkeys(
        ["initializer_range", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"],
        _number(1e6),
    ),
    **dict.fromkeys(
        [
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "use_parallel_residual",
            "multi_query",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "add_cross_attention",
            "use_sliding_window",
        ],
        _FLAG,
    ),
    "use_bidirectional_attention": Kind(
        "true, false or null", lambda value: value is None or isinstance(value, bool)
    ),
    "activation_function": _TEXT,
    "hidden_act": _TEXT,
    "hidden_activation": _TEXT,
    "layer_types": _TEXTS,
    "rope_scaling": _ROTARY,
    "rope_parameters": _ROTARY | _LAYER_KINDS,
}


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Kind | dict], where: str) -> None:
    for name in kinds.keys() & values.keys():
        kind, value = kinds[name], values[name]
        if isinstance(kind, dict):
            if value is not None and not isinstance(value, dict):
                raise SpecError(f"{where}{name}: expected an object or null, got {shown(value)}")
            _check_kinds(value or {}, kind, f"{where}{name}.")
        elif not kind.fits(value):
            raise SpecError(f"{where}{name}: expected {kind.expected}, got {shown(value)}")


# ---------------------------------------------------------------- words


def shown(value: Any) -> str:
    """A value in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or lists within lists
        text = f"a {type(value).__name__} too large to be shown"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Any, most: int = 8) -> str:
    """Names in a message, sorted."""
    ordered = sorted(_cut(name) if isinstance(name, str) else shown(name) for name in names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def first(*values: Any) -> Any:
    """The first that is there."""
    return next(value for value in values if value is not None)


def needed(config: dict[str, Any], family: str, key: str, default: Any = None) -> Any:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise SpecError(f"{family}: {key}: missing; it has no default that all checkpoints share")
    return value


# ---------------------------------------------------------------- the rule


def check_fields(config: Mapping[Any, Any], family: str) -> Fields:
    """The fields under the names that the family reads, and those that change nothing.

    Args:
        config: The content of a config.json.
        family: Its `model_type`, one of `READ`.

    Returns:
        What is read, and the names that nobody knows: transformers' class of this family does
        not read them either, so they cannot change what it computes.

    Raises:
        SpecError: A field holds what it cannot, makes another model, or is known to transformers only.
    """
    own = _own_names(config, family)
    read = READ[family]
    _check_kinds(own, {name: kind for name, kind in _KINDS.items() if name in read}, f"{family}: ")
    _check_task(own, family)
    _check_switches(own, family)
    known = (
        read
        | HARMLESS
        | _SWITCHES.keys()
        | _OF_FAMILY.get(family, set())
        | {"auto_map", "rotary", "layer_types"}
    )
    unknown = [name for name in own if not isinstance(name, str) or name not in known]
    if unknown:
        _refuse_known_elsewhere(own, family, unknown)
    # Code beside the checkpoint: it does not run here, nor in transformers by default.
    if own.get("auto_map"):
        unknown.append("auto_map")
    unknown += _unread_of_rope(own, family)
    return Fields({name: value for name, value in own.items() if name in read}, tuple(unknown))


def _own_names(config: Mapping[Any, Any], family: str) -> dict[Any, Any]:
    own, names = dict(config), OTHER_NAMES.get(family, {})
    for other, name in names.items():
        value = own.pop(other, None)
        if value is None:
            continue
        if own.get(name) not in (None, value):
            raise SpecError(
                f"{family}: {other} {shown(value)} and {name} {shown(own[name])} mean the same; "
                "keep the right one"
            )
        own[name] = value
    return own


_OTHER_TASKS = re.compile(
    "SequenceClassification|TokenClassification|QuestionAnswering|Reward|SequenceRegression"
)


def _check_task(config: Mapping[str, Any], family: str) -> None:
    """A classifier or reward model lacks the head of a language model."""
    names = config.get("architectures")
    if not _is_texts(names):
        raise SpecError(f"{family}: architectures: expected a list of texts or null, got {shown(names)}")
    for name in names or []:
        if _OTHER_TASKS.search(name):
            raise SpecError(
                f"{family}: architectures: {shown(name)} is a classifier or reward model; "
                "expected a language model (a reward model goes into scorer.path)"
            )


def _check_switches(config: Mapping[str, Any], family: str) -> None:
    switches = {**_SWITCHES, "rotary": _Switch(family not in ("gpt2", "gpt_bigcode"))}
    for name, switch in switches.items():
        if not _is_off(config.get(name), switch.off):
            expected = switch.remedy or f"only {str(switch.off).lower()}"
            raise SpecError(f"{family}: {name}: {shown(config[name])} is not supported, {expected}")
    if "layer_types" not in READ[family]:
        _check_layer_types(config, family)


def _is_off(value: Any, off: bool | None) -> bool:
    if off is None:
        return value is None or (isinstance(value, (dict, list, str, bool)) and not value)
    return value is None or value is off


def _check_layer_types(config: Mapping[str, Any], family: str) -> None:
    """Where all layers are alike, a list of their kinds may only say so."""
    kinds = config.get("layer_types")
    if kinds is None:
        return
    local = family == "mistral" and config.get("sliding_window", True) is not None
    expected = "sliding_attention" if local else "full_attention"
    if not _is_texts(kinds) or set(kinds) - {expected}:
        raise SpecError(
            f"{family}: layer_types: {shown(kinds)} is not supported, only {expected!r} in every layer"
        )


# The fields that each kind of rotation reads.
_PLAIN = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_ROPE_READ = {"default": _PLAIN, "linear": _PLAIN | {"factor"}, "llama3": set(_ROTARY)}


def rope_kind(rope: Mapping[str, Any]) -> str:
    """default, linear, llama3, or one that we do not have."""
    return rope.get("rope_type") or rope.get("type") or "default"


def _unread_of_rope(config: Mapping[str, Any], family: str) -> list[str]:
    """The fields within rope_scaling and rope_parameters that their kind of rotation does not read."""
    unread = []
    sets = {
        name: config.get(name) or {} for name in ("rope_scaling", "rope_parameters") if name in READ[family]
    }
    for kind in _LAYER_KINDS:
        sets[f"rope_parameters.{kind}"] = sets.get("rope_parameters", {}).get(kind) or {}
    for where, rope in sets.items():
        if rope.get("mrope_section") is not None:
            raise SpecError(
                f"{family}: {where}.mrope_section: {shown(rope['mrope_section'])} is not supported, "
                "only positions of text are"
            )
        read = _ROPE_READ.get(rope_kind(rope), set(rope)) | _LAYER_KINDS.keys()
        unread += [f"{where}.{name}" for name in rope if name not in read]
    return unread


_ABSENT = object()


def _refuse_known_elsewhere(config: Mapping[Any, Any], family: str, unknown: list[Any]) -> None:
    """A newer transformers may know fields that our tables do not: they must be at its default."""
    installed = fields_of_installed(family)
    for name in unknown:
        if not isinstance(name, str) or name not in installed:
            continue
        default = installed[name]
        if config[name] is not None and (default is _ABSENT or default != config[name]):
            raise SpecError(
                f"{family}: {_cut(name)}: {shown(config[name])} is not supported: the installed transformers "
                "reads this field, and this program does not know it yet"
            )


# Gemma 3's file holds the models that see images, too.
_OF_IMAGES = {"image_token_id", "mm_tokens_per_image", "text_config", "token_type_ids", "vision_config"}


@functools.cache
def fields_of_installed(family: str) -> dict[str, Any]:
    """The fields that the installed transformers' files of a family read, with their defaults.

    Read from its source text, since importing it takes seconds; {} where it is not installed.
    """
    try:
        package = importlib.util.find_spec("transformers")
    except ValueError:  # kept from being imported
        return {}
    if package is None or package.origin is None:
        return {}
    folder = family.removesuffix("_text")
    models = Path(package.origin).parent / "models" / folder
    try:
        config = (models / f"configuration_{folder}.py").read_text(encoding="utf-8")
        model = (models / f"modeling_{folder}.py").read_text(encoding="utf-8")
    except OSError:
        return {}
    parts = re.split(r"^(?=class )", config, flags=re.MULTILINE)
    text_config = "".join(parts[:2])  # up to the first class: Gemma 3's file has others below
    fields = _fields_read(model) | _fields_read(text_config) | _fields_declared(text_config)
    return {name: default for name, default in fields.items() if name not in _OF_IMAGES}


def _fields_read(source: str) -> dict[str, Any]:
    names = re.findall(r"\bconfig\.(\w+)\b(?!\()", source)
    names += re.findall(r"\bconfig, \"(\w+)\"", source)
    names += re.findall(r"\bkwargs\.(?:pop|get)\(\"(\w+)\"", source)
    return dict.fromkeys(names, _ABSENT)


def _fields_declared(source: str) -> dict[str, Any]:
    """`name: type = default` of the classes of a configuration file."""
    declared: dict[str, Any] = {}
    for name, default in re.findall(r"^    (\w+): [^=\n]+ = (.+)$", source, re.MULTILINE):
        try:
            declared[name] = ast.literal_eval(default)
        except (ValueError, SyntaxError):
            declared[name] = _ABSENT
    return declared


def note_of_ignored(
    ignored: tuple[Any, ...], config: Mapping[Any, Any], family: str, where: str
) -> str | None:
    """One line that lists the fields which change nothing, and what mistyped ones may mean; None: no such."""
    if not ignored:
        return None
    why = f"config fields ignored, since transformers' {family} does not read them either"
    text = f"{where}: {why}: {listed(ignored, 60)}"
    free = [name for name in READ[family] if name not in config]
    for name in ignored[:60]:
        near = difflib.get_close_matches(str(name)[:60], free, 1, 0.88)
        if near:
            text += f" (was {near[0]} meant by {_cut(str(name))}?)"
    return escaped(text)
