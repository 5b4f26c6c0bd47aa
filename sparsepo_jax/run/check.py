"""What a configuration will do, said before it does it: the printout of `--check`.

Reads only small local facts (config.json, row counts). No accelerator runtime and no network: what those would tell is `unknown`.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.config.load import ConfigError
from sparsepo_jax.config.schema.data import FileSource, Source
from sparsepo_jax.config.schema.generation import ClassifierScorer, HuggingFaceScorer
from sparsepo_jax.config.schema.masks import LearnedMask
from sparsepo_jax.config.schema.models import (
    BpeTokenizer,
    ByteTokenizer,
    PretrainedTokenizer,
    ReviewsTokenizer,
)
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Optimizer, Training
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.data.readers import SUFFIXES, suffix_of, table_delimiter, table_lines
from sparsepo_jax.data.sources import matching_files
from sparsepo_jax.data.splits import SplitError, split_names, split_ranges
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.adapter_config import read_adapter_config
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import DecoderSpec, choose_projections
from sparsepo_jax.models.directory import adapter_problem, inner_adapter_problem, pickle_problem
from sparsepo_jax.models.spec import ignored_note, spec_from_hf
from sparsepo_jax.run.adapters import describe_adapter, same_model, settle_lora
from sparsepo_jax.run.resume import Marks, trains_adapter_further

_READ_AT_MOST_BYTES = (
    32 * 2**20
)  # of a jsonl file; the rest is extrapolated, so that the printout does not wait for large files
_DATA_ID = r"\w[\w.-]*/\w[\w.-]*"
_MODEL_ID = rf"{_DATA_ID}|\w[\w.-]*"  # old models have no owner: gpt2


class Count(NamedTuple):
    """A number of rows or steps; None: it cannot be known here."""

    number: int | None
    exact: bool = True

    def __str__(self) -> str:
        return "unknown" if self.number is None else f"{'' if self.exact else 'about '}{self.number:,}"


class Model(NamedTuple):
    """What is known of a model: nothing of one on the Hub, and no parameter count where the size of the vocabulary is unknown."""

    origin: str
    spec: DecoderSpec | None = None
    parameters: int | None = None
    note: str | None = None  # of config fields that are ignored


def make_plan_text(config: Config) -> str:
    """Stages, parameters, rows, steps, tokens a step, bytes per device. Raises ConfigError if a local file lacks or is unfit."""
    mistakes: list[str] = []
    policy = read_policy(config, mistakes)
    config, added, notes = _read_adapters(config, policy, mistakes)
    reference = (
        policy
        if config.reference.path is None
        else read_model(
            config.reference.path, "reference.path", mistakes, adapted=config.reference.adapter is not None
        )
    )
    if isinstance(config.tokenizer, PretrainedTokenizer):
        _is_local(config.tokenizer.path, "tokenizer.path", mistakes, _MODEL_ID)
    rows = {
        name: _rows_of(getattr(config.data, name), f"data.{name}", mistakes) for name in _lists_used(config)
    }
    scorer_rows = _scorer_rows(config, mistakes)
    for number, lexicon in enumerate(config.evaluation.lexicons if "eval" in config.stages else []):
        if not Path(lexicon.path).is_file():
            mistakes.append(f"evaluation.lexicons.{number}.path: no such file: {lexicon.path}")
    length = _max_length(config, policy, mistakes)
    _check_vocabularies(config, policy, reference, mistakes)
    _check_batch_sizes(config, mistakes)
    _check_adapters(config, policy, mistakes)
    taken_from = config.sft.taken_from if "sft" in config.stages else None
    if taken_from is not None:
        _check_taken(config, mistakes)
    if mistakes:
        raise ConfigError(mistakes)

    mask_parameters = _mask_parameters(config, reference.spec)  # masks read the reference's states
    lines = [
        ("stages", ", ".join(config.stages)),
        ("output", config.output_dir),
        ("policy", _describe(policy) + added["policy"]),
        ("reference", _describe_reference(config, policy, reference) + added["reference"]),
        ("objective", config.objective.kind),
    ]
    if mask := getattr(config.objective, "mask", None):
        net = (
            f" {mask.net}, {mask.sharing}: {_parameters(mask_parameters)}"
            if isinstance(mask, LearnedMask)
            else ""
        )
        lines.append(("mask", f"{mask.kind}{net}, on {'reward and KL' if mask.on == 'both' else mask.on}"))
    lines.append(("devices", _devices(config)))
    lines.append(("computing", _computing(config)))
    if taken_from is not None:
        lines.append(("sft", f"that of {taken_from}"))
    elif "sft" in config.stages:
        lines.append(("sft", _work(config.sft, rows["sft"], "rows", length)))
        lines.append(("", _memory(config, config.sft, _trained(config.sft, policy), policy)))
    if "po" in config.stages:
        trained = _sum(_trained(config.po, policy), mask_parameters)
        lines.append(("po", _work(config.po, _kept_rows(rows["train"], config), "pairs", 2 * length)))
        lines.append(("", _memory(config, config.po, trained, policy, reference)))
    if not {"pairs", "generate"}.isdisjoint(config.stages) and config.data.prompts:
        lines.append(("prompts", _answers(config, rows["prompts"])))
    if "pairs" in config.stages:
        lines.append(("pairs", _pairs(config, scorer_rows)))
    if not {"score", "eval"}.isdisjoint(config.stages):
        lines.append(("evaluation", f"{_evaluated_rows(rows, config)} pairs"))
    notes = [*(model.note for model in dict.fromkeys((policy, reference)) if model.note), *notes]
    return "\n".join([*(f"{name:<12}{text}" for name, text in lines), *(f"note: {note}" for note in notes)])


# ---------------------------------------------------------------- models


def _read_adapters(
    config: Config, policy: Model, mistakes: list[str]
) -> tuple[Config, dict[str, str], list[str]]:
    """(the config with po.lora as policy.adapter has it, what each model's line says of its adapter, notes). Adapters on the Hub are not known here."""
    added, notes = {"policy": "", "reference": ""}, []
    for setting in added:
        path, where = getattr(config, setting).adapter, f"{setting}.adapter"
        if path is None:
            continue
        added[setting] = f" + adapter {path}"
        if not _is_local(path, where, mistakes, _MODEL_ID):
            continue
        try:
            # The policy's shape is the reference's, too: log-ratios need the same vocabulary, and po.lora the same base.
            own = policy.spec is not None and (
                setting == "policy" or config.reference.path in (None, config.policy.path)
            )
            adapter = Adapter(path, policy.spec, where) if own else read_adapter_config(path, where)
            if own and setting == "reference" and config.po.lora is not None:
                adapter.lora
            if own and setting == "policy" and trains_adapter_further(config):
                config = settle_lora(config, policy.spec)
        except UserError as error:
            mistakes.append(str(error))
            continue
        added[setting] = describe_adapter(adapter, config, setting)
        base = (adapter.config if own else adapter).base
        onto = getattr(config, setting).path or config.policy.path
        notes += (
            []
            if base is None or same_model(base, onto)
            else [f"{where}: {path} was trained on {base}; it is put onto {onto}"]
        )
    return config, added, notes


def _describe_reference(config: Config, policy: Model, reference: Model) -> str:
    if config.reference.path is None and config.reference.adapter is None:
        return "the policy as po finds it"
    return _describe(policy if config.reference.path is None else reference)


def read_policy(config: Config, mistakes: list[str]) -> Model:
    """The policy by its config.json, or by policy.config where the checkpoint is not here; no spec where neither is."""
    path = config.policy.path
    if path is not None and (config.policy.config is None or Path(path).exists()):
        return read_model(path, "policy.path", mistakes, adapted=config.policy.adapter is not None)
    if path is not None:
        return _read_spec(
            config.policy.config, f"{path} (not here; shape by policy.config)", "policy.config", mistakes
        )
    if config.policy.config is None:
        return Model("none")
    if "vocab_size" not in config.policy.config and config.tokenizer.kind == "auto":
        mistakes.append("policy.config.vocab_size: needed where there is no tokenizer to take it from")
    vocab_size = config.policy.config.get("vocab_size", _vocab_size(config.tokenizer))
    content = {**config.policy.config, "vocab_size": 1 if vocab_size is None else vocab_size}
    model = _read_spec(content, "from scratch", "policy.config", mistakes)
    return model._replace(parameters=None) if vocab_size is None else model


def _vocab_size(tokenizer) -> int | None:
    match tokenizer:
        case ByteTokenizer():
            return 257
        case BpeTokenizer():
            return tokenizer.vocab_size
        case ReviewsTokenizer():
            from sparsepo_jax.data.reviews import reviews_vocabulary

            return len(reviews_vocabulary())
    return None


def read_model(path: str, where: str, mistakes: list[str], *, adapted: bool = False) -> Model:
    """adapted: an adapter is put onto it, so that one beside it is no matter."""
    if not _is_local(path, where, mistakes, _MODEL_ID):
        return Model(path)
    setting = where.removesuffix(".path")
    directory = Path(path)
    problem = (
        adapter_problem(directory, setting)
        or (None if adapted else inner_adapter_problem(directory, setting))
        or pickle_problem(directory)
    )
    if problem is not None:
        mistakes.append(f"{where}: {path}: {problem}")
        return Model(path)
    try:
        content = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        mistakes.append(f"{where}: expected a directory with a config.json, got {path} ({reason})")
        return Model(path)
    return _read_spec(content, path, where, mistakes)


def _read_spec(content: Any, origin: str, where: str, mistakes: list[str]) -> Model:
    if not isinstance(content, dict):
        mistakes.append(f"{where}: expected a config.json that holds an object, got {type(content).__name__}")
        return Model(origin)
    try:
        spec, note = (
            spec_from_hf(content),
            ignored_note(content, origin if where.endswith(".path") else where),
        )
    except SpecError as error:
        mistakes.append(f"{where}: {error}")
        return Model(origin)
    return Model(origin, spec, spec.parameter_count(), note)


def _max_length(config: Config, policy: Model, mistakes: list[str]) -> int:
    positions = policy.spec.max_positions if policy.spec else None
    length, prompt = config.data.max_length or min(2048, positions or 2048), config.data.max_prompt_length
    if positions is not None and length > positions:
        mistakes.append(f"data.max_length: {length} tokens do not fit the policy's {positions} positions")
    if prompt is not None and prompt >= length:
        mistakes.append(
            f"data.max_prompt_length: {prompt} leaves no room for a response within {length} tokens"
        )
    return length


def _check_vocabularies(config: Config, policy: Model, reference: Model, mistakes: list[str]) -> None:
    if policy.parameters is None:
        return  # its vocabulary is not known
    ours = policy.spec.vocab_size
    tokens = (
        None if isinstance(config.tokenizer, BpeTokenizer) else _vocab_size(config.tokenizer)
    )  # a BPE may find fewer
    if tokens is not None and tokens > ours:
        mistakes.append(f"tokenizer: it has {tokens} tokens, the policy only {ours}")
    if reference.spec and reference.spec.vocab_size != ours:
        mistakes.append(
            f"reference.path: a vocabulary of {reference.spec.vocab_size}, but the policy has one of {ours}"
        )


def _mask_parameters(config: Config, spec: DecoderSpec | None) -> int | None:
    """Of the learned mask nets, one or two; 0 where no mask is learned."""
    mask = getattr(config.objective, "mask", None)
    if not isinstance(mask, LearnedMask):
        return 0
    if spec is None:
        return None
    D, L = spec.width, spec.num_layers
    net = D * 200 + 200 + 200 + 1 if mask.net.startswith("ml") else D + 1
    one = (
        L * net + L + 2 * D if mask.net.endswith("all") else net
    )  # a net a layer, the mixer, the shared LayerNorm
    return 2 * one if mask.sharing == "independent" and mask.on == "both" else one


# ---------------------------------------------------------------- data


def _lists_used(config: Config) -> list[str]:
    """The lists of data that the stages read (a stage may run where the files of the others are not)."""
    wanted, data = set(config.stages), config.data
    scored = not {"score", "eval"}.isdisjoint(wanted)
    answered = not {"pairs", "generate"}.isdisjoint(wanted)
    used = {
        "sft": "sft" in wanted,
        "train": "po" in wanted or (scored and data.holdout is not None),
        "eval": scored,
        "prompts": answered,
    }
    return [name for name in used if used[name] or "inspect" in wanted]


def _rows_of(sources: Sequence[Source], where: str, mistakes: list[str]) -> Count:
    """Rows that an epoch sees."""
    counts = [_rows_in(source, f"{where}.{index}", mistakes) for index, source in enumerate(sources)]
    if any(count.number is None for count in counts):
        return Count(None)
    rows = sum(round(source.weight * count.number) for source, count in zip(sources, counts))
    return Count(rows, all(count.exact for count in counts))


def _rows_in(source: Source, where: str, mistakes: list[str]) -> Count:
    if not isinstance(source, FileSource):
        return Count(source.rows)
    try:
        files = matching_files(source.path)
        if files is None and not _is_local(source.path, f"{where}.path", mistakes, _DATA_ID):
            return Count(None)
        if files is None:
            return _rows_of_datasets_directory(Path(source.path), source.split)
        counts = [_rows_of_file(file) for file in files]
        whole = Count(None) if any(count.number is None for count in counts) else _sum_of(counts)
        return _rows_of_split(source.split, {"train": whole})
    except (SplitError, UserError) as error:
        mistakes.append(f"{where}.path: {error}")
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        KeyError,
    ) as error:  # pyarrow's and json's errors are ValueErrors
        mistakes.append(f"{where}.path: cannot read {source.path}: {' '.join(str(error).split())}")
    return Count(None)


