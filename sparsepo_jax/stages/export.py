"""The stage export: the policy as a Hugging Face directory, and adapters in PEFT's format."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsepo_jax.build.compute import compute_dtype
from sparsepo_jax.build.models import exported_configs
from sparsepo_jax.build.tokenizer import tokenizer_directory
from sparsepo_jax.config.load import config_text
from sparsepo_jax.config.schema.data import FileSource
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.models.adapter_config import WEIGHTS
from sparsepo_jax.models.directory import ADAPTER, CONFIG, SINGLE
from sparsepo_jax.models.lora import Lora, merge_adapters, split_adapters
from sparsepo_jax.models.stored_tensors import find_checkpoint
from sparsepo_jax.models.tensor_names import may_carry
from sparsepo_jax.models.weight_files import weight_files
from sparsepo_jax.report.card import Origin, Parts, make_card
from sparsepo_jax.run.local import DATA_ID, MODEL_ID, is_local
from sparsepo_jax.run.resume import TRAINING
from sparsepo_jax.sharding.mesh import to_host
from sparsepo_jax.sharding.processes import as_the_first
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.weights import finished_po, start_weights, starting_policy, trained
from sparsepo_jax.train.readings import split_baseline


class ExportPlaces(NamedTuple):
    """Where the parts of an export lie.

    Attributes:
        model: where the complete model is written; None: it is not asked for.
        adapter: where the adapters are written; None: po has trained none.
        base: where the model that the adapters stand on is written; None: it is policy.path as it lies.
    """

    model: Path | None
    adapter: Path | None
    base: Path | None

    def outputs(self) -> list[Path]:
        """The files by which a finished export is known."""
        files = []
        for model in (self.model, self.base):
            if model is not None:
                files += [model / CONFIG, *_weights_in(model)]
        if self.adapter is not None:
            files += [self.adapter / ADAPTER, self.adapter / WEIGHTS]
        return files


def _weights_in(model: Path) -> list[Path]:
    """The files of weights in a directory; where they are not all there, one that is not."""
    try:
        return weight_files(model)
    except UserError:
        return [model / SINGLE]


def export(run: Run) -> None:
    """Writes the trained policy, with its mask nets, tokenizer and model card."""
    began_s = time.time()
    path = Path(run.config.export.path or run.output_dir / "export")
    has_po, lora = finished_po(run), run.lora("po")
    parts = places_of(run, path, adapters_trained=has_po and lora is not None)
    if run.marks.finished("export", *parts.outputs()):
        say(f"export: finished before, {path}")
        return
    weights = trained(run, "po") if has_po else {"policy": starting_policy(run), "masks": {}}
    masks = jax.tree.map(to_host, weights["masks"])
    policy = weights["policy"]
    if parts.adapter is None:
        if lora is not None:  # po has not run: what it would start from
            policy = merge_adapters(*split_adapters(policy), lora.scale)
        run.unmark("export")
        _export_model(run, parts.model, policy, masks)
    else:
        needs_start = parts.model is not None or parts.base is not None
        start = split_adapters(start_weights(run)["policy"])[0] if needs_start else None
        run.unmark("export")
        if parts.model is not None:
            merged = merge_adapters(start, policy, lora.scale)
            _export_model(run, parts.model, merged, masks, merged=True)
        if parts.base is not None:
            _export_model(run, parts.base, start, {}, is_base=True)
        _export_adapter(run, parts, policy, lora, masks)
    run.mark("export", began_s)
    at_random = parts.model is not None and _rounds_at_random(run, merged=parts.adapter is not None)
    rounded = ", rounded at random so that what training changed is kept" if at_random else ""
    say(f"export: {path}, weights in {_exported_dtype(run)}{rounded}")


def places_of(run: Run, path: Path, *, adapters_trained: bool) -> ExportPlaces:
    if not adapters_trained:
        return ExportPlaces(path, None, None)
    starts_from_checkpoint = run.config.policy.path is not None and not run.marks.finished("sft")
    return ExportPlaces(
        model=path if run.config.export.merged else None,
        adapter=path / "adapter",
        base=None if starts_from_checkpoint else path / "base",
    )


def _exported_dtype(run: Run) -> str:
    return run.checkpoint_dtype if run.config.export.dtype == "auto" else run.config.export.dtype


def _rounds_at_random(run: Run, *, merged: bool) -> bool:
    """Whether weights are rounded to the exported type at random, see models/narrowing.

    So they are where those of the checkpoint are numbers of this type: changes are small beside the last
    digit, and rounding to the nearest number would take most of them back. Not where the run itself computed
    with weights rounded to the nearest number: then these are what was evaluated.

    Args:
        merged: whether adapters are merged into the weights, which the run computed beside them.
    """
    exported = _exported_dtype(run)
    if exported == "float32" or run.checkpoint_dtype not in ("bfloat16", exported):
        return False
    return merged or str(compute_dtype(run.config, run.mesh)) != exported


def rounded_to(run: Run, *, merged: bool) -> str | None:
    """The type that the evaluated weights are rounded to by the export; None: they are exported as evaluated.

    Args:
        merged: as for _rounds_at_random.
    """
    exported = _exported_dtype(run)
    computed = {run.config.compute.weights, str(compute_dtype(run.config, run.mesh))}
    is_trained = not run.marks.all().keys().isdisjoint(TRAINING)
    if exported == "float32" or not is_trained or (not merged and exported in computed):
        return None
    return exported


def _export_model(
    run: Run, path: Path, policy: Weights, masks: Weights, *, merged: bool = False, is_base: bool = False
) -> None:
    """Writes a Hugging Face directory, in the first process.

    Args:
        merged: whether adapters are merged into the policy.
        is_base: whether it is what the adapters stand on, which po did not train.
    """
    from sparsepo_jax.models.export import fetch_as_written

    fetched = _Fetched()

    def on_host() -> dict[str, _OnHost]:
        return {name: _OnHost(x, fetched) for name, x in policy.items()}

    def fetch() -> None:
        fetch_as_written(run.spec, on_host(), _exported_dtype(run))

    with _failing_together(fetch, fetched):
        if jax.process_index() != 0:
            fetch()
        else:
            rounded = None if is_base else rounded_to(run, merged=merged)
            about = origin(run, has_masks=bool(masks), is_base=is_base)._replace(rounded_to=rounded)
            card = make_card(about, Parts(), run.output_dir)
            at_random = _rounds_at_random(run, merged=merged)
            _write_model(run, path, on_host(), masks, card, at_random=at_random)


@contextlib.contextmanager
def _failing_together(fetch: Callable[[], None], fetched: "_Fetched") -> Iterator[None]:
    """If the first process cannot write, the others hear of it instead of waiting for its next array.

    fetch: fetches all arrays in the order in which they are written.

    Raises:
        UserError: in the other processes, if the first one could not write.
    """
    fault: Exception | None = None
    try:
        yield
    except (UserError, jax.errors.JaxRuntimeError):  # as in the others
        raise
    except Exception as error:  # of the disk, from several libraries
        fault = error
        if jax.process_count() > 1:
            fetched.skip, fetched.count = fetched.count, 0
            fetch()
    failed = bool(as_the_first(np.array(fault is not None)))
    if fault is not None:
        raise fault
    if failed:
        raise UserError("export: the first process could not write the model; its log says why")


def _write_model(
    run: Run, path: Path, on_host: "dict[str, _OnHost]", masks: Weights, card: str, *, at_random: bool
) -> None:
    from sparsepo_jax.models.export import copy_processor, save_hf

    hf_config, generation = exported_configs(
        run.hf_config,
        run.generation_config,
        run.tokenizer,
        run.spec,
        from_scratch=run.config.policy.path is None,
    )
    save_hf(
        path,
        run.spec,
        hf_config,
        on_host,
        _mask_tensors(run, masks),
        card,
        dtype=_exported_dtype(run),
        at_random=at_random,
        generation=generation,
        source=_source(run),
    )
    _export_tokenizer(run, path)
    if (source := _source(run)) is not None and run.spec.wrapping is not None:
        copy_processor(source, path)


@dataclass
class _Fetched:
    """How many arrays all processes have fetched together.

    Attributes:
        count: of them.
        skip: those that were fetched before and are not fetched again, of which only the shape is of use.
    """

    count: int = 0
    skip: int = 0

    def fetch(self, x: jax.Array, layer: int | None = None) -> np.ndarray:
        """The next array, or a layer of it, from all processes."""
        self.count += 1
        if self.count <= self.skip:
            return np.zeros(x.shape if layer is None else x.shape[1:], x.dtype)
        return to_host(x if layer is None else x[layer])


class _OnHost:
    """An array that comes to every process when it is asked for, a layer of a stack at a time."""

    def __init__(self, x: jax.Array, fetched: _Fetched):
        self._x = x
        self._fetched = fetched
        self._last: tuple[int, np.ndarray] | None = None

    def __getitem__(self, place: int | tuple[int, int]) -> np.ndarray:
        """A layer, or an expert of a layer, which is kept for the experts that follow."""
        if isinstance(place, int):
            return self._fetched.fetch(self._x, place)
        layer, expert = place
        if self._last is None or self._last[0] != layer:
            self._last = None
            self._last = layer, self._fetched.fetch(self._x, layer)
        return self._last[1][expert]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._fetched.fetch(self._x), dtype)


def _source(run: Run) -> Path | None:
    """The checkpoint from which an export takes what is around the text model; None: nothing is."""
    if run.config.policy.path is None or not may_carry(run.spec):
        return None
    return find_checkpoint(run.config.policy.path)


def _export_adapter(run: Run, parts: ExportPlaces, adapters: Weights, lora: Lora, masks: Weights) -> None:
    """Writes adapters in PEFT's format, in the first process."""
    from sparsepo_jax.models.export import save_peft

    adapters = jax.tree.map(to_host, adapters)
    if jax.process_index() != 0:
        return
    base = name_model(parts.base or run.config.policy.path)
    places = Parts(model=None, adapter=".")
    card = make_card(origin(run, has_masks=bool(masks)), places, run.output_dir)
    save_peft(parts.adapter, run.spec, adapters, lora, _mask_tensors(run, masks), card, base)
    _export_tokenizer(run, parts.adapter)


