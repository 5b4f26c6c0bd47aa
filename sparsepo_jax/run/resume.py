"""What a run has finished, and with which settings: output_dir/stages.json. A finished stage is not repeated.

A training stage whose settings have changed is refused by name: what lies on disk is another run. So is the
stage pairs, which goes on where it was interrupted. A stage that only reads (weigh, score, eval, measure,
harness, export) is done again when its settings, the weights or the files that it read have changed.
"""

import os
import time
from pathlib import Path
from typing import Any

from sparsepo_jax.config.derive import (
    decided_by_evaluation,
    main_set,
    micro_steps_matter,
)
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import is_complete, read_object, write_json
from sparsepo_jax.run.differences import differences, drop_added
from sparsepo_jax.run.files_read import files_read, stamp

TRAINING = ("sft", "po")
# These stages leave no result: they may run beside another run, and in a directory of other settings.
LOOKING = {"inspect", "report"}
_CONTINUED = (*TRAINING, "pairs")
_MAY_BE_EMPTY = {"pairs_made.jsonl"}  # where no answers differ
_READS = ("seed", "policy", "reference", "tokenizer", "data", "objective", "compute")
_SECTIONS = {
    "sft": ("seed", "policy", "tokenizer", "data", "sft", "compute.weights"),
    "weigh": ("policy", "tokenizer", "weigh", "report.pairs"),
    "po": ("seed", "policy", "reference", "tokenizer", "data", "objective", "po", "compute.weights"),
    "score": (*_READS, "evaluation"),
    "eval": (*_READS, "evaluation", "generation", "report", "scorer"),
    "generate": (*_READS, "generation"),
    "pairs": ("seed", "policy", "tokenizer", "data", "generation", "pairs", "scorer"),
    "measure": ("measure",),
    "harness": (*_READS, "harness"),
    "export": ("seed", "policy", "tokenizer", "objective", "export"),
}
# Settings within these sections that do not change what the stage leaves.
_HARMLESS = {
    "data.cache_dir",
    "reference.cache_dir",
    "data.inspect_rows",
    "po.eval_every_steps",
    "po.skip_nonfinite",
    "sft.skip_nonfinite",
    "sft.taken_from",
    "compute.compile_cache",
    "compute.offload",
    "compute.distributed",
    "export.hub",
    "export.hub_private",
}
_PROMPTS = {"data.prompts", "data.prompt_words"}
_HARMLESS_FOR = {
    "sft": _PROMPTS | {"data.train", "data.eval", "data.holdout"},
    "po": _PROMPTS | {"data.sft", "data.eval"},
    "score": _PROMPTS,
    "eval": _PROMPTS,
    "pairs": {"data.sft", "data.train", "data.eval", "data.holdout", "generation.batch_size"},
}


def trains_adapter_further(config: Config) -> bool:
    """Whether po trains policy.adapter further, as its LoRA.

    Otherwise the adapter, if there is one, is merged when the policy is loaded.
    """
    after_sft = "sft" in config.stages or config.sft.taken_from is not None
    if config.policy.adapter is None or config.po.lora is None or after_sft:
        return False
    return "sft" not in Marks(config).all()


