"""What the reference is: said at the start, kept with the run, and held against the first step."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from sparsepo_jax.build.compute import check_batch, compute_dtype, put_on, reference_type
from sparsepo_jax.build.reading import make_reference_tokens
from sparsepo_jax.build.reference import reference_cache_dir, reference_key
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import read_object, write_json
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.run.resume import trains_adapter_further
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.scores import in_order
from sparsepo_jax.stages.weights import reference_is_chosen
from sparsepo_jax.train.checksums import weights_digest
from sparsepo_jax.train.first_step import check_first_step
from sparsepo_jax.train.reference_cache import with_reference


def describe_reference(run: Run, reference: Weights) -> dict[str, Any]:
    """What the reference is in words and by settings, how it is held, and a digest of its weights.

    With config_defaults, where its config.json leaves fields out: what they were taken to be.
    """
    config = run.config
    is_chosen = reference_is_chosen(config)
    chosen = config.reference if is_chosen else config.policy
    path = chosen.path or (config.policy.path if is_chosen else None)
    name = (path or "") + (f" + adapter {chosen.adapter}" if chosen.adapter else "")
    if is_chosen:
        words = name
    elif name and not run.marks.finished("sft"):
        words = f"the policy as po began ({name})"
    else:
        words = "the policy as po began"
    defaults = {"config_defaults": run.reference_defaults} if run.reference_defaults else {}
    return {
        "is": words,
        "path": path,
        "adapter": chosen.adapter,
        "dtype": reference_type(config, run.mesh) if config.po.lora is None else config.po.lora.base,
        "digest": weights_digest(reference),
        **defaults,
    }


def keep_frozen(run: Run, stage: str, name: str, record: dict[str, Any]) -> None:
    """Writes STAGE/NAME.json, what a stage reads and does not train, when the stage begins.

    Args:
        run: whose stage it is.
        stage: sft or po.
        name: reference, or the base of adapters.
        record: what it is in words, its type and its digest: see describe_reference.

    Raises:
        UserError: the stage began with other weights, whose files have changed since.
    """
    path = run.output_dir / stage / f"{name}.json"
    remedy = f"bring the old file back, or delete it if no file of the {name} has changed"
    before = read_object(path, f"the {name} that {stage} began with", remedy) if path.exists() else record
    # Another type has another digest: a run of before reference.dtype held all references in float32.
    if before.get("dtype") == record["dtype"] and before.get("digest") != record["digest"]:
        raise UserError(
            f"the {name} ({record['is']}) has other weights than when {stage} began in {run.output_dir} "
            f"(digest {record['digest']}, then {before.get('digest')}): bring the old files back, or take "
            "another output_dir"
        )
    if jax.process_index() == 0:
        write_json(path, record)


def make_first_step_check(run: Run) -> Callable[[dict[str, float], float], None] | None:
    """A check that the first step's loss is that of policy = reference.

    None, with a line that says why, if it need not be.
    """
    config = run.config
    if reference_is_chosen(config):
        say(
            "po: the reference is one of your choice: the first step's loss is not held against that of "
            "policy = reference"
        )
        return None
    lora = run.lora("po")
    if lora is not None and lora.dropout > 0 and trains_adapter_further(config):
        say(
            "po: po.lora.dropout moves the policy from its first step on: its loss is not held against "
            "that of "
            "policy = reference"
        )
        return None
    from tqdm import tqdm

    dtype = str(compute_dtype(config, run.mesh))
    beta = float(run.problem.beta)

    def check(metrics: dict[str, float], tokens_per_pair: float) -> None:
        largest = check_first_step(metrics, tokens_per_pair, beta=beta, dtype=dtype)
        if jax.process_index() == 0:
            measured = "log-ratio and KL" if "kl/chosen" in metrics else "log-ratio"
            tqdm.write(  # beside the progress bar, not on its line
                f"po: step 1: loss {metrics['loss']:.4f} is that of policy = reference "
                f"({measured} at most {largest:.1g} nats a token)"
            )

    return check


def add_reference(run: Run, table: TokenTable, reference: Weights) -> TokenTable:
    """The table with what the objective needs of the reference, read from the disk or computed now."""
    began_s = time.time()
    size = run.config.evaluation.batch_size
    check_batch("evaluation.batch_size", size, 1, run.mesh)
    put = put_on(run.mesh)
    reference_tokens = make_reference_tokens(run.problem, run.mesh)

    def compute() -> Iterator[Any]:
        with jax.set_mesh(run.mesh):
            for batch in in_order(run, table, size):
                yield jax.device_get(reference_tokens(reference, put(batch)))

    others = table.mismatched
    if others is not None:
        others = add_reference(run, others, reference)
    table, was_kept = with_reference(
        table,
        compute,
        directory=reference_cache_dir(run.config),
        key=reference_key(run.config, run.reference_spec, reference, table),
        dtype=str(compute_dtype(run.config, run.mesh)),
        masks=run.problem.mask_source.reads_activations,
    )
    how = "found on disk" if was_kept else f"computed in {time.time() - began_s:.1f} s"
    say(f"po: the reference's log-probs of {len(table)} {table.unit} {how}")
    return table.with_columns(mismatched=others)
