"""What a configuration will do, before it does it: the printout of `--check`.

Reads only small local facts (config.json, row counts). No accelerator runtime and no network: what those
would tell is `unknown`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from sparsepo_jax.config.derive import (
    DEFAULT_LENGTH,
    batch_problem,
    evaluation_lists,
    is_unpaired,
    least_shards,
    length_limits,
    mask_parameters,
    masked_terms,
    stage_steps,
)
from sparsepo_jax.config.load import ConfigError
from sparsepo_jax.config.schema.data import Source
from sparsepo_jax.config.schema.generation import ClassifierScorer, HuggingFaceScorer
from sparsepo_jax.config.schema.masks import LearnedMask
from sparsepo_jax.config.schema.models import BpeTokenizer, PretrainedTokenizer
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import Training
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder_spec import choose_projections
from sparsepo_jax.models.directory import has_tokenizer
from sparsepo_jax.models.wrappers import from_scratch_problem
from sparsepo_jax.run.beforehand import rounded_reference, unmade_mistakes, warm_gate_mistakes
from sparsepo_jax.run.check_compute import choice_lines
from sparsepo_jax.run.check_ending import Line, ending_lines, hub_lines, rounds_lines
from sparsepo_jax.run.files_read import scores_path
from sparsepo_jax.run.local import MODEL_ID, Count, is_local
from sparsepo_jax.run.memory import memory_text
from sparsepo_jax.run.mixture import adapter_mistakes, replay_mistakes, training_mistakes
from sparsepo_jax.run.model_facts import (
    Adapters,
    Model,
    describe_model,
    read_adapters,
    read_model,
    read_policy,
    tokens_of,
)
from sparsepo_jax.run.parts import evaluated_rows, evaluated_unit, holdout_mistakes, kept_rows
from sparsepo_jax.run.places import place_mistakes
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.run.row_counts import UNKNOWN, Rows, hold_pairs, rows_of

COMPARING = {"po", "score", "eval"}  # stages for which there is a reference, and an objective


def make_plan_text(config: Config) -> str:
    """Stages, parameters, rows, steps, tokens a step, bytes per device.

    Raises:
        ConfigError: a local file is missing or unfit, or settings do not fit each other.
    """
    mistakes: list[str] = []
    policy = read_policy(config, mistakes)
    if config.policy.path is None and (problem := from_scratch_problem(config.policy.config or {})):
        mistakes.append(f"policy.config: {problem}")
    adapters = read_adapters(config, policy, mistakes)
    config = adapters.config
    reference = _read_reference(config, policy, mistakes)
    lists = _lists_used(config)
    rows = {name: _rows_of_list(config, name, sources, mistakes) for name, sources in lists.items()}
    if config.rounds is not None:
        rows["train"] = UNKNOWN
    scorer_rows = _scorer_rows(config, mistakes)
    length = _max_length(config, policy, mistakes)
    mistakes += [
        *place_mistakes(config),
        *_file_mistakes(config),
        *_tokenizer_mistakes(config),
        *_vocabulary_mistakes(config, policy, reference),
        *_batch_mistakes(config),
        *_adapter_mistakes(config, policy),
        *_mixture_mistakes(config, policy, reference),
        *_taken_sft_mistakes(config),
        *holdout_mistakes(rows, config),
        *unmade_mistakes(config),
        *warm_gate_mistakes(config, kept_rows(rows.get("train", UNKNOWN), config)),
        *filter(None, [rounded_reference(config, config.compute.dtype)]),
    ]
    if isinstance(config.tokenizer, PretrainedTokenizer):
        is_local(config.tokenizer.path, "tokenizer.path", mistakes, MODEL_ID)
    if mistakes:
        raise ConfigError(mistakes)
    lines = [
        *_model_lines(config, policy, reference, adapters),
        *_training_lines(config, policy, reference, rows, length),
        *_answer_lines(config, rows, scorer_rows),
        *_choice_lines(config, policy, reference),
        *hub_lines(config),
    ]
    models = dict.fromkeys((policy, reference))
    notes = [*(note for model in models for note in model.notes), *adapters.notes]
    return "\n".join([*(f"{name:<12}{text}" for name, text in lines), *(f"note: {note}" for note in notes)])


def _read_reference(config: Config, policy: Model, mistakes: list[str]) -> Model:
    path = config.reference.path
    if path is None:
        return policy
    return read_model(path, "reference.path", mistakes, adapted=config.reference.adapter is not None)


# ---------------------------------------------------------------- lines


def _model_lines(config: Config, policy: Model, reference: Model, adapters: Adapters) -> Iterator[Line]:
    yield "stages", ", ".join(config.stages)
    yield "output", config.output_dir
    yield from rounds_lines(config)
    yield "policy", describe_model(policy) + adapters.policy_text
    if config.rounds is not None or not COMPARING.isdisjoint(config.stages):
        yield from _objective_lines(config, reference, adapters)
    yield "devices", _devices(config)
    yield "computing", _computing(config)


def _objective_lines(config: Config, reference: Model, adapters: Adapters) -> Iterator[Line]:
    if config.reference.path is None and config.reference.adapter is None:
        reference_text = "the policy as po finds it"
    else:
        reference_text = describe_model(reference)
    yield "reference", reference_text + adapters.reference_text
    yield "objective", config.objective.kind
    mask = config.objective.mask
    if mask is not None:
        net = ""
        if isinstance(mask, LearnedMask):
            parameters = Count(_mask_parameters(config, reference))
            net = f" {mask.net}, {mask.sharing}: {parameters} parameters"
        terms = masked_terms(config.objective)
        yield "mask", f"{mask.kind}{net}, on {'reward and KL' if terms == 'both' else terms}"


def _training_lines(
    config: Config, policy: Model, reference: Model, rows: dict[str, Rows], length: int
) -> Iterator[Line]:
    """Args: length: longest prompt + response, tokens."""
    if "sft" in config.stages:
        if config.sft.taken_from is not None:
            yield "sft", f"that of {config.sft.taken_from}"
        else:
            yield "sft", _work(config.sft, rows["sft"].epoch, "rows", length)
            yield "", memory_text(config, config.sft, policy, 0)
    if "weigh" in config.stages and config.weigh is not None:
        yield "weigh", f"{config.weigh.kind}, from {' and '.join(config.weigh.runs)}"
    if "po" in config.stages:
        alone = is_unpaired(config.objective)
        unit, tokens = ("responses", length) if alone else ("pairs", 2 * length)
        yield "po", _work(config.po, kept_rows(rows["train"], config), unit, tokens)
        is_gone = config.reference.cached and config.po.eval_every_steps is None
        masks = _mask_parameters(config, reference)
        yield "", memory_text(config, config.po, policy, masks, None if is_gone else reference)
        yield from ending_lines(config)


def _answer_lines(config: Config, rows: dict[str, Rows], scorer_rows: Count | None) -> Iterator[Line]:
    if not {"pairs", "generate"}.isdisjoint(config.stages) and config.data.prompts:
        yield "prompts", _answers(config, rows["prompts"].once)
    if "pairs" in config.stages and config.scorer is not None:
        trained = "" if scorer_rows is None else f", trained on {scorer_rows} rows"
        across = "" if config.pairs.threshold is None else f" across {config.pairs.threshold:g}"
        yield "pairs", f"{config.pairs.rule}{across}, scored by {config.scorer.kind}{trained}"
    if not {"score", "eval"}.isdisjoint(config.stages):
        sets = evaluated_rows(rows, config).items()
        counts = [f"{name}{': ' if name else ''}{n} {evaluated_unit(name, config)}" for name, n in sets]
        yield "evaluation", "; ".join(counts)


def _choice_lines(config: Config, policy: Model, reference: Model) -> Iterator[Line]:
    """What is left to `auto`, for the last stage that trains; none where the models' sizes are not known."""
    stages = [stage for stage, _ in _trainings(config)]
    if stages and policy.parameters is not None and policy.spec is not None and reference.spec is not None:
        yield from choice_lines(config, stages[-1], policy.spec, reference.spec)


