"""What the stages of a run share.

Its settings, its directory, and what is made from the settings when first needed.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sparsepo_jax.build.compute import (
    check_batch,
    check_offload,
    deciding_settings,
    describe_computing,
    start_jax,
)
from sparsepo_jax.build.data import (
    check_pairs_can_be_weighed,
    check_some_row_counts,
    hold_pairs,
    load_data,
)
from sparsepo_jax.build.lora import make_lora, make_reference_lora, with_adapter_settings
from sparsepo_jax.build.models import (
    check_weights,
    checkpoint_config,
    checkpoint_dtype,
    policy_config,
    read_generation,
    read_spec,
)
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.tokenizer import ends_of, made_tokenizer, make_tokenizer, same_tokenizer
from sparsepo_jax.build.weights import check_sharding
from sparsepo_jax.config.derive import evaluation_lists, is_unpaired, length_limits, main_set
from sparsepo_jax.config.load import save_config
from sparsepo_jax.config.schema.data import HOLDOUT
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.lock import DirectoryLock
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.data.example import RowKind
from sparsepo_jax.data.holdout import split_holdout
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.unpaired import has_one_prompt, mismatched
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.spec import absent_fields, fields_note
from sparsepo_jax.run.parts import MIXED_HOLDOUT
from sparsepo_jax.run.resume import TRAINING, Marks
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.sharding.processes import as_the_first, make_should_stop
from sparsepo_jax.train.anchor import MISMATCHED
from sparsepo_jax.train.problem import Problem


def say(text: str) -> None:
    """Prints a line for the person at the terminal, in the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


