"""What config.json and adapter_config.json tell of a run's models, before their weights are read."""

from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.config.derive import vocabulary_size
from sparsepo_jax.config.schema.models import ReviewsTokenizer, Tokenizer
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.placeholders import first_placeholder
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.adapter_config import read_adapter_config
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.directory import check_end_tokens, inner_adapter_problem, read_config
from sparsepo_jax.models.spec import fields_note, spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.weight_files import NoWeights
from sparsepo_jax.models.weights import check_tensors
from sparsepo_jax.run.adapters import describe_adapter, same_model, settle_lora
from sparsepo_jax.run.local import MODEL_ID, Count, is_local
from sparsepo_jax.run.resume import trains_adapter_further


class Model(NamedTuple):
    """What is known of a model.

    Nothing of one on the Hub, and no parameter count where the size of the vocabulary is unknown.
    """

    origin: str
    spec: DecoderSpec | None = None
    parameters: int | None = None
    notes: tuple[str, ...] = ()  # of config fields that are ignored, and of what is not there yet


def read_policy(config: Config, mistakes: list[str]) -> Model:
    """The policy by its config.json, or by policy.config where the checkpoint is not here.

    Without either, its spec is not known.
    """
    path, content = config.policy.path, config.policy.config
    if path is not None and (content is None or Path(path).exists()):
        return read_model(path, "policy.path", mistakes, adapted=config.policy.adapter is not None)
    if path is not None:
        return _read_spec(content, f"{path} (not here; shape by policy.config)", "policy.config", mistakes)
    if content is None:
        return Model("none")
    if "vocab_size" not in content and config.tokenizer.kind == "auto":
        mistakes.append("policy.config.vocab_size: needed where there is no tokenizer to take it from")
    vocab_size = content.get("vocab_size", tokens_of(config.tokenizer))
    known_content = {**content, "vocab_size": 1 if vocab_size is None else vocab_size}
    model = _read_spec(known_content, "from scratch", "policy.config", mistakes)
    return model._replace(parameters=None) if vocab_size is None else model


def tokens_of(tokenizer: Tokenizer) -> int | None:
    """Tokens of a tokenizer that is made here (of a BPE at the most); None: its files tell."""
    if isinstance(tokenizer, ReviewsTokenizer):
        from sparsepo_jax.data.reviews import reviews_vocabulary

        return len(reviews_vocabulary())
    return vocabulary_size(tokenizer)


def read_model(path: str, where: str, mistakes: list[str], *, adapted: bool = False) -> Model:
    """A checkpoint by its config.json, and whether its files of weights can be read.

    Args:
        path: a directory or Hub id.
        where: the setting that names it.
        mistakes: gets a line if it is unfit.
        adapted: an adapter is put onto it, so that one beside it does not matter.
    """
    if not is_local(path, where, mistakes, MODEL_ID):
        return Model(path)
    setting = where.removesuffix(".path")
    directory = Path(path)
    if not adapted and (problem := inner_adapter_problem(directory, setting)) is not None:
        mistakes.append(f"{where}: {path}: {problem}")
        return Model(path)
    try:
        content = read_config(directory, setting)
        check_end_tokens(directory)
    except UserError as error:
        mistakes.append(f"{where}: {error}")
        return Model(path)
    if (problem := first_placeholder(directory)) is not None:
        mistakes.append(f"{where}: {path}: {problem}")
        return Model(path)
    model = _read_spec(content, path, where, mistakes)
    try:
        tensors = SafeTensors(directory)
        if model.spec is not None and (note := check_tensors(model.spec, tensors, path)) is not None:
            model = model._replace(notes=(*model.notes, note))
    except NoWeights as error:
        return model._replace(notes=(*model.notes, f"{error}; a run needs them"))
    except UserError as error:
        mistakes.append(f"{where}: {error}")
    return model


def _read_spec(content: dict[str, Any], origin: str, where: str, mistakes: list[str]) -> Model:
    try:
        spec = spec_from_hf(content)
        note = fields_note(content, origin if where.endswith(".path") else where)
    except SpecError as error:
        mistakes.append(f"{where}: {error}")
        return Model(origin)
    return Model(origin, spec, spec.parameter_count(), () if note is None else (note,))


class Adapters(NamedTuple):
    """What is known of policy.adapter and reference.adapter.

    Attributes:
        config: with po.lora as policy.adapter has it, where po trains that further.
        policy_text: for the policy's line; empty without an adapter.
        reference_text: the same for the reference.
        notes: for the end of the printout.
    """

    config: Config
    policy_text: str
    reference_text: str
    notes: list[str]


def read_adapters(config: Config, policy: Model, mistakes: list[str]) -> Adapters:
    """The adapters that are here; of those on the Hub nothing is known."""
    texts: dict[str, str] = {}
    notes: list[str] = []
    for setting in ("policy", "reference"):
        path, where = getattr(config, setting).adapter, f"{setting}.adapter"
        texts[setting] = "" if path is None else f" + adapter {path}"
        if path is None or not is_local(path, where, mistakes, MODEL_ID):
            continue
        try:
            config, texts[setting], base = _read_adapter(config, setting, policy)
        except UserError as error:
            mistakes.append(str(error))
            continue
        onto = getattr(config, setting).path or config.policy.path
        if base is not None and not same_model(base, onto):
            notes.append(f"{where}: {path} was trained on {base}; it is put onto {onto}")
    return Adapters(config, texts["policy"], texts["reference"], notes)


def _read_adapter(config: Config, setting: str, policy: Model) -> tuple[Config, str, str | None]:
    """(the config as it then is, text for the model's line, name of the adapter's base)."""
    path, where = getattr(config, setting).adapter, f"{setting}.adapter"
    # The reference has the policy's shape: log-ratios need the same vocabulary, and po.lora the same base.
    has_policys_shape = setting == "policy" or config.reference.path in (None, config.policy.path)
    if policy.spec is None or not has_policys_shape:
        adapter_config = read_adapter_config(path, where)
        return config, describe_adapter(adapter_config, config, setting), adapter_config.base
    adapter = Adapter(path, policy.spec, where)
    if setting == "reference" and config.po.lora is not None:
        _ = adapter.lora  # raises if po.lora cannot have it
    if setting == "policy" and trains_adapter_further(config):
        config = settle_lora(config, policy.spec)
    return config, describe_adapter(adapter, config, setting), adapter.config.base


def describe_model(model: Model) -> str:
    """For a model's line: its origin, family, size and shape."""
    if model.spec is None:
        return (
            model.origin if model.origin == "none" else f"{model.origin}: family unknown, unknown parameters"
        )
    spec = model.spec
    positions = f"{spec.max_positions:,} positions{spec.positions_note}"
    shape = f"{spec.num_layers} layers, width {spec.width:,}, {positions}"
    count = f"{Count(model.parameters)} parameters"
    if spec.mixture is not None and model.parameters is not None:
        count += f", {Count(spec.active_parameter_count())} active"
        shape += f", {spec.mixture.chosen} of {spec.mixture.experts} experts"
        if (layers := len(spec.layers_with_experts())) < spec.num_layers:
            shape += f" in {layers} of them"
    return f"{model.origin}: {spec.family}, {count} ({shape})"