def _answers(config: Config, prompts: Count) -> str:
    settings = config.generation
    if (
        prompts.number is not None
        and settings.max_prompts is not None
        and settings.max_prompts < prompts.number
    ):
        prompts = Count(settings.max_prompts)
    return (
        f"at most {prompts} distinct prompts, {settings.samples} responses each of at most "
        f"{settings.max_new_tokens:,} tokens"
    )


def _work(training: Training, rows: Count, unit: str, tokens_per_row: int) -> str:
    tokens = f"at most {training.batch_size * tokens_per_row:,} tokens a step"
    steps = Count(training.steps)
    if training.steps is None and rows.number is not None:
        steps = Count(stage_steps(training, rows.number), rows.exact)
    return f"{rows} {unit} an epoch, {steps} steps of {training.batch_size:,} {unit}, {tokens}"


def _devices(config: Config) -> str:
    axes = config.compute.mesh.model_dump()
    slices = axes.pop("slices")
    count = "unknown" if None in axes.values() else f"{math.prod(axes.values()):,}"
    shape = " x ".join(f"{name} {'free' if size is None else size}" for name, size in axes.items())
    return f"{count} ({shape})" + ("" if slices is None else f" in {slices} slices")


def _computing(config: Config) -> str:
    """Type of activations and precision of products; where they depend on the device, for each kind of it."""
    dtype, precision = config.compute.dtype, config.compute.precision
    activations = "float32 on CPU, bfloat16 on GPU and TPU" if dtype == "auto" else dtype
    if precision == "float32" or (precision == "auto" and dtype == "float32"):
        products = "float32 everywhere"
    elif precision == "tf32":
        products = "TF32 on GPU, three bfloat16 passes on TPU, float32 on CPU"
    else:
        products = "float32 on CPU, rounded first on GPU (TF32) and TPU (bfloat16)"
    return f"activations {activations}; products of float32 arrays: {products}"