def _rows_of_file(file: str) -> Count:
    suffix = suffix_of(file)
    if suffix is None:
        raise UserError(f"expected a file ending in {', '.join(SUFFIXES)}, or a directory, got {file}")
    if suffix == ".parquet":
        import pyarrow.parquet

        return Count(pyarrow.parquet.read_metadata(file).num_rows)
    count = _rows_of_table if suffix.startswith((".csv", ".tsv")) else _rows_of_json
    return count(Path(file), zipped=suffix.endswith(".gz"))


def _sum_of(counts: list[Count]) -> Count:
    return Count(sum(count.number for count in counts), all(count.exact for count in counts))


def _rows_of_split(split: str, rows: dict[str, Count]) -> Count:
    """Of a split or parts of splits. SplitError: one that is not there."""
    absent = next((name for name in split_names(split) if name not in rows), None)
    if absent is not None:
        raise SplitError(f"it has no split {absent!r}, only {', '.join(rows)}")
    ranges = split_ranges(split, {name: count.number or 0 for name, count in rows.items()})
    if any(rows[part.split].number is None for part in ranges):
        return Count(None)
    return Count(
        sum(part.stop - part.start for part in ranges), all(rows[part.split].exact for part in ranges)
    )


def _rows_of_json(path: Path, zipped: bool) -> Count:
    """Lines that are not empty, or the entries of one list."""
    size, rows = path.stat().st_size, 0
    with open(path, "rb") as raw:
        lines = gzip.GzipFile(fileobj=raw) if zipped else raw
        for line in lines:
            if rows == 0 and line.lstrip().startswith(b"["):
                return (
                    Count(len(json.loads(line + lines.read())))
                    if size <= _READ_AT_MOST_BYTES
                    else Count(None)
                )
            rows += not line.isspace()
            if raw.tell() >= _READ_AT_MOST_BYTES:
                return Count(round(rows * size / raw.tell()), exact=raw.tell() == size)
    return Count(rows)