class Marks:
    """The marks of one run: which stages are finished or have begun, and with which settings.

    Of several processes only the first should call `mark`, `unmark` and `begin`.
    """

    def __init__(self, config: Config, directory: str | None = None):
        """The marks in `directory`, compared with the settings of `config`.

        Args:
            directory: of another run, whose sft is to be taken; None: config.output_dir.
        """
        self._config, self.directory = config, Path(config.output_dir if directory is None else directory)
        self._is_own = directory is None
        self._way_out = "take another output_dir" if directory is None else "leave out sft.taken_from"
        self._path = self.directory / "stages.json"

    def all(self) -> dict[str, Any]:
        """{stage: {depends, seconds, finished}}, with taken_from where the sft is another run's.

        Raises:
            UserError: stages.json holds something else.
        """
        if not os.path.isfile(self._path):
            return {}
        what, remedy = "what a run has finished", f"bring the old file back, or {self._way_out}"
        if self._is_own:
            remedy = "bring the old file back, or delete it: stages then go on from their last checkpoints"
        marks = read_object(self._path, what, remedy)
        for mark in marks.values():
            if (
                not isinstance(mark, dict)
                or not isinstance(mark.get("depends"), dict)
                or "finished" not in mark
            ):
                raise UserError(f"{self._path}: expected {what}, found something else; {remedy}")
        return marks

    def finished(self, stage: str, *outputs: Path) -> bool:
        """Whether a stage is finished with these settings, and its outputs are there, to their ends.

        Raises:
            UserError: a stage that would be continued was run with other settings.
        """
        mark = self.all().get(stage)
        if mark is None:
            return False
        drop_added(mark["depends"])
        if stage in _CONTINUED:
            self._refuse_changes(stage, mark["depends"])
        elif not _same_reading(mark["depends"], self.depends(stage)):
            return False
        return all(is_complete(path, may_be_empty=path.name in _MAY_BE_EMPTY) for path in outputs)

    def mark(self, stage: str, seconds: float, taken: "Marks | None" = None) -> None:
        """Notes that a stage is finished.

        Args:
            seconds: that it took.
            taken: the marks of the run that trained it, if that was another. Its time of finishing is kept,
                which tells one training from another.
        """
        mark = {"depends": self.depends(stage), "seconds": round(seconds, 1), "finished": time.time()}
        if taken is not None:
            mark["finished"] = taken.all()[stage]["finished"]
            mark["taken_from"] = str(taken.directory)
        write_json(self._path, self.all() | {stage: mark})

    def unmark(self, stage: str) -> None:
        """Takes the mark of a stage away, if it has one."""
        marks = self.all()
        if marks.pop(stage, None) is not None:
            write_json(self._path, marks)

    def origin(self, stage: str) -> Path:
        """The directory of the run that trained a finished stage.

        This one, or the one its sft was taken from.

        Raises:
            UserError: the other run is not there any more.
        """
        mark = self.all()[stage]
        if "taken_from" not in mark:
            return self.directory
        # The setting comes first: the other run may have been moved.
        for directory in (self._config.sft.taken_from, mark["taken_from"]):
            if directory is None:
                continue
            theirs = Marks(self._config, directory).all().get(stage, {})
            if theirs.get("finished") == mark["finished"] and "taken_from" not in theirs:
                return Path(directory)
        raise UserError(
            f"the {stage} that {self.directory} has taken is not in {mark['taken_from']} any more; bring "
            f"it back, or {self._way_out}"
        )

    def trained_sft(self) -> "Marks | None":
        """The marks of the run that trained the sft which is finished here.

        None: no sft is finished here, or its weights are gone.

        Raises:
            UserError: it was trained with other settings.
        """
        if not self.finished("sft"):
            return None
        trainer = Marks(self._config, str(self.origin("sft")))
        return trainer if trainer.finished("sft", trainer.directory / "sft" / "final") else None

    def sft_to_take(self) -> "Marks":
        """The marks of the run that trained the sft of sft.taken_from.

        Raises:
            UserError: there is none, or it had other settings.
        """
        trainer = Marks(self._config, self._config.sft.taken_from).trained_sft()
        if trainer is None:
            raise UserError(
                "sft.taken_from: expected the output_dir of a run that has finished its stage sft, found "
                "none in "
                f"{self._config.sft.taken_from}; run it first, or leave out sft.taken_from"
            )
        return trainer

    def check(self, stage: str) -> None:
        """UserError if a stage that is continued has begun here with other settings."""
        path = self.directory / stage / "settings.json"
        if path.exists():
            self._refuse_changes(stage, self._began_with(stage, path, "settings"))

    def check_trained(self) -> None:
        """UserError if a stage was trained or has begun here with other settings.

        Going on would put new results beside those of other settings.
        """
        for stage in TRAINING:
            self.finished(stage)
            self.check(stage)

    def begun(self, stage: str) -> bool:
        """Whether a stage that is continued has begun here."""
        return (self.directory / stage / "settings.json").exists()

    def check_data(self, stage: str, digests: dict[str, str]) -> None:
        """UserError if a stage that is continued has begun here with other rows.

        Args:
            digests: of each file's tokens.
        """
        path = self.directory / stage / "data.json"
        before = self._began_with(stage, path, "rows") if path.exists() else digests
        changed = sorted(
            name for name in before.keys() | digests.keys() if before.get(name) != digests.get(name)
        )
        if changed:
            raise UserError(
                f"{', '.join(changed)}: other rows than those that stage {stage} in {self.directory} began "
                "with; "
                f"bring the old file back, or {self._way_out}; if no file has changed, a newer version reads "
                "it otherwise: responses of several turns (data.train_on), token weights (CHANGELOG)"
            )

    def check_computing(self, stage: str, deciding: dict[str, str]) -> None:
        """UserError if a stage that is continued has begun here with other numbers.

        A finished stage may be read with others: what reads it is then done again.

        Args:
            deciding: settings of compute that change its numbers, by name, without auto: see `begin`.
        """
        path = self.directory / stage / "computing.json"
        before = self._began_with(stage, path, "types of numbers") if path.exists() else deciding
        for name in sorted(before.keys() & deciding.keys()):  # one at a time: auto follows from another
            began, now = before[name], deciding[name]
            if began != now:
                raise UserError(
                    f"{self.directory} holds stage {stage} with other settings: {name}, {began} when it "
                    f"began and {now} now; set it back ({name}={began}), or {self._way_out}"
                )

    def _began_with(self, stage: str, path: Path, what: str) -> dict[str, Any]:
        """What a stage noted of its settings or rows when it began. UserError: something else is there."""
        remedy = (
            f"bring the old file back, or delete it if the {what} are as they were: the stage then goes on"
        )
        return read_object(path, f"the {what} that stage {stage} began with", remedy)

    def begin(self, stage: str, digests: dict[str, str], deciding: dict[str, str]) -> None:
        """Notes with which settings and rows a stage that can be continued begins.

        Call it once the stage can really begin: whoever mends a mistake must not be held to the mistake.

        Args:
            digests: of each file's tokens.
            deciding: settings of compute that change its numbers, as they are on these devices.
        """
        (self.directory / stage).mkdir(parents=True, exist_ok=True)
        notes = {"data": digests, "computing": deciding, "settings": self.depends(stage)}
        for name, content in notes.items():
            write_json(self.directory / stage / f"{name}.json", content)

    def depends(self, stage: str) -> dict[str, Any]:
        """What decides what a stage leaves.

        Settings and, where it only reads, the files and weights it reads.
        """
        settings = self._config.model_dump(mode="json")
        harmless = _HARMLESS | _HARMLESS_FOR.get(stage, set())
        if stage == "po" and decided_by_evaluation(self._config):
            harmless -= {"data.eval", "po.eval_every_steps"}
        depends: dict[str, Any] = {}
        for name in _SECTIONS[stage]:
            section, _, only = name.partition(".")
            value = settings[section]
            if isinstance(value, dict):
                value = {
                    key: inner
                    for key, inner in value.items()
                    if f"{section}.{key}" not in harmless and only in ("", key)
                }
            depends[section] = value
        if stage in ("score", "eval", "generate") and self._config.data.set_names:
            depends["evaluation"] = depends.get("evaluation", {}) | {"main": main_set(self._config)}
        if stage == "po" and decided_by_evaluation(self._config):
            chosen = self._config.evaluation
            depends["evaluation"] = {"max_pairs": chosen.max_pairs, "main": main_set(self._config)}
            if self._config.po.early_stopping is None:
                depends["checkpoint"] = {"best": settings["checkpoint"]["best"]}
        drop_added(depends)
        if stage not in TRAINING:
            marks = self.all()
            depends["trained"] = {name: marks[name]["finished"] for name in TRAINING if name in marks}
        if stage not in _CONTINUED:
            depends["files"] = {path: stamp(Path(path)) for path in files_read(self._config, stage)}
        return depends

    def _may_change(self, stage: str) -> set[str]:
        """Settings with which a stage that has begun may go on: they change its memory and speed alone.

        A run that has met too little memory is told to set them.
        """
        if stage in TRAINING and not micro_steps_matter(self._config, stage):
            return {"data.buckets", f"{stage}.accumulation"}
        return {"data.buckets"}

    def _refuse_changes(self, stage: str, before: dict[str, Any]) -> None:
        drop_added(before)
        changed = sorted(set(differences(before, self.depends(stage))) - self._may_change(stage))
        if changed:
            raise UserError(
                f"{self.directory} holds stage {stage} with other settings: {', '.join(changed)}; set them "
                f"back, or {self._way_out}"
            )


def _same_reading(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a stage that only reads would read what it has read.

    Which files that are follows from the settings: those that one version noted and another one does not are
    no change.
    """
    files, files_now = before.get("files", {}), now.get("files", {})
    changed = any(files[path] != files_now[path] for path in files.keys() & files_now.keys())
    return not changed and before | {"files": {}} == now | {"files": {}}


def has_begun(config: Config) -> bool:
    """Whether the run has finished a stage, or begun one that it can continue."""
    marks = Marks(config)
    return bool(marks.all()) or any(marks.begun(stage) for stage in _CONTINUED)