# ---------------------------------------------------------------- mistakes


def _max_length(config: Config, policy: Model, mistakes: list[str]) -> int:
    """The longest prompt + response, tokens."""
    try:
        positions = (
            (None, "") if policy.spec is None else (policy.spec.max_positions, policy.spec.positions_note)
        )
        return length_limits(config.data, *positions)[0]
    except UserError as error:
        mistakes.append(str(error))
        return DEFAULT_LENGTH


def _file_mistakes(config: Config) -> Iterator[str]:
    if "weigh" in config.stages and config.weigh is not None:
        for run in config.weigh.runs:
            if not scores_path(run).is_file():
                yield f"weigh: no scores there yet: {scores_path(run)}: run the stage score of that run first"
    if "eval" not in config.stages:
        return
    for number, lexicon in enumerate(config.evaluation.lexicons):
        if not Path(lexicon.path).is_file():
            yield f"evaluation.lexicons.{number}.path: no such file: {lexicon.path}"


def _tokenizer_mistakes(config: Config) -> Iterator[str]:
    """A tokenizer whose files cannot be one, by their names."""
    from sparsepo_jax.data.tokenizers import files_problem

    path, setting = config.policy.path, "policy.path"
    if isinstance(config.tokenizer, PretrainedTokenizer):
        path, setting = config.tokenizer.path, "tokenizer.path"
    elif config.tokenizer.kind != "auto" or path is None or not has_tokenizer(Path(path)):
        return
    if problem := files_problem(path):
        yield f"{setting}: {path}: {problem}"


def _vocabulary_mistakes(config: Config, policy: Model, reference: Model) -> Iterator[str]:
    if policy.parameters is None or policy.spec is None:
        return  # its vocabulary is not known
    entries = policy.spec.vocab_size
    # A BPE may turn out smaller than it is allowed to be.
    tokens = None if isinstance(config.tokenizer, BpeTokenizer) else tokens_of(config.tokenizer)
    if tokens is not None and tokens > entries:
        yield f"tokenizer: it has {tokens} tokens, the policy only {entries}"
    if reference.spec is not None and reference.spec.vocab_size != entries:
        yield (
            f"reference.path: a vocabulary of {reference.spec.vocab_size}, but the policy has one of "
            f"{entries}"
        )


def _trainings(config: Config) -> list[tuple[str, Training]]:
    """The stages that train, by name. An sft that another run has trained does not."""
    stages: list[tuple[str, Training]] = []
    if "sft" in config.stages and config.sft.taken_from is None:
        stages.append(("sft", config.sft))
    if "po" in config.stages:
        stages.append(("po", config.po))
    return stages


