"""Every knob of the project: `Config`, the configuration that a run is described by.

Pydantic models, frozen and closed (unknown keys are errors), told apart by `kind` where there is a choice.
Nothing here imports JAX, so that `--help`, `--check` and configuration errors do not wait for it.
Descriptions are what `--schema` hands to editors.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.answers import answer_mistakes
from sparsepo_jax.config.schema.base import Natural, Positive, Section
from sparsepo_jax.config.schema.compute import Compute
from sparsepo_jax.config.schema.data import HOLDOUT, Data
from sparsepo_jax.config.schema.evaluation import Evaluation, Harness, Measure, Report
from sparsepo_jax.config.schema.generation import Generation, PairMaking, ScorerSettings
from sparsepo_jax.config.schema.masking import mask_mistakes, warm_gate
from sparsepo_jax.config.schema.models import AutoTokenizer, Export, Policy, Reference, Tokenizer
from sparsepo_jax.config.schema.objectives import AotBase, Mix, Objective, SparsePO
from sparsepo_jax.config.schema.token_weights import Weigh
from sparsepo_jax.config.schema.training import Checkpoint, Logging, PairTraining, TextTraining
from sparsepo_jax.config.schema.weighing import Weighs

Stage = Literal[
    "inspect",
    "sft",
    "weigh",
    "po",
    "score",
    "eval",
    "generate",
    "pairs",
    "measure",
    "harness",
    "report",
    "export",
]
# Stages of one rank may stand in any order among themselves.
_RANKS: dict[Stage, int] = {
    "inspect": 0,
    "sft": 1,
    "weigh": 1,
    "po": 2,
    "score": 3,
    "eval": 3,
    "generate": 3,
    "pairs": 3,
    "export": 3,
    "measure": 4,
    "harness": 4,
    "report": 5,
}
_ORDER = "inspect, sft/weigh, po, then score/eval/generate/pairs/export, then measure/harness, then report"
_NEED_A_POLICY = {"sft", "po", "score", "eval", "generate", "pairs", "harness", "export"}


class Config(Section):
    stages: Annotated[list[Stage], Field(min_length=1)]
    """What the run does, in this order: inspect, sft and weigh, po, then score, eval, generate, pairs and
    export, then measure and harness, then report. Finished stages are not repeated."""
    output_dir: PathText
    """Where everything the run writes is kept; the same directory continues the run."""
    rounds: Positive | None = None
    """Do so many rounds of: the policy answers prompts, its answers are scored and paired (stage pairs), po
    trains on these pairs. Each round goes on from the policy of the one before, in output_dir/round_N, with
    what else the stages ask for. null: a run by itself, whose pairs are data.train."""
    round_reference: Literal["previous", "first"] = "previous"
    """The reference of each round: the policy as the round found it, or as the first round found it (or
    reference.path)."""
    seed: Natural = 0
    """Seeds weights from scratch, adapters, masks, batches, dropout and samples."""
    policy: Policy = Policy()
    """The model that is trained or evaluated."""
    reference: Reference = Reference()
    """The frozen model that log-ratios are taken against."""
    tokenizer: Tokenizer = AutoTokenizer()
    """How text becomes tokens."""
    data: Data = Data()
    """Where rows come from and how they become tokens and batches."""
    objective: Objective = SparsePO()
    """The loss of stage po."""
    sft: TextTraining = TextTraining()
    """Training on responses by likelihood."""
    po: PairTraining = PairTraining()
    """Training on preference pairs."""
    evaluation: Evaluation = Evaluation()
    """The stages score and eval."""
    generation: Generation = Generation()
    """How the stages generate and pairs sample."""
    pairs: PairMaking = PairMaking()
    """The stage pairs: which sampled responses become pairs."""
    weigh: Weigh | None = None
    """The stage weigh: token weights from the scores of finished runs. null: nothing is weighed."""
    scorer: ScorerSettings | None = None
    """How good a response is: the stage pairs needs it, and the mean score of the answers to
    evaluation.sampled_prompts is among the results. null: nothing is scored."""
    measure: Measure = Measure()
    """The stage measure."""
    harness: Harness = Harness()
    """The stage harness."""
    compute: Compute = Compute()
    """Devices, number types, memory and kernels."""
    checkpoint: Checkpoint = Checkpoint()
    """When training states are kept."""
    logging: Logging = Logging()
    """Where metrics go."""
    report: Report = Report()
    """The stage report."""
    export: Export = Export()
    """The stage export."""

    @field_validator("output_dir")
    @classmethod
    def _can_be_made(cls, path: str) -> str:
        if "\0" in path:
            raise ValueError(f"no directory can have this name: {path!r:.60}")
        return path

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        mistakes = [
            *self._stage_mistakes(),
            *self._round_mistakes(),
            *self._input_mistakes(),
            *(self._pair_making_mistakes() if "pairs" in self.stages else ()),
            *self._watching_mistakes(),
            *self._adapter_mistakes(),
            *self._objective_mistakes(),
            *mask_mistakes(self.objective),
            *self._reference_mistakes(),
            *self._offload_mistakes(),
            *answer_mistakes(self),
            *(self._export_mistakes() if "export" in self.stages else ()),
        ]
        if mistakes:
            raise ValueError("\n".join(mistakes))  # one per line; each names its place
        return self

    def _runs(self, *stages: Stage) -> bool:
        """Whether any of these stages is asked for."""
        return not set(stages).isdisjoint(self.stages)

    def _stage_mistakes(self) -> Iterator[str]:
        if len(set(self.stages)) != len(self.stages):
            yield "stages: a stage is listed twice"
        ranks = [_RANKS[stage] for stage in self.stages if not (self.rounds and stage == "pairs")]
        if ranks != sorted(ranks):
            yield f"stages: the order is {_ORDER}; got {', '.join(self.stages)}"

    def _round_mistakes(self) -> Iterator[str]:
        if self.rounds is None:
            return
        if not {"pairs", "po"} <= set(self.stages):
            yield "rounds: each makes pairs and trains on them: set stages=[pairs, po, ...]"
        for stage in ("inspect", "weigh"):
            if self._runs(stage):
                yield f"rounds: stage {stage} is no part of a round: run it by itself"
        if self.data.train:
            yield "data.train: the rounds make it themselves, by stage pairs: leave it out"
        if self.objective.mask is not None and self.objective.mask.kind == "given":
            yield "objective.mask.kind: pairs that a round makes bring no token weights: take another mask"
        if self.round_reference == "previous" and (self.reference.path or self.reference.adapter) is not None:
            yield "round_reference: reference.path names one reference for all rounds: set it to first"
        if self.round_reference == "first" and self.po.lora is not None:
            yield (
                "round_reference: first does not go with po.lora, where the reference is the policy without "
                "its adapters: set it to previous"
            )

    def _input_mistakes(self) -> Iterator[str]:
        """Models and rows that the stages need."""
        if self.policy == Policy() and not _NEED_A_POLICY.isdisjoint(self.stages):
            yield "policy: needed by these stages: set policy.path (a checkpoint) or policy.config (a shape)"
        if self._runs("sft") and not self.data.sft:
            yield "data.sft: needed by stage sft, but empty"
        source = self.sft.taken_from
        if source is not None and os.path.abspath(source) == os.path.abspath(self.output_dir):
            yield (
                "sft.taken_from: this is the run's own output_dir; name that of another run, or leave it out"
            )
        if self._runs("weigh") and self.weigh is None:
            yield "weigh: needed by stage weigh: which weights, from the scores of which runs?"
        if self._runs("po") and not self.data.train and self.rounds is None:
            yield "data.train: needed by stage po, but empty"
        generate_needs_pairs = not self.data.prompts
        reads_pairs = self._runs("score", "eval") or (self._runs("generate") and generate_needs_pairs)
        yield from self._set_mistakes()
        if reads_pairs and not self.data.eval and not (self.data.holdout and self.data.train):
            needs = "data.eval: stages score, eval and generate need this, or data.train with data.holdout"
            yield needs + (", or (generate) data.prompts" if generate_needs_pairs else "")

    def _set_mistakes(self) -> Iterator[str]:
        """Names of evaluation sets that stand for nothing, or for two things."""
        names, main = self.data.set_names, self.evaluation.main
        if names.count(HOLDOUT) > 1:
            yield (
                f"data.eval.{HOLDOUT}: this is what the held-out part of data.train is called: take another "
                "name, or leave out data.holdout"
            )
        if main is not None and main not in names:
            known = f"expected one of {', '.join(names)}" if names else "data.eval has no names: leave it out"
            yield f"evaluation.main: {known}; got {main!r}"

    def _pair_making_mistakes(self) -> Iterator[str]:
        if not self.data.prompts:
            yield "data.prompts: needed by stage pairs, but empty"
        if self.scorer is None:
            yield "scorer: needed by stage pairs: what says which response is better?"
        samples = self.generation.samples
        if samples < 2:
            yield (
                "generation.samples: stage pairs compares the responses to a prompt: set 2 or more, "
                f"not {samples}"
            )
        if self.generation.temperature == 0:
            yield (
                "generation.temperature: 0 draws the same response each time, and stage pairs compares "
                "different ones"
            )

    def _watching_mistakes(self) -> Iterator[str]:
        """What needs evaluations while training, and the metrics that it names."""
        po, best = self.po, self.checkpoint.best
        uses = {
            "po.early_stopping": po.early_stopping is not None,
            "po.keep": po.keep == "best",
            "checkpoint.best": best is not None and po.early_stopping is None and po.keep != "best",
        }
        for name in (name for name, is_used in uses.items() if is_used):
            if po.eval_every_steps is None:
                yield f"{name}: it goes by evaluations while training: set po.eval_every_steps"
            if "po" in self.stages and not self.data.eval and self.data.holdout is None:
                yield f"{name}: it goes by evaluations while training: set data.eval, or data.holdout"
        if po.keep == "best" and po.early_stopping is None and best is None:
            yield "po.keep: best by which metric? Set checkpoint.best.metric (or po.early_stopping)"
        if po.early_stopping is not None and best is not None:
            watched = po.early_stopping
            if (watched.metric, watched.mode) != (best.metric, best.mode):
                yield (
                    "checkpoint.best: po.early_stopping goes by another metric or mode, and one best is "
                    "kept: leave out checkpoint.best, or write the same in both"
                )
        if po.early_stopping is not None:
            yield from self._metric_mistakes("po.early_stopping.metric", po.early_stopping.metric)
        elif best is not None:
            yield from self._metric_mistakes("checkpoint.best.metric", best.metric)

    def _metric_mistakes(self, setting: str, metric: str) -> Iterator[str]:
        sets = ["eval", *(f"eval_{name}" for name in self.data.set_names)]
        if metric.split("/")[0] not in sets or "/" not in metric:
            starts = ", ".join(f"{name}/..." for name in sets)
            yield f"{setting}: expected one of an evaluation set ({starts}), got {metric!r}"

    def _adapter_mistakes(self) -> Iterator[str]:
        policy, reference = self.policy, self.reference
        if policy.adapter is not None and policy.path is None:
            yield "policy.adapter: it is put onto a model: set policy.path"
        if reference.adapter is not None and not (reference.path or policy.path):
            yield "reference.adapter: it is put onto a model: set reference.path or policy.path"
        if self.po.lora is None:
            return
        if reference.path not in (None, policy.path):
            yield (
                "po.lora: the reference is the policy without its adapters: leave out reference.path, "
                "or po.lora"
            )
            return
        after_sft = self._runs("sft") or self.sft.taken_from is not None
        if after_sft and (reference.path or reference.adapter) is not None:
            yield (
                "po.lora: after sft the reference is what sft leaves: leave out reference.path and "
                "reference.adapter, or po.lora"
            )

    def _objective_mistakes(self) -> Iterator[str]:
        """A sum over the batch that weights of pairs would tear apart, parts with what is the sum's, and a
        gate that is still warm in the end."""
        objective = self.objective
        if (
            self._runs("po")
            and self.po.steps is not None
            and (line := warm_gate(objective.mask, self.po.steps))
        ):
            yield line
        parts = objective.parts if isinstance(objective, Mix) else []
        singles = {f"objective.parts.{n}.objective": part.objective for n, part in enumerate(parts)}
        for place, single in ({"objective": objective} | singles).items():
            if isinstance(single, AotBase) and (objective.policy_weight or single.policy_weight):
                yield (
                    f"{place}: {single.kind} compares quantiles of the batch, not pairs that could be "
                    "weighed: leave out policy_weight"
                )
        for place, single in singles.items():
            if single.mask is not None:
                yield f"{place}.mask: all parts share one mask: set objective.mask instead"
            if single.l1_reward > 0 or single.l1_kl > 0:
                yield f"{place}: L1 is that of the mask, which all parts share: set it under objective"

    def _reference_mistakes(self) -> Iterator[str]:
        reason = needs_reference(self.objective) if self.reference.cached else None
        if reason is not None:
            yield f"reference.cached: {reason}, which needs the reference itself: set it to false"

    def _offload_mistakes(self) -> Iterator[str]:
        if self.po.lora is not None and self.compute.offload in ("reference", "both"):
            yield (
                f"compute.offload: {self.compute.offload} does not go with po.lora, where the reference is "
                "the base that the policy computes with: take optimizer or nothing"
            )

    def _export_mistakes(self) -> Iterator[str]:
        """Models and tokenizers that the export would be written over."""
        asked = self.export.path
        target = os.path.realpath(asked or os.path.join(self.output_dir, "export"))
        if asked and Path(os.path.realpath(self.output_dir)).is_relative_to(target):
            yield (
                "export.path: this is output_dir, or holds it: checkpoints would lie among the model's "
                "files, and be pushed with them: name another directory"
            )
        written = [target, os.path.join(target, "adapter"), os.path.join(target, "base")]
        read = {
            "policy.path": self.policy.path,
            "reference.path": self.reference.path,
            "policy.adapter": self.policy.adapter,
            "reference.adapter": self.reference.adapter,
        }
        if self.tokenizer.kind == "pretrained":
            read["tokenizer.path"] = self.tokenizer.path
        what = "this" if asked else f"none is set, and output_dir/export, {target},"
        for name, path in read.items():
            if path is not None and os.path.realpath(path) in written:
                yield (
                    f"export.path: {what} is {name}, or holds it, and would be written over: "
                    "name another directory"
                )


def needs_reference(objective: Any) -> str | None:
    """Why an objective needs more of the reference than its log-probs of the response tokens; None: it does
    not."""
    mask = getattr(objective, "mask", None)
    if mask is not None and mask.kind == "learned":
        return "objective.mask.kind learned reads the reference's states"
    has_kl = isinstance(objective.weighs, Weighs) and objective.weighs.kl
    if not has_kl or (mask is not None and mask.on == "reward_only"):
        return None
    except_for = "" if mask is None else " (but with objective.mask.on=reward_only)"
    return f"objective {objective.kind} has a KL term{except_for}"