class Run:
    """One run. Stages take it as their argument and write under `output_dir`."""

    def __init__(self, config: Config, stop: Stop, began_s: float | None = None):
        """Starts JAX.

        Args:
            began_s: when the command was started, time.time(); None: now.
        """
        self.waiting_since_s, self.waiting_since = time.time() if began_s is None else began_s, "start"
        start_jax(config)
        self.config = with_adapter_settings(config)
        self.stop = stop
        self.started_s = time.time()
        self.earlier_s = 0.0  # that stages which end in this run took in earlier ones; see MetricsLog
        self.output_dir = Path(config.output_dir)
        self.marks = Marks(self.config)
        self.meanwhile: Future[str] | None = None  # programs that are being compiled for the stage eval
        self.prepared_po: Any = None  # what sft has begun to compile for po: stages.training.Prepared
        self._config_is_written = False
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Says once what a person may not have meant."""
        if text not in self._noted:
            self._noted.add(text)
            say(f"note: {text}")

    def stage_ended(self, stage: str) -> None:
        """Notes from when on one waits for the first step of the next stage."""
        self.waiting_since_s, self.waiting_since = time.time(), f"stage {stage}"

    # ------------------------------------------------------------ made from the settings, when first needed

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices; says what they are and in which precision they compute."""
        axes = self.config.compute.mesh
        mesh = make_mesh(axes.data, axes.fsdp, axes.tensor, axes.slices)
        say(f"computing: {describe_computing(self.config, mesh)}")
        return mesh

    @functools.cached_property
    def tokenizer(self) -> Any | None:
        """The tokenizer; None if the data must come tokenised."""
        return make_tokenizer(self.config)

    @functools.cached_property
    def hf_config(self) -> dict[str, Any]:
        """The policy's config.json."""
        return policy_config(self.config, self.tokenizer)

    @functools.cached_property
    def spec(self) -> DecoderSpec:
        """The policy's decoder."""
        return self._read_spec(self.hf_config, self.config.policy.path or "policy.config")

    @functools.cached_property
    def reference_spec(self) -> DecoderSpec:
        """The reference's decoder; the policy's unless reference.path names another."""
        path = self.config.reference.path
        if path is None:
            return self.spec
        hf_config = checkpoint_config(self.config.reference, "reference")
        spec = self.spec if path == self.config.policy.path else self._read_spec(hf_config, path)
        same_tokenizer(self.config.policy.path, path, self.spec, spec)
        if note := check_weights(path, spec):
            say(f"note: {note}")
        return spec

    @functools.cached_property
    def policy_defaults(self) -> dict[str, Any]:
        """The fields that the policy's config.json leaves out, as the installed transformers has them."""
        return absent_fields(self.hf_config)

    @functools.cached_property
    def reference_defaults(self) -> dict[str, Any]:
        """The same of the reference."""
        reference = self.config.reference
        if reference.path in (None, self.config.policy.path):
            return self.policy_defaults
        return absent_fields(checkpoint_config(reference, "reference"))

    def _read_spec(self, hf_config: dict[str, Any], where: str) -> DecoderSpec:
        """A model's decoder; says which fields of its config are ignored."""
        spec = read_spec(hf_config, where, made_tokenizer(self.config, self.tokenizer))
        if note := fields_note(hf_config, where):
            say(f"note: {note}")
        return spec

    @functools.cached_property
    def generation_config(self) -> dict[str, Any] | None:
        """The policy's generation_config.json, or None."""
        return read_generation(self.config)

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response."""
        return ends_of(self.hf_config, self.generation_config, self.tokenizer)

    @functools.cached_property
    def checkpoint_dtype(self) -> str:
        """The type of the weights in policy.path, float32 without one; says it once."""
        path = self.config.policy.path
        if path is None:
            return "float32"
        dtype = checkpoint_dtype(path)
        trained = self._how_trained()
        say(f"policy: {path}: {self.spec.family}, weights in {dtype}{trained}")
        if note := check_weights(path, self.spec):
            say(f"note: {note}")
        return dtype

    def _how_trained(self) -> str:
        """In which type, as the end of a line about the policy's weights; empty where none are trained."""
        training = [getattr(self.config, stage) for stage in TRAINING if stage in self.config.stages]
        if not training:
            return ""
        if all(of_stage.lora is not None for of_stage in training):
            return "; adapters on them are trained in float32"
        return f"; they are trained in {self.config.compute.weights}"

    @functools.cached_property
    def problem(self) -> Problem:
        """What the stage po trains, and what is evaluated."""
        lora = self.lora("po")
        reference_lora = make_reference_lora(self.config, self.spec, lora)
        return make_problem(self.config, self.spec, self.reference_spec, self.mesh, lora, reference_lora)

    def lora(self, stage: str) -> Lora | None:
        """The adapters that a training stage trains; None if it trains all weights."""
        return make_lora(getattr(self.config, stage), stage, self.spec)

    @property
    def training_pairs(self) -> TokenTable | None:
        """The rows of data.train, without what is held out of them."""
        return self._train_and_held_out[0]

    @property
    def evaluation_pairs(self) -> TokenTable | None:
        """Those of the main set, where data.eval has names."""
        return self.evaluation_sets.get(main_set(self.config) or "")

    @property
    def other_sets(self) -> dict[str, TokenTable]:
        """The evaluation sets beside the main one, by name."""
        main = main_set(self.config) or ""
        return {name: table for name, table in self.evaluation_sets.items() if name != main}

    @functools.cached_property
    def _train_and_held_out(self) -> tuple[TokenTable | None, TokenTable | None]:
        data = self.config.data
        train = self._load_pairs(data.train, "train", "unpaired" if self._is_unpaired else "pairs")
        held_out = None
        if data.holdout is not None and train is not None:
            train, held_out = split_holdout(train, **dict(data.holdout))
        self._check_given_weights("data.train", train)
        if train is not None:
            check_some_row_counts(train, "data.train")
            check_pairs_can_be_weighed(train, "data.train", self.config.objective)
            train = self._with_mismatched(train, "data.train")
        return train, held_out

    @functools.cached_property
    def evaluation_sets(self) -> dict[str, TokenTable]:
        """All evaluation sets by name, in order; one called "" where data.eval has no names.

        The held-out part of data.train is one of them, or belongs to the one without a name. data.train is
        read only if something of it is evaluated: who evaluates elsewhere need not have it.
        """
        data = self.config.data
        tables = {
            name.removeprefix("eval").removeprefix("."): self._load_pairs(
                sources, name, self.evaluation_kind(sources)
            )
            for name, sources in evaluation_lists(data).items()
        }
        held_out = None if data.holdout is None else self._train_and_held_out[1]
        if held_out is not None:
            name = HOLDOUT if data.set_names else ""
            given = tables.get(name)
            if given is not None and given.responses_per_row != held_out.responses_per_row:
                raise UserError(MIXED_HOLDOUT)
            tables[name] = held_out if given is None else TokenTable.concat([given, held_out])
        sets = {
            name: self._with_mismatched(
                self._first_pairs(table), f"data.eval {name}".rstrip(), lambda: self.training_pairs
            )
            for name, table in tables.items()
            if table is not None
        }
        for name, table in sets.items():
            self._check_given_weights(f"data.eval.{name}" if name else "data.eval", table)
        return sets

    def _first_pairs(self, table: TokenTable) -> TokenTable:
        """evaluation.max_pairs of them."""
        limit = self.config.evaluation.max_pairs
        return table if limit is None else table.take(np.arange(min(len(table), limit)))

    @property
    def _is_unpaired(self) -> bool:
        return is_unpaired(self.config.objective)

    def evaluation_kind(self, sources: list[Any]) -> RowKind:
        """What the rows of an evaluation set are read as: pairs, unless they have labels that count."""
        return "unpaired" if self._is_unpaired and not hold_pairs(sources) else "pairs"

    def _load_pairs(self, sources: list[Any], name: str, kind: RowKind) -> TokenTable | None:
        if not sources:
            return None
        return load_data(self.config, kind, sources, name, self.tokenizer, self.spec)

    def _with_mismatched(
        self, table: TokenTable, name: str, lenders: Callable[[], TokenTable | None] = lambda: None
    ) -> TokenTable:
        """The rows with mismatched responses, if the objective reads these; lenders: gives others, where it
        has none of its own."""
        if MISMATCHED not in self.config.objective.reads:
            return table
        longest, _ = length_limits(self.config.data, self.spec.max_positions, self.spec.positions_note)
        borrows = has_one_prompt(table)
        others = mismatched(table, name, longest, lenders() if borrows else None)
        if borrows:
            say(f"{name}: all rows have one prompt: KTO's baseline is that of responses of data.train")
        return table.with_columns(mismatched=others)

    def _check_given_weights(self, name: str, table: TokenTable | None) -> None:
        mask = self.config.objective.mask
        if mask is not None and mask.kind == "given" and table is not None and not table.has_weights:
            columns = "chosen_weights and rejected_weights"
            if table.label_N is not None:
                columns = f"completion_weights (of pairs {columns})"
            raise UserError(
                f"objective.mask.kind: given needs token weights, but {name} has no columns {columns}"
            )

    # ------------------------------------------------------------ signals

    @functools.cached_property
    def should_stop(self) -> Callable[[], type[KeyboardInterrupt] | None]:
        """Asks all processes whether one of them was told to stop."""
        return make_should_stop(self.stop)

    def until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, until the run is asked to stop. All processes stop between the same two batches."""
        for batch in batches:
            if (asked := self.should_stop()) is not None:
                raise asked
            yield batch

    # ------------------------------------------------------------ the directory and its record

    @contextlib.contextmanager
    def locked_directory(self) -> Iterator[None]:
        """Keeps the output directory to this run.

        Raises:
            UserError: in all processes, if another run holds it or has trained in it with other settings.
        """
        lock = DirectoryLock(self.output_dir, say)
        refusal: Exception | None = None
        if jax.process_index() == 0:
            try:
                lock.take()
                self.marks.check_trained()
            except Exception as error:  # whatever it is, the other processes must hear of it
                refusal = error
        try:
            if as_the_first(np.array(refusal is not None)):
                raise refusal or UserError("the first process of this run says why it does not begin")
            yield
        finally:
            lock.release()

    def write_config(self) -> None:
        """Writes config.yaml, when something is about to be done with these settings.

        What each stage was done with is in stages.json.
        """
        if jax.process_index() == 0 and not self._config_is_written:
            save_config(self.config, self.output_dir / "config.yaml")
            self._config_is_written = True

    def check_begun(self, stage: str) -> None:
        """UserError if a stage that is continued has begun here with other settings, or in other numbers."""
        self.marks.check(stage)
        self.marks.check_computing(stage, deciding_settings(self.config, stage, self.mesh))

    def check_training(self, stage: str) -> None:
        """Refuses a training stage before anything is written.

        Raises:
            UserError: the run to be continued had other settings, a batch cannot be cut into micro-steps and
                shards, or the mesh leaves weights whole.
        """
        self.check_begun(stage)
        training = getattr(self.config, stage)
        check_batch(f"{stage}.batch_size", training.batch_size, training.accumulation, self.mesh)
        check_offload(self.config, self.mesh)
        reference_spec = self.reference_spec if stage == "po" else self.spec
        check_sharding(self.config, stage, self.spec, reference_spec, self.mesh)

    def begin(self, stage: str, digests: dict[str, str]) -> None:
        """Notes that a stage begins which can be continued, and with which rows: a digest for each file."""
        self.write_config()
        if jax.process_index() == 0:
            self.marks.begin(stage, digests, deciding_settings(self.config, stage, self.mesh))

    def mark(self, stage: str, began_s: float, taken: Marks | None = None) -> None:
        """Notes that a stage is finished.

        taken: the marks of the run that trained it, if that was another.
        """
        self.write_config()
        if jax.process_index() == 0:
            self.marks.mark(stage, time.time() - began_s, taken)

    def unmark(self, stage: str) -> None:
        """Takes a reading stage's mark away before it writes anew.

        Otherwise a run that breaks off in between would leave new figures beside the record of old settings;
        and figures without config.yaml beside them would be taken for the user's own, see `run.places`.
        """
        self.write_config()
        if jax.process_index() == 0:
            self.marks.unmark(stage)