def _batch_mistakes(config: Config) -> Iterator[str]:
    """Batches that cannot be cut evenly; a free axis may turn out to be 1."""
    shards = least_shards(config.compute.mesh)
    for stage, training in _trainings(config):
        problem = batch_problem(f"{stage}.batch_size", training.batch_size, training.accumulation, shards)
        if problem is not None:
            yield problem


def _adapter_mistakes(config: Config, policy: Model) -> Iterator[str]:
    for stage, training in _trainings(config):
        if training.lora is None or policy.spec is None:
            continue
        try:
            targets = choose_projections(tuple(training.lora.targets), policy.spec)
        except SpecError as error:
            yield f"{stage}.lora.targets: {error}"
        else:
            yield from adapter_mistakes(stage, targets, training.lora.dropout)


def _mixture_mistakes(config: Config, policy: Model, reference: Model) -> Iterator[str]:
    if policy.spec is None:
        return
    for stage, training in _trainings(config):
        yield from training_mistakes(stage, training, policy.spec)
    if "po" in config.stages and reference.spec is not None:
        yield from replay_mistakes(config, policy.spec, reference.spec)


def _taken_sft_mistakes(config: Config) -> Iterator[str]:
    """The sft of another run must be there, if it has not been taken yet."""
    if "sft" not in config.stages or config.sft.taken_from is None:
        return
    try:
        if not Marks(config).finished("sft"):
            Marks(config).sft_to_take()
    except UserError as error:
        yield str(error)


# ---------------------------------------------------------------- rows


def _lists_used(config: Config) -> dict[str, list[Source]]:
    """The lists of data that the stages read (a stage may run where the files of the others are not)."""
    stages, data = set(config.stages), config.data
    scored = not {"score", "eval"}.isdisjoint(stages)
    looks = "inspect" in stages
    lists: dict[str, list[Source]] = {}
    if looks or "sft" in stages:
        lists["sft"] = data.sft
    if looks or "po" in stages or (scored and data.holdout is not None):
        lists["train"] = data.train
    if looks or scored:
        lists |= evaluation_lists(data)
    if looks or not {"pairs", "generate"}.isdisjoint(stages):
        lists["prompts"] = data.prompts
    return lists


def _rows_of_list(config: Config, name: str, sources: list[Source], mistakes: list[str]) -> Rows:
    """Rows of a list of data. What this run's own stage weigh will write is not known yet."""
    written = Path(config.output_dir, "weighed.jsonl")
    if "weigh" in config.stages and any(Path(getattr(source, "path", "")) == written for source in sources):
        return UNKNOWN
    halved = is_unpaired(config.objective) and (
        name == "train" or (name.split(".")[0] == "eval" and hold_pairs(sources) is False)
    )
    rows = rows_of(sources, f"data.{name}", mistakes, halved=halved)
    if config.data.on_bad_row == "skip":  # how many are left out is not known
        return Rows(*(Count(count.number, exact=count.number is None) for count in rows))
    return rows


def _scorer_rows(config: Config, mistakes: list[str]) -> Count | None:
    """Rows that a classifier is trained on; None: none is trained."""
    scorer = config.scorer
    if isinstance(scorer, HuggingFaceScorer):
        is_local(scorer.path, "scorer.path", mistakes, MODEL_ID)
    if not isinstance(scorer, ClassifierScorer):
        return None
    if scorer.path is not None:
        if not Path(scorer.path).is_dir():
            mistakes.append(f"scorer.path: no such directory: {scorer.path}")
        return None
    rows_of(scorer.test, "scorer.test", mistakes)
    return rows_of(scorer.train, "scorer.train", mistakes).once


# ---------------------------------------------------------------- parameters


def _mask_parameters(config: Config, reference: Model) -> int | None:
    """Parameters of the learned mask nets; None: the reference's shape is not known."""
    if not isinstance(config.objective.mask, LearnedMask):
        return 0
    if reference.spec is None:
        return None
    return mask_parameters(config.objective, reference.spec.width, reference.spec.num_layers)