def _rows_of_table(path: Path, zipped: bool) -> Count:
    """Rows of separated values below the line that names the columns."""
    rows, size = 0, path.stat().st_size
    with open(path, "rb") as raw:
        lines = table_lines(gzip.GzipFile(fileobj=raw) if zipped else raw, table_delimiter(str(path)))
        next(lines, None)
        for cells in lines:
            rows += bool(cells)
            if lines.line_num % 1000 == 0 and raw.tell() >= _READ_AT_MOST_BYTES:
                return Count(round(rows * size / raw.tell()), exact=raw.tell() == size)
    return Count(rows)


def _rows_of_datasets_directory(path: Path, split: str) -> Count:
    """SplitError: a split that is not there."""
    if (path / "dataset_dict.json").exists():
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        known = {name: path / name for name in names}
        rows = {
            name: _rows_of_saved(known[name]) if name in split_names(split) else Count(0) for name in names
        }
        return _rows_of_split(split, rows)
    if not (path / "state.json").exists():
        return Count(None)  # not by `save_to_disk`: only the loader can tell
    name = json.loads((path / "state.json").read_text()).get("_split") or "train"
    return _rows_of_split(split, dict.fromkeys((name, "train"), _rows_of_saved(path)))


def _rows_of_saved(directory: Path) -> Count:
    import pyarrow

    files = [
        directory / entry["filename"]
        for entry in json.loads((directory / "state.json").read_text())["_data_files"]
    ]
    return Count(
        sum(
            batch.num_rows
            for file in files
            for batch in pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
        )
    )