def _export_tokenizer(run: Run, path: Path) -> None:
    """Writes the tokenizer: its files as they came, if it came as files."""
    from sparsepo_jax.models.export import copy_tokenizer

    source = tokenizer_directory(run.config)
    if source is not None:
        copy_tokenizer(source, path)
    elif run.tokenizer is not None:
        run.tokenizer.save_pretrained(path)


def _mask_tensors(run: Run, masks: Weights) -> dict[str, Any]:
    """Mask nets under the official names, and a baseline under its own; {} if none were trained."""
    from sparsepo_jax.masks.official_names import masks_to_tensors

    nets, baseline = split_baseline(masks)
    return (masks_to_tensors(run.config.objective.mask.net, nets) if nets else {}) | baseline


def origin(run: Run, *, has_masks: bool, is_base: bool = False) -> Origin:
    """How the exported model came about, for its card. is_base: it is what adapters stand on."""
    config, marks = run.config, run.marks.all()
    if is_base:
        marks.pop("po", None)
    data = (source for sources in (config.data.sft, config.data.train) for source in sources)
    paths = dict.fromkeys(source.path for source in data if isinstance(source, FileSource))
    return Origin(
        name=run.output_dir.resolve().name,
        start=_start(config),
        base_model=_hub_id(config.policy.path, MODEL_ID),
        datasets=[path for path in paths if _hub_id(path, DATA_ID)],
        trained=[stage for stage in TRAINING if stage in marks],
        objective=config.objective.kind if "po" in marks else None,
        has_masks=has_masks,
        config=config_text(config),
        has_tokenizer=run.tokenizer is not None,
        is_evaluated=not is_base,
    )


def _hub_id(path: str | None, pattern: str) -> str | None:
    """A path that is an id on the Hub; None: it is none."""
    mistakes: list[str] = []
    is_id = path is not None and not is_local(path, "", mistakes, pattern) and not mistakes
    return path if is_id else None


def _start(config: Config) -> str:
    """What the policy was before any stage, for a reader."""
    model = config.policy.path or "random weights"
    return f"{model} + adapter {config.policy.adapter}" if config.policy.adapter else model


def name_model(path: Path | str) -> str:
    """A local directory by its absolute path, so that it is found from anywhere; a Hub id as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else str(path)
