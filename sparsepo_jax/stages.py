"""The stages of a run, one function each, over what build.py makes and programs.py compiles. A finished training stage is marked in output_dir/stages.json."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsepo_jax import build, evaluation, measure, programs
from sparsepo_jax.config.load import config_text, save_config
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json
from sparsepo_jax.core.lock import DirectoryLock
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.packing import FILLER
from sparsepo_jax.data.pipeline import make_batches
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.eval import scores as scoring
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.lora import merge_adapters, split_adapters
from sparsepo_jax.models.spec import DecoderSpec, ignored_note
from sparsepo_jax.pairs import make_pairs
from sparsepo_jax.report.doctor import FirstSteps, diagnose, facts_path, read_evidence
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.run.adapters import same_model
from sparsepo_jax.run.resume import LOOKING, TRAINING, Marks, trains_adapter_further
from sparsepo_jax.sharding.mesh import make_mesh, to_host
from sparsepo_jax.sharding.processes import as_the_first, make_should_stop, wait_for_all
from sparsepo_jax.train.checkpoint import Checkpoints, SavePolicy, load_once, save_once, weights_digest
from sparsepo_jax.train.first_step import check_first_step
from sparsepo_jax.train.forward import Problem
from sparsepo_jax.train.log import MetricsLog
from sparsepo_jax.train.loop import run_training
from sparsepo_jax.train.reference_cache import with_reference
from sparsepo_jax.train.step import TrainState


def run_stages(config: Config, stop: Stop) -> int:
    """Runs config.stages in order; returns the exit code. Everything is written under config.output_dir. Raises what `stop` is asked for, after
    what was trained so far is saved."""
    return Run(config, stop).run()


def say(text: str) -> None:
    """A line for the person at the terminal."""
    if jax.process_index() == 0:
        print(text, flush=True)


def origin_of(config: Config) -> str:
    """What the policy was before any stage, for a reader."""
    return (config.policy.path or "random weights") + (
        f" + adapter {config.policy.adapter}" if config.policy.adapter else ""
    )


def say_other_base(adapter: Adapter, config: Config) -> None:
    """A note, where an adapter says that it was trained on another model than the one it is put onto. Names may differ and mean the same model."""
    base, setting = adapter.config.base, adapter.where.removesuffix(".adapter")
    path = getattr(config, setting).path or config.policy.path
    if base and not same_model(base, path):
        say(
            f"note: {adapter.where}: {adapter.path} says that it was trained on {base}; it is put onto {path}"
        )


def name_rows(table: TokenTable, plan: BatchPlan, step: int, finite: np.ndarray) -> str:
    """The rows of a step whose loss is no finite number; if there is none (the gradient is to blame), all of them."""
    rows = plan.batch(step - 1).rows
    blamed = rows[~finite.ravel() & (rows != FILLER)]
    blamed = blamed if len(blamed) else rows[rows != FILLER]
    return ", ".join(table.origin(row) for row in blamed[:8]) + (
        f" and {len(blamed) - 8} more" if len(blamed) > 8 else ""
    )


def name_model(path: Path | str) -> str:
    """A local directory by its whole path, so that it is found from anywhere; a Hub id as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else str(path)


class Prepared(NamedTuple):
    """A training stage whose programs are being compiled. compiled_before: how many of its step's there were before it. with_weights: its batches carry
    the table's token weights."""

    table: TokenTable
    problem: Problem
    plan: BatchPlan
    step: programs.Step
    compiled_before: int
    with_weights: bool
    compiling: list[Callable[[], tuple[int, float]]]

    def wait(self) -> str:
        """Until all are compiled; what there is to say of it."""
        counts, seconds = zip(*(wait() for wait in self.compiling), strict=True)
        shapes = len(self.plan.shapes)
        found = (
            f"compiled in {max(seconds):.1f} s{', side by side' if sum(counts) > 1 else ''}"
            if any(counts)
            else "compiled before, by this process"
        )
        return f"{shapes} batch {'shape' if shapes == 1 else 'shapes'}, {found}"