def _is_local(path: str, where: str, mistakes: list[str], hub_id: str) -> bool:
    """Whether there is such a path here; if not, it must look like a Hub id, else that is a mistake."""
    if Path(path).exists():
        return True
    if not re.fullmatch(hub_id, path) or suffix_of(path) is not None or is_mistyped_path(path):
        mistakes.append(f"{where}: no such file or directory: {path} (nor a Hub id, which is owner/name)")
    return False


def _kept_rows(rows: Count, config: Config) -> Count:
    """Rows that po trains on: without the held-out part, whose prompts may have more or fewer rows than others."""
    if rows.number is None or config.data.holdout is None:
        return rows
    return Count(round(rows.number * (1 - config.data.holdout.share)), exact=False)


def _evaluated_rows(rows: dict[str, Count], config: Config) -> Count:
    """Pairs of data.eval and of the held-out part."""
    held = Count(0)
    if config.data.holdout is not None:
        train = rows["train"].number
        held = Count(None if train is None else round(train * config.data.holdout.share), exact=False)
    pairs = _sum(rows["eval"].number, held.number)
    if pairs is None:
        return Count(None)
    exact, limit = rows["eval"].exact and held.exact, config.evaluation.max_pairs
    return Count(pairs, exact) if limit is None or limit >= pairs else Count(limit)


