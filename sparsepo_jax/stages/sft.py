"""The stage sft: supervised fine-tuning on data.sft, or another run's sft taken over."""

import functools
import time

from sparsepo_jax.build.data import check_some_row_counts, load_data
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.weights import held_base, initial_adapters
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.lora import merge_adapters
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.sharding.mesh import platform_of
from sparsepo_jax.sharding.processes import wait_for_all
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.po import check_po, prepare_po
from sparsepo_jax.stages.reference import keep_frozen
from sparsepo_jax.stages.training import check_watched_of_po, prepare, say_choices, train
from sparsepo_jax.stages.weights import policy_to_train, say_finished, starting_policy
from sparsepo_jax.train.checksums import weights_digest


def sft(run: Run) -> None:
    """Trains the policy, or its adapters, which are merged into it at the end."""
    taken_from = run.config.sft.taken_from
    if run.marks.finished("sft"):
        say_finished(run, "sft", _where_finished(run))
        return
    if taken_from is not None:
        _take(run, taken_from)
        return
    run.check_training("sft")
    check_watched_of_po(run)
    table = _rows(run, run.marks)
    lora = run.lora("sft")
    prepared = prepare(run, "sft", table, make_problem(run.config, run.spec, run.spec, run.mesh, lora))
    say_choices("sft", prepared.choices)
    if _po_follows(run):
        check_po(run)
    run.begin("sft", table.file_digests())  # after all that may be refused
    meanwhile = functools.partial(_prepare_po, run)
    if lora is None:
        whole = functools.partial(_whole_policy, run)
        train(run, "sft", prepared, whole, None, meanwhile=meanwhile)
        return

    def initial() -> dict[str, Weights]:
        return {"policy": initial_adapters(run.spec, lora, run.config.seed, run.mesh), "masks": {}}

    def merge(weights: dict[str, Weights]) -> dict[str, Weights]:
        policy = merge_adapters(policy_to_train(run), weights["policy"], lora.scale)
        return {"policy": held_base(policy, run.config.compute.weights, run.mesh), "masks": {}}

    base = held_base(starting_policy(run), run.config.sft.lora.base, run.mesh)
    words = run.config.policy.path or "random weights"
    record = {"is": words, "dtype": run.config.sft.lora.base, "digest": weights_digest(base)}
    keep_frozen(run, "sft", "base", record)  # checkpoints hold the adapters alone
    train(run, "sft", prepared, initial, base, finish=merge, meanwhile=meanwhile)


def _whole_policy(run: Run) -> dict[str, Weights]:
    return {"policy": policy_to_train(run), "masks": {}}


def _po_follows(run: Run) -> bool:
    """Whether po is the next stage. Where another comes between, its rows may not be there yet."""
    stages = run.config.stages
    return stages[stages.index("sft") + 1 :][:1] == ["po"] and not run.marks.finished("po")


def _prepare_po(run: Run, _weights: dict[str, Weights]) -> None:
    """Begins to compile po's programs, which goes on while sft trains, if po is the next stage.

    Not on a GPU: XLA takes the tilings that are fastest by the clock, which the steps of sft would disturb.
    """
    if _po_follows(run) and platform_of(run.mesh) != "gpu":
        prepared = prepare_po(run)
        run.prepared_po = None if prepared is None else prepared._replace(beside="sft")


def _where_finished(run: Run) -> str:
    """Says where a finished sft was trained, where that could be mistaken."""
    taken_from = run.marks.all()["sft"].get("taken_from")
    if taken_from:
        return f", that of {taken_from}"
    return ", here: sft.taken_from is not used" if run.config.sft.taken_from else ""


def _take(run: Run, taken_from: str) -> None:
    """Takes over the sft of another run, whose settings and rows must be the same."""
    began_s = time.time()
    theirs = run.marks.sft_to_take()
    _rows(run, theirs)
    wait_for_all("sft to be taken")  # a process that came later would find it finished, and not wait below
    run.mark("sft", began_s, theirs)
    wait_for_all("sft taken")
    say(f"sft: that of {taken_from}")


def _rows(run: Run, marks: Marks) -> TokenTable:
    """data.sft. UserError: other rows than those that the sft of these marks began with."""
    table = load_data(run.config, "sft", run.config.data.sft, "sft", run.tokenizer, run.spec)
    check_some_row_counts(table, "data.sft")
    marks.check_data("sft", table.file_digests())
    return table