class Run:
    """One run: what its stages share, made when first needed."""

    say = staticmethod(say)

    def __init__(self, config: Config, stop: Stop):
        build.start_jax(config)
        config = build.with_adapter_settings(config)
        self.config, self.stop, self.started_s = config, stop, time.time()
        self.output_dir = Path(config.output_dir)
        self.marks = Marks(config)
        self._config_kept = False

    def run(self) -> int:
        stages: dict[str, Callable[[], None]] = {
            "inspect": self.inspect,
            "sft": self.sft,
            "po": self.po,
            "score": lambda: evaluation.score(self),
            "eval": lambda: evaluation.evaluate(self),
            "generate": lambda: evaluation.generate(self),
            "pairs": lambda: make_pairs(self),
            "report": self.report,
            "export": self.export,
            "measure": lambda: measure.measure(self),
            "harness": lambda: evaluation.harness(self),
        }
        measure.check_packages(self.config)
        with self.holding() if not LOOKING.issuperset(self.config.stages) else contextlib.nullcontext():
            for stage in self.config.stages:
                stages[stage]()
        if "po" in self.config.stages and {"eval", "report"}.isdisjoint(self.config.stages):
            self.say_doctor(evaluated=False)  # a summary.json that lies here may be of before
        return 0

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """The directory is this run's alone. UserError, in all processes of the run: another run holds it, or has trained here with other settings."""
        lock, refusal = DirectoryLock(self.output_dir, say), None
        if jax.process_index() == 0:
            try:
                lock.take()
                self.marks.check_trained()
            except Exception as error:  # the other processes must hear of it, whatever it is
                refusal = error
        try:
            if as_the_first(np.array(refusal is not None)):
                raise refusal or UserError("the first process of this run says why it does not begin")
            yield
        finally:
            lock.release()

    def keep_config(self) -> None:
        """Writes config.yaml, once something is known to be done with these settings. What each stage was done with is in stages.json."""
        if jax.process_index() == 0 and not self._config_kept:
            save_config(self.config, self.output_dir / "config.yaml")
            self._config_kept = True

    # ------------------------------------------------------------ shared parts

    @functools.cached_property
    def mesh(self):
        mesh = self.config.compute.mesh
        made = make_mesh(mesh.data, mesh.fsdp, mesh.tensor, mesh.slices)
        say(f"computing: {build.describe_computing(self.config, made)}")
        return made

    @functools.cached_property
    def tokenizer(self) -> Any | None:
        return build.make_tokenizer(self.config)

    @functools.cached_property
    def hf_config(self) -> dict[str, Any]:
        return build.policy_config(self.config, self.tokenizer)

    @functools.cached_property
    def spec(self) -> DecoderSpec:
        return self.read_spec(self.hf_config, self.config.policy.path or "policy.config")

    def read_spec(self, hf_config: dict[str, Any], where: str) -> DecoderSpec:
        """A model's spec; says which fields of its config are ignored."""
        spec = build.read_spec(hf_config, where, build.made_tokenizer(self.config, self.tokenizer))
        if note := ignored_note(hf_config, where):
            say(f"note: {note}")
        return spec

    @functools.cached_property
    def generation_config(self) -> dict[str, Any] | None:
        return build.read_generation(self.config)

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response."""
        return build.ends_of(self.hf_config, self.generation_config, self.tokenizer)

    @functools.cached_property
    def checkpoint_dtype(self) -> str:
        """The type of the weights in policy.path, said when it is first asked for; float32 from scratch."""
        path = self.config.policy.path
        if path is None:
            return "float32"
        dtype = build.checkpoint_dtype(path)
        say(f"policy: {path}: {self.spec.family}, weights in {dtype}; they are trained in float32")
        return dtype

    @functools.cached_property
    def reference_spec(self) -> DecoderSpec:
        path = self.config.reference.path
        if path is None:
            return self.spec
        hf_config = build.checkpoint_config(self.config.reference, "reference")
        spec = self.spec if path == self.config.policy.path else self.read_spec(hf_config, path)
        build.same_tokenizer(self.config.policy.path, path, self.spec, spec)
        return spec

    @functools.cached_property
    def problem(self):
        """Of po, and of what is evaluated."""
        lora = self.lora("po")
        return build.make_problem(
            self.config,
            self.spec,
            self.reference_spec,
            self.mesh,
            lora,
            build.make_reference_lora(self.config, self.spec, lora),
        )

    def lora(self, stage: str):
        return build.make_lora(getattr(self.config, stage), stage, self.spec)

    @functools.cached_property
    def pairs(self) -> tuple[TokenTable | None, TokenTable | None]:
        """(training pairs, evaluation pairs); the held-out part of data.train goes to the second."""
        from sparsepo_jax.data.holdout import split_holdout

        data, load = (
            self.config.data,
            functools.partial(
                build.load_data, self.config, "pairs", tokenizer=self.tokenizer, spec=self.spec
            ),
        )
        train = load(data.train, "train") if data.train else None
        held = load(data.eval, "eval") if data.eval else None
        if data.holdout is not None and train is not None:
            train, part = split_holdout(train, data.holdout.share, data.holdout.seed)
            if not len(train) or not len(part):
                raise UserError(
                    f"data.holdout.share: {data.holdout.share} leaves {len(train)} pairs to train and {len(part)} to evaluate; both "
                    "need some: change the share, or give data.eval"
                )
            held = part if held is None else TokenTable.concat([held, part])
        if held is not None and self.config.evaluation.max_pairs is not None:
            held = held.take(np.arange(min(len(held), self.config.evaluation.max_pairs)))
        for name, table in (("data.train", train), ("data.eval", held)):
            mask = build.mask_config(self.config)
            if mask is not None and mask.kind == "given" and table is not None and not table.has_weights:
                raise UserError(
                    f"objective.mask.kind: given needs token weights, but {name} has no columns chosen_weights and rejected_weights"
                )
        return train, held

    def mark(self, stage: str, began_s: float, taken: Marks | None = None) -> None:
        self.keep_config()
        if jax.process_index() == 0:
            self.marks.mark(stage, time.time() - began_s, taken)

    def begin(self, stage: str, table: TokenTable) -> None:
        self.keep_config()
        if jax.process_index() == 0:
            self.marks.begin(stage, table.file_digests())

    def unmark(self, stage: str) -> None:
        """Before a stage that reads writes anew: a record of old settings must not stand beside new figures, if the run breaks off between the two."""
        if jax.process_index() == 0:
            self.marks.unmark(stage)

    def check(self, stage: str) -> None:
        """UserError before anything is written: other settings than those of the run that would be continued, a batch that cannot be cut, or weights
        that the mesh leaves whole."""
        self.marks.check(stage)
        training = getattr(self.config, stage)
        build.check_batch(f"{stage}.batch_size", training.batch_size, training.accumulation, self.mesh)
        build.check_sharding(
            self.config, stage, self.spec, self.reference_spec if stage == "po" else self.spec, self.mesh
        )

    # ------------------------------------------------------------ weights

    def trained(self, stage: str) -> dict[str, Weights]:
        """{"policy", "masks"} as a finished stage left them: po the weights that it trains, sft the whole policy."""
        lora, masks = (self.lora("po"), self.problem.mask_source) if stage == "po" else (None, None)
        return load_once(
            self.marks.origin(stage) / stage / "final",
            build.abstract(build.trained_shapes(self.spec, lora), masks, self.mesh),
        )

    def starting_policy(self) -> Weights:
        """The policy that po starts from: what sft left, here or in sft.taken_from, else policy.path, else random weights. policy.adapter is merged, or
        (trains_adapter_further) among them as adapters."""
        if self.marks.finished("sft"):
            return self.trained("sft")["policy"]
        if self.config.sft.taken_from is not None and "sft" not in self.config.stages:
            raise UserError(
                f"sft.taken_from: the stage sft takes what {self.config.sft.taken_from} has trained, and has not been run here: add it to stages"
            )
        if self.config.policy.path is not None:
            self.checkpoint_dtype  # noqa: B018  (says it)
            weights = build.load_weights(self.config.policy.path, self.spec, self.mesh)
            return self.with_adapter(
                weights,
                self.config.policy.adapter,
                "policy.adapter",
                merged=not trains_adapter_further(self.config),
            )
        return build.random_weights(self.spec, self.config.seed, self.mesh)

    def with_adapter(self, weights: Weights, path: str | None, where: str, *, merged: bool) -> Weights:
        """The weights with the adapter that lies in path, if any, merged or beside them."""
        if path is None:
            return weights
        adapter = Adapter(path, self.spec if where == "policy.adapter" else self.reference_spec, where)
        say_other_base(adapter, self.config)
        return (
            build.add_adapter(weights, adapter, self.mesh)
            if merged
            else weights | build.adapter_weights(adapter, self.mesh)
        )

    def start_weights(self) -> dict[str, Weights] | None:
        """{"policy", "masks"} as po found them; None if it has not begun."""
        begun = self.output_dir / "po" / "start"
        lora = self.lora("po") if trains_adapter_further(self.config) else None
        like = build.abstract(build.start_shapes(self.spec, lora), self.problem.mask_source, self.mesh)
        return load_once(begun, like) if begun.exists() else None

    def reference_weights(self, start: dict[str, Weights] | None = None) -> Weights:
        """reference.path or reference.adapter, else the policy as it was when po began (start_weights, if they are at hand), else (no po here) the policy
        itself. Under po.lora it brings the base that the policy shares with it, and the adapters that stay."""
        chosen, lora = self.config.reference, self.config.po.lora
        if lora is None and (chosen.path or chosen.adapter) is not None:
            weights = build.load_weights(
                chosen.path or self.config.policy.path, self.reference_spec, self.mesh
            )
            return self.with_adapter(weights, chosen.adapter, "reference.adapter", merged=True)
        start = self.start_weights() if start is None else start
        policy = self.starting_policy() if start is None else start["policy"]
        if lora is None:
            return policy
        if (chosen.path or chosen.adapter) is not None:
            self.refuse_reference_after_sft()
            policy = self.with_adapter(
                split_adapters(policy)[0], chosen.adapter, "reference.adapter", merged=False
            )
        return build.held_base(policy, lora.base, self.mesh)

    def refuse_reference_after_sft(self) -> None:
        """UserError: under po.lora the reference shares the policy's base, which is not policy.path any more."""
        if self.marks.finished("sft"):
            raise UserError(
                "reference: under po.lora the reference stands on what sft left; leave out reference.path and reference.adapter, or po.lora"
            )

    def adapted(self, start: dict[str, Weights]) -> dict[str, Weights]:
        """What po trains, when it begins: the weights themselves, or in the policy's place its adapters, fresh where it has none."""
        lora = self.lora("po")
        if lora is None:
            return start
        adapters = split_adapters(start["policy"])[1]
        return start | {
            "policy": adapters or build.initial_adapters(self.spec, lora, self.config.seed, self.mesh)
        }

    def finished_po(self) -> bool:
        """UserError: one that is not finished."""
        if not self.marks.finished("po") and (self.output_dir / "po" / "start").exists():
            raise UserError(
                f"stage po in {self.output_dir} is not finished: run it again with the stage po first"
            )
        return self.marks.finished("po")

    def current_policy(self) -> Weights:
        """What answers prompts: the policy as it is now, or its adapters."""
        return (
            self.trained("po")["policy"]
            if self.finished_po()
            else self.adapted({"policy": self.starting_policy()})["policy"]
        )

    def current_weights(self) -> dict[str, Weights]:
        """{"policy", "masks"} to score: of the finished po, else policy.path with its stored masks."""
        if self.finished_po():
            return self.trained("po")
        masks = build.stored_masks(self.config, self.problem.mask_source, self.mesh)
        return self.adapted({"policy": self.starting_policy(), "masks": masks})

    # ------------------------------------------------------------ training stages

    def prepare(
        self, stage: str, table: TokenTable, problem: Problem, evaluated: TokenTable | None = None
    ) -> "Prepared":
        """Plans a training stage and begins to compile its programs, from shapes alone: other things can be done meanwhile.

        evaluated: the pairs that it is evaluated on between its steps.
        """
        config, training = self.config, getattr(self.config, stage)
        plan = build.make_training_plan(config, stage, table, self.mesh)
        step = programs.make_step(config, stage, problem, self.spec, plan.steps, self.mesh)
        compiled_before = len(step.program)  # by earlier runs of this process
        reference = build.abstract_frozen(
            config, stage, problem, self.spec, self.reference_spec if stage == "po" else self.spec, self.mesh
        )
        with_weights = stage == "po" and build.brings_weights(config)
        batches = build.abstract_batches(
            config, table, plan, self.mesh, micro_steps=training.accumulation, with_weights=with_weights
        )
        with jax.set_mesh(self.mesh):
            waits = [step.compile_ahead(reference, batches)]
        if evaluated is not None:
            waits.append(self.compile_scores(evaluated, step.like.weights))
        return Prepared(table, problem, plan, step, compiled_before, with_weights, waits)

    def train(
        self,
        stage: str,
        prepared: "Prepared",
        initial: Callable[[], dict[str, Weights]],
        reference: Weights | None,
        evaluate: Callable[[TrainState], dict[str, float]] | None = None,
        finish: Callable[[dict], dict] = lambda weights: weights,
        reference_record: dict[str, Any] | None = None,
    ) -> None:
        """finish: makes what is kept of the weights that were trained. reference_record: what the reference is, for checkpoints."""
        config, began_s, unit = self.config, time.time(), "rows" if stage == "sft" else "pairs"
        training, (table, problem, plan, step, *_) = getattr(config, stage), prepared
        steps = plan.steps
        directory = self.output_dir / stage
        policy = config.checkpoint
        checkpoints = Checkpoints(
            directory / "checkpoints",
            SavePolicy(
                policy.every_steps,
                policy.every_minutes,
                policy.keep,
                policy.best and policy.best.metric,
                policy.best.mode if policy.best else "max",
            )
            if stage == "po"
            else SavePolicy(policy.every_steps, policy.every_minutes, policy.keep),
            {
                "stage": stage,
                "seed": config.seed,
                "config": config.model_dump(mode="json"),
                "finished_stages": sorted(self.marks.all()),
                "reference": reference_record,
            },
            note=lambda text: say(f"{stage}: {text}"),
        )
        state = checkpoints.restore(step.like)
        if state is not None:
            say(f"{stage}: continues after step {checkpoints.latest_step} of {steps}")
        else:
            state = step.start(initial())
        say(
            f"{stage}: {len(table)} {unit}, {steps} steps of {training.batch_size}, {100 * plan.real_token_share():.0f} % real tokens"
        )
        with jax.set_mesh(self.mesh):
            checkpoints.warm_up(state)
        say(f"{stage}: {prepared.wait()}")
        batches = make_batches(
            table,
            plan,
            start=int(state.step),
            stop=steps,
            micro_steps=training.accumulation,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shared=build.is_shared(config),
            with_weights=prepared.with_weights,
        )
        self.keep_config()
        facts = self.write_facts(stage, table, steps)
        logging = config.logging
        with (
            jax.set_mesh(self.mesh),
            MetricsLog(
                self.output_dir,
                stage=stage,
                after_step=int(state.step),
                tensorboard=logging.tensorboard,
                wandb=logging.wandb and logging.wandb.model_dump(),
                config=config.model_dump(mode="json"),
            ) as log,
        ):
            state = run_training(
                stage=stage,
                update=step.update,
                programs=lambda: len(step.program) - prepared.compiled_before,
                state=state,
                reference=reference,
                batches=batches,
                put=build.put_on(self.mesh),
                total_steps=steps,
                checkpoints=checkpoints,
                write=log.write,
                log_every_steps=logging.every_steps,
                evaluate=evaluate,
                eval_every_steps=getattr(training, "eval_every_steps", None),
                unit=unit,
                stop=self.stop,
                should_stop=self.should_stop,
                may_skip=training.skip_nonfinite,
                name_rows=functools.partial(name_rows, table, plan),
                watch=FirstSteps(config.model_dump(mode="json"), facts) if stage == "po" else None,
                check_first=self.first_step_check(problem) if stage == "po" else None,
            )
        save_once(directory / "final", finish(state.weights))
        self.mark(stage, began_s)
        wait_for_all(f"{stage} marked")

    def write_facts(self, stage: str, table: TokenTable, steps: int) -> dict[str, Any]:
        """What the stage works on, for the doctor and the report, which read files alone."""
        facts, path = (
            build.stage_facts(self.config, stage, table, self.spec, steps, self.mesh),
            facts_path(self.output_dir, stage),
        )
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, facts)
        return facts

    def sft(self) -> None:
        if self.marks.finished("sft"):
            taken = self.marks.all()["sft"].get("taken_from")
            say(
                "sft: finished before"
                + (
                    f", that of {taken}"
                    if taken
                    else ", here: sft.taken_from is not used"
                    if self.config.sft.taken_from
                    else ""
                )
            )
            return
        if self.config.sft.taken_from is not None:
            began_s, there = time.time(), self.marks.sft_to_take()
            self.sft_rows(there)
            wait_for_all(
                "sft to be taken"
            )  # a process that came later would find it finished, and not wait below
            self.mark("sft", began_s, there)
            wait_for_all("sft taken")
            say(f"sft: that of {self.config.sft.taken_from}")
            return
        self.check("sft")
        table = self.sft_rows(self.marks)
        self.begin("sft", table)
        lora = self.lora("sft")
        problem = build.make_problem(self.config, self.spec, self.spec, self.mesh, lora)
        prepared = self.prepare("sft", table, problem)
        if lora is None:
            self.train("sft", prepared, lambda: {"policy": self.starting_policy(), "masks": {}}, None)
            return
        initial = lambda: {
            "policy": build.initial_adapters(self.spec, lora, self.config.seed, self.mesh),
            "masks": {},
        }  # noqa: E731
        merge = lambda weights: {
            "policy": merge_adapters(self.starting_policy(), weights["policy"], lora.scale),
            "masks": {},
        }  # noqa: E731
        self.train(
            "sft",
            prepared,
            initial,
            build.held_base(self.starting_policy(), self.config.sft.lora.base, self.mesh),
            finish=merge,
        )

    def sft_rows(self, marks: Marks) -> TokenTable:
        """data.sft. UserError: other rows than those that the sft of these marks began with."""
        table = build.load_data(self.config, "sft", self.config.data.sft, "sft", self.tokenizer, self.spec)
        marks.check_data("sft", table.file_digests())
        return table

    def po(self) -> None:
        if self.marks.finished("po"):
            say("po: finished before")
            return
        self.check("po")
        table, held = self.pairs
        self.marks.check_data("po", table.file_digests())
        if (
            self.config.evaluation.sampled_prompts is not None
            and "eval" in self.config.stages
            and held is not None
        ):  # not after hours of training
            build.check_room(
                "generation.max_new_tokens", self.config.generation.max_new_tokens, held, self.spec
            )
        cached, evaluated = (
            self.config.reference.cached,
            held if self.config.po.eval_every_steps is not None else None,
        )
        prepared = None if cached else self.prepare("po", table, self.problem, evaluated)
        begun = self.output_dir / "po" / "start"
        if not begun.exists():
            start = {
                "policy": self.starting_policy(),
                "masks": build.initial_masks(self.config, self.problem.mask_source, self.mesh),
            }
            self.refuse_dead_masks(table, start)
            self.begin("po", table)
            save_once(begun, start)
        start = self.start_weights()
        reference, evaluate = self.reference_weights(start), None
        record = self.reference_record(reference)
        say(f"po: reference: {record['is']}, {record['dtype']}, digest {record['digest']}")
        self.keep_reference(record)
        if cached:
            table, problem = (
                self.with_reference(table, reference),
                programs.cached_problem(self.problem, self.config),
            )
            prepared = self.prepare("po", table, problem, evaluated)
        if evaluated is not None:
            evaluate = lambda state: scoring.mean_metrics(self.scores(held, state.weights, reference))  # noqa: E731
        elif cached and not self.problem.adapted:
            start = reference = None  # its memory is free
        initial = lambda: self.adapted(self.start_weights() if start is None else start)  # noqa: E731
        self.train("po", prepared, initial, reference, evaluate, reference_record=record)

    def reference_record(self, reference: Weights) -> dict[str, Any]:
        """What the reference is, in words and by settings, how it is held, and a digest of its weights."""
        config, lora = self.config, self.config.po.lora
        chosen = config.reference if self.reference_is_chosen else config.policy
        path = chosen.path or (config.policy.path if self.reference_is_chosen else None)
        name = (path or "") + (f" + adapter {chosen.adapter}" if chosen.adapter else "")
        words = name if self.reference_is_chosen else "the policy as po began"
        if not self.reference_is_chosen and name and not self.marks.finished("sft"):
            words += f" ({name})"
        return {
            "is": words,
            "path": path,
            "adapter": chosen.adapter,
            "dtype": "float32" if lora is None else lora.base,
            "digest": weights_digest(reference),
        }

    @property
    def reference_is_chosen(self) -> bool:
        """Whether the config names a reference; else it is the policy as po began."""
        return (self.config.reference.path or self.config.reference.adapter) is not None

    def keep_reference(self, record: dict[str, Any]) -> None:
        """Writes po/reference.json when po begins. UserError: po began with another reference, whose files have changed since."""
        path = self.output_dir / "po" / "reference.json"
        before = json.loads(path.read_text()) if path.exists() else record
        if before["digest"] != record["digest"]:
            raise UserError(
                f"the reference ({record['is']}) has other weights than when po began in {self.output_dir} (digest {record['digest']}, then "
                f"{before['digest']}): bring the old files back, or take another output_dir"
            )
        if jax.process_index() == 0:
            write_json(path, record)

    def first_step_check(self, problem: Problem) -> Callable[[dict[str, float], float], None] | None:
        """Of po's first step, where policy = reference; says why, where it is left out."""
        if self.reference_is_chosen:
            say(
                "po: the reference is one of your choice: the first step's loss is not held against that of policy = reference"
            )
            return None
        lora = self.lora("po")
        if lora is not None and lora.dropout > 0 and trains_adapter_further(self.config):
            say(
                "po: po.lora.dropout moves the policy from its first step on: its loss is not held against that of policy = reference"
            )
            return None
        from tqdm import tqdm

        dtype = str(build.compute_dtype(self.config, self.mesh))

        def check(metrics: dict[str, float], tokens_a_pair: float) -> None:
            largest = check_first_step(metrics, tokens_a_pair, beta=float(problem.beta), dtype=dtype)
            if jax.process_index() == 0:
                tqdm.write(  # beside the bar of progress, not on its line
                    f"po: step 1: loss {metrics['loss']:.4f} is that of policy = reference "
                    f"(log-ratio and KL at most {largest:.1g} nats a token)"
                )

        return check

    def with_reference(self, table: TokenTable, reference: Weights) -> TokenTable:
        """The table with what the objective needs of the reference, from the disk or computed now."""
        began_s, size, put = time.time(), self.config.evaluation.batch_size, build.put_on(self.mesh)
        build.check_batch("evaluation.batch_size", size, 1, self.mesh)
        tokens = programs.make_reference_tokens(self.problem, self.mesh)

        def compute():
            with jax.set_mesh(self.mesh):
                for batch in self.in_order(table, size):
                    yield jax.device_get(tokens(reference, put(batch)))

        table, found = with_reference(
            table,
            compute,
            directory=build.reference_cache_dir(self.config),
            key=build.reference_key(self.config, self.reference_spec, reference, table),
            dtype=str(build.compute_dtype(self.config, self.mesh)),
            masks=self.problem.mask_source.reads_activations,
        )
        say(
            f"po: the reference's log-probs of {len(table)} pairs "
            + ("found on disk" if found else f"computed in {time.time() - began_s:.1f} s")
        )
        return table

    def refuse_dead_masks(self, table: TokenTable, start: dict[str, Weights]) -> None:
        """UserError if a learned reward mask is zero on every token of some pairs: with policy = reference nothing would ever move."""
        if not start["masks"]:
            return
        some = table.take(np.arange(min(len(table), 256)))
        if (
            scoring.mask_sparsity(self.scores(some, self.adapted(start), self.reference_weights(start)))
            == 1.0
        ):
            raise UserError(
                f"the reward mask starts at zero on every token of the first {len(some)} pairs: neither policy nor mask would get a "
                "gradient; set objective.mask.init=ones, or take another seed"
            )

    # ------------------------------------------------------------ scores

    @functools.cached_property
    def score_batch(self):
        return programs.make_score_batch(self.problem, self.mesh)

    @functools.cached_property
    def sum_log_ratios(self):
        return programs.make_sum_log_ratios(self.problem, self.mesh)

    def scores(
        self, table: TokenTable, weights: dict[str, Weights], reference: Weights
    ) -> list[scoring.PairScore]:
        """Every pair of a table, in order."""
        size = self.config.evaluation.batch_size
        build.check_batch("evaluation.batch_size", size, 1, self.mesh)
        with jax.set_mesh(self.mesh):
            return scoring.score_pairs(
                self.score_batch, build.put_on(self.mesh), self.in_order(table, size), weights, reference
            )

    def compile_scores(self, table: TokenTable, weights: dict[str, Any]) -> Callable[[], tuple[int, float]]:
        """Begins to compile what `scores` of the table needs; see Program.compile_ahead. weights: abstract ones will do."""
        size = self.config.evaluation.batch_size
        build.check_batch("evaluation.batch_size", size, 1, self.mesh)
        plan = build.make_reading_plan(self.config, table, size, self.mesh)
        reference = build.abstract_frozen(
            self.config, "po", self.problem, self.spec, self.reference_spec, self.mesh
        )
        batches = build.abstract_batches(
            self.config, table, plan, self.mesh, micro_steps=1, with_weights=self.reads_weights(table)
        )
        with jax.set_mesh(self.mesh):
            return programs.score_ahead(
                self.problem, self.mesh, [(weights, reference, batch) for batch in batches]
            )

    def reads_weights(self, table: TokenTable) -> bool:
        """Whether the masks that score these pairs come with them."""
        mask = build.mask_config(self.config)
        return mask is not None and mask.kind == "given" and table.has_weights

    def in_order(
        self, table: TokenTable, batch_size: int, response_length: int | None = None
    ) -> Iterator[PairBatch]:
        """This process's part of batches [1, B, ...] that hold every row once. response_length: see build.make_reading_plan."""
        plan = build.make_reading_plan(
            self.config, table, batch_size, self.mesh, response_length=response_length
        )
        batches = make_batches(
            table,
            plan,
            start=0,
            stop=plan.batches_per_epoch,
            micro_steps=1,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shared=build.is_shared(self.config),
            with_weights=self.reads_weights(table),
            response_length=response_length,
        )
        return self.heeding(batches)

    @functools.cached_property
    def should_stop(self) -> Callable[[], type[KeyboardInterrupt] | None]:
        return make_should_stop(self.stop)

    def heeding(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, till the run is asked to stop; which it is between the same two in all processes."""
        for batch in batches:
            if (asked := self.should_stop()) is not None:
                raise asked
            yield batch

    # ------------------------------------------------------------ what a person reads

    def say_summary(self) -> None:
        """What happened in words, the table of numbers, and what the doctor says of the run's files."""
        from sparsepo_jax.report.table import summary_table

        if jax.process_index() != 0:
            return
        path = self.output_dir / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else {}
        for text in (summary.get("words") or outcome(summary), summary_table(summary)):
            if text:
                say(text)
        self.say_doctor(evaluated=True)

    def say_doctor(self, *, evaluated: bool) -> None:
        if jax.process_index() == 0:
            evidence = read_evidence(self.output_dir)
            for line in diagnose(evidence if evaluated else evidence._replace(summary={})):
                say(f"doctor: {line}")

    def report(self) -> None:
        from sparsepo_jax.report.page import write_report

        if jax.process_index() != 0:
            return
        path = write_report(self.output_dir, pairs=self.config.report.pairs)
        self.say_summary()
        say(f"report: {path}")

    def inspect(self) -> None:
        from sparsepo_jax.data.inspect import format_rows

        data = self.config.data
        for kind, sources, name in (
            ("sft", data.sft, "sft"),
            ("pairs", data.train, "train"),
            ("pairs", data.eval, "eval"),
            ("prompts", data.prompts, "prompts"),
        ):
            if sources:
                spec = self.spec if self.config.policy.path or self.config.policy.config else None
                table = build.load_data(self.config, kind, sources, name, self.tokenizer, spec)
                say(f"data.{name}: {len(table)} rows")
                say(format_rows(table, self.tokenizer, range(min(data.inspect_rows, len(table)))))

    def export(self) -> None:
        began_s, path = time.time(), Path(self.config.export.path or self.output_dir / "export")
        has_po, lora = self.marks.finished("po"), self.lora("po")
        adapted = has_po and lora is not None
        whole = self.config.export.merged or not adapted
        base = path / "base" if adapted and not self.starts_from_checkpoint() else None
        parts = {
            path / "config.json": whole,
            path / "adapter" / "adapter_config.json": adapted,
            path / "base" / "config.json": base is not None,
        }
        if self.marks.finished("export", *(file for file, written in parts.items() if written)):
            say(f"export: finished before, {path}")
            return
        trained = self.trained("po") if has_po else {"policy": self.starting_policy(), "masks": {}}
        if not has_po and lora is not None:
            trained["policy"] = merge_adapters(*split_adapters(trained["policy"]), lora.scale)
        start = (
            split_adapters(self.start_weights()["policy"])[0]
            if adapted and (whole or base is not None)
            else None
        )
        masks = jax.tree.map(to_host, trained["masks"])
        self.unmark("export")
        if whole:
            self.export_model(
                path,
                merge_adapters(start, trained["policy"], lora.scale) if adapted else trained["policy"],
                masks,
            )
        if base is not None:
            self.export_model(base, start, {})
        if adapted:
            self.export_adapter(path / "adapter", trained["policy"], lora, masks, base)
        self.mark("export", began_s)
        say(f"export: {path}, weights in {self.exported_dtype}")

    def starts_from_checkpoint(self) -> bool:
        """Whether po starts from the policy as it lies in policy.path."""
        return self.config.policy.path is not None and not self.marks.finished("sft")

    @property
    def exported_dtype(self) -> str:
        return self.checkpoint_dtype if self.config.export.dtype == "auto" else self.config.export.dtype

    def export_model(self, path: Path, policy: Weights, masks: Weights) -> None:
        """The policy as a Hugging Face directory, by the first process."""
        from sparsepo_jax.models.export import save_hf

        dtype, policy = self.exported_dtype, jax.tree.map(to_host, policy)
        if jax.process_index() != 0:
            return
        hf_config, generation = build.exported_configs(
            self.hf_config,
            self.generation_config,
            self.tokenizer,
            self.spec,
            from_scratch=self.config.policy.path is None,
        )
        save_hf(
            path,
            self.spec,
            hf_config,
            policy,
            self.mask_tensors(masks),
            self.card(masks),
            dtype=dtype,
            generation=generation,
        )
        self.export_tokenizer(path)

    def export_adapter(self, path: Path, adapters: Weights, lora, masks: Weights, base: Path | None) -> None:
        """Adapters in PEFT's format, by the first process. base: where the model that they stand on is exported; None: it is policy.path."""
        from sparsepo_jax.models.export import save_peft

        adapters = jax.tree.map(to_host, adapters)
        if jax.process_index() != 0:
            return
        save_peft(
            path,
            self.spec,
            adapters,
            lora,
            self.mask_tensors(masks),
            self.card(masks),
            name_model(base or self.config.policy.path),
        )
        self.export_tokenizer(path)

    def export_tokenizer(self, path: Path) -> None:
        """Its files as they came, if it came as files."""
        from sparsepo_jax.models.export import copy_tokenizer

        if (came_from := build.tokenizer_directory(self.config)) is not None:
            copy_tokenizer(came_from, path)
        elif self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)

    def mask_tensors(self, masks: Weights) -> dict[str, Any]:
        """Mask nets under the official names; {} if none were trained."""
        from sparsepo_jax.masks.learned import masks_to_tensors

        return masks_to_tensors(self.config.objective.mask.net, masks) if masks else {}

    def card(self, masks: Weights) -> str:
        """The model card of what is exported."""
        from sparsepo_jax.models.export import make_card

        summary, marks = self.output_dir / "summary.json", self.marks.all()
        return make_card(
            self.output_dir.name,
            origin=origin_of(self.config),
            trained=[stage for stage in TRAINING if stage in marks],
            objective=self.config.objective.kind if "po" in marks else None,
            has_masks=bool(masks),
            summary=summary.read_text() if summary.exists() else None,
            config=config_text(self.config),
        )