# ---------------------------------------------------------------- prompts and pairs


def _answers(config: Config, prompts: Count) -> str:
    chosen, number = config.generation, prompts.number
    if number is not None and chosen.max_prompts is not None and chosen.max_prompts < number:
        prompts = Count(chosen.max_prompts)
    return f"at most {prompts} distinct prompts, {chosen.samples} responses each of at most {chosen.max_new_tokens:,} tokens"


def _scorer_rows(config: Config, mistakes: list[str]) -> Count | None:
    """Of a classifier that is trained."""
    scorer = config.scorer
    if isinstance(scorer, HuggingFaceScorer):
        _is_local(scorer.path, "scorer.path", mistakes, _MODEL_ID)
    if not isinstance(scorer, ClassifierScorer):
        return None
    if scorer.path is not None:
        if not Path(scorer.path).is_dir():
            mistakes.append(f"scorer.path: no such directory: {scorer.path}")
        return None
    _rows_of(scorer.test, "scorer.test", mistakes)
    return _rows_of(scorer.train, "scorer.train", mistakes)


def _pairs(config: Config, scorer_rows: Count | None) -> str:
    making = config.pairs
    trained = "" if scorer_rows is None else f", trained on {scorer_rows} rows"
    across = "" if making.threshold is None else f" across {making.threshold:g}"
    return f"{making.rule}{across}, scored by {config.scorer.kind}{trained}"


# ---------------------------------------------------------------- training


def _work(training: Training, rows: Count, unit: str, tokens_a_row: int) -> str:
    tokens = f"at most {training.batch_size * tokens_a_row:,} tokens a step"
    return (
        f"{rows} {unit} an epoch, {_steps(training, rows)} steps of {training.batch_size:,} {unit}, {tokens}"
    )


def _trained(training: Training, policy: Model) -> int | None:
    """Parameters of the policy that a stage trains."""
    if training.lora is None or policy.spec is None:
        return policy.parameters if training.lora is None else None
    return policy.spec.adapter_parameter_count(
        choose_projections(tuple(training.lora.targets), policy.spec), training.lora.rank
    )


def _memory(
    config: Config, training: Training, trained: int | None, policy: Model, reference: Model | None = None
) -> str:
    """Bytes per device of `trained` parameters, their optimizer's state, and what is not trained: the base of adapters, or the reference."""
    held = {
        "weights": _bytes(trained, config),
        "optimizer": _optimizer_bytes(training.optimizer, trained, policy.spec, config),
    }
    if training.lora is not None:
        held[f"base ({training.lora.base})"] = _base_bytes(training.lora.base, policy, config)
    elif reference is not None:
        held["reference"] = _bytes(reference.parameters, config)
    return (
        "bytes per device: " + ", ".join(f"{name} {size}" for name, size in held.items()) + _sharding(config)
    )


def _check_taken(config: Config, mistakes: list[str]) -> None:
    """The sft of another run must be there, if it has not been taken yet."""
    try:
        if not Marks(config).finished("sft"):
            Marks(config).sft_to_take()
    except UserError as error:
        mistakes.append(str(error))


def _trainings(config: Config) -> list[tuple[str, Training]]:
    """The stages that train, by name. An sft that another run has trained does not."""
    stages = (
        [("sft", config.sft), ("po", config.po)] if config.sft.taken_from is None else [("po", config.po)]
    )
    return [(stage, training) for stage, training in stages if stage in config.stages]


def _check_batch_sizes(config: Config, mistakes: list[str]) -> None:
    """Every micro-step's rows must be cut evenly over the shards; a free axis may turn out to be 1."""
    shards = (config.compute.mesh.data or 1) * (config.compute.mesh.fsdp or 1)
    for stage, training in _trainings(config):
        parts = training.accumulation * shards
        if training.batch_size % parts:
            mistakes.append(
                f"{stage}.batch_size: {training.batch_size} is no multiple of {parts} (accumulation x data x fsdp)"
            )


def _check_adapters(config: Config, policy: Model, mistakes: list[str]) -> None:
    for stage, training in _trainings(config):
        if training.lora is not None and policy.spec is not None:
            try:
                choose_projections(tuple(training.lora.targets), policy.spec)
            except SpecError as error:
                mistakes.append(f"{stage}.lora.targets: {error}")


def _steps(training: Training, rows: Count) -> Count:
    if training.steps is not None or rows.number is None:
        return Count(training.steps)
    batches = (training.epochs or 1) * math.ceil(rows.number / training.batch_size)
    return Count(max(1, math.ceil(batches - 1e-9)), rows.exact)  # 0.1 x 30 is 3, not 4


def _optimizer_bytes(
    optimizer: Optimizer, parameters: int | None, spec: DecoderSpec | None, config: Config
) -> str:
    if parameters is None:
        return "unknown"
    match optimizer.kind:
        case "adamw":  # mean and mean square
            return _bytes(2 * parameters, config)
        case "lion":
            return _bytes(parameters, config)
        case (
            "adafactor"
        ):  # a row and a column for each matrix; optax factors only those of at least 128 rows and columns
            return "about " + _bytes(parameters if spec.width < 128 else 2 * parameters // spec.width, config)


def _base_bytes(base: str, policy: Model, config: Config) -> str:
    """int8 and nf4: the blocks' matrices; their scales, norms and biases are small and left out."""
    if policy.parameters is None:
        return "unknown"
    if base in ("float32", "bfloat16"):
        return _bytes(policy.parameters if base == "float32" else policy.parameters // 2, config)
    matrices = policy.spec.num_layers * sum(
        inside * outside for inside, outside in policy.spec.projections().values()
    )
    return "about " + _bytes(policy.parameters - matrices + matrices // {"int8": 4, "nf4": 8}[base], config)


def _bytes(floats: int | None, config: Config) -> str:
    """Of float32 numbers spread over fsdp and tensor."""
    if floats is None:
        return "unknown"
    shards = (config.compute.mesh.fsdp or 1) * (config.compute.mesh.tensor or 1)
    size = 4 * math.ceil(floats / shards)
    if size >= 1e9:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _sharding(config: Config) -> str:
    mesh = config.compute.mesh
    if mesh.fsdp is None or mesh.tensor is None:
        return f" (as if {'fsdp' if mesh.fsdp is None else 'tensor'}, which is free, were 1)"
    return f" (sharded over fsdp x tensor = {mesh.fsdp * mesh.tensor})" if mesh.fsdp * mesh.tensor > 1 else ""


def _devices(config: Config) -> str:
    axes = config.compute.mesh.model_dump()
    slices = axes.pop("slices")
    total = "unknown" if None in axes.values() else f"{math.prod(axes.values()):,}"
    shape = " x ".join(f"{name} {'free' if size is None else size}" for name, size in axes.items())
    return f"{total} ({shape})" + ("" if slices is None else f" in {slices} slices")


def _computing(config: Config) -> str:
    """Type of activations and precision of products, where they depend on the device for each kind of it."""
    dtype, precision = config.compute.dtype, config.compute.precision
    activations = "float32 on CPU, bfloat16 on GPU and TPU" if dtype == "auto" else dtype
    products = {
        "float32": "float32 everywhere",
        "tf32": "TF32 on GPU, three bfloat16 passes on TPU, float32 on CPU",
        "auto": "float32 everywhere"
        if dtype == "float32"
        else "float32 on CPU, rounded first on GPU (TF32) and TPU (bfloat16)",
    }[precision]
    return f"activations {activations}; products of float32 arrays: {products}"


# ---------------------------------------------------------------- words


def _describe(model: Model) -> str:
    if model.spec is None:
        return (
            model.origin if model.origin == "none" else f"{model.origin}: family unknown, {_parameters(None)}"
        )
    spec = model.spec
    shape = f"{spec.num_layers} layers, width {spec.width:,}, {spec.max_positions:,} positions"
    return f"{model.origin}: {spec.family}, {_parameters(model.parameters)} ({shape})"


def _parameters(number: int | None) -> str:
    return f"{Count(number)} parameters"


def _sum(*numbers: int | None) -> int | None:
    return None if None in numbers else sum(numbers)
