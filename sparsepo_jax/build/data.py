"""The run's tokenised rows and the plans of their batches."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sparsepo_jax.build.sources import open_source
from sparsepo_jax.build.tokenizer import template_date
from sparsepo_jax.config.derive import length_limits, sorts_pairs
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.packing import Sizes, sizes_of
from sparsepo_jax.data.pipeline import empty_batch
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.run.resume import LOOKING
from sparsepo_jax.sharding.mesh import (
    batch_sharding,
    pair_shards,
)

# Compiling one batch shape takes about as long as this many steps: five of a 135M model on two CPU cores,
# over a hundred on an H100, more for toy models.
SHAPE_STEPS = 64


def load_data(
    config: Config,
    kind: str,
    sources: list,
    name: str,
    tokenizer: Any | None,
    spec: DecoderSpec | None,
) -> TokenTable:
    """The tokenised rows of some sources.

    With data.on_bad_row=skip, unusable rows are listed in output_dir/bad_rows_NAME.jsonl, unless the run only
    looks.

    Args:
        kind: "sft", "pairs", "unpaired" or "prompts".
        name: of the sources in the section `data`.
        spec: the policy's; None: its vocabulary and positions are not known.
    """
    from sparsepo_jax.data.load import load_table
    from sparsepo_jax.data.ranked import Ranking
    from sparsepo_jax.data.sources import FirstWords

    data = config.data
    positions = (None, "") if spec is None else (spec.max_positions, spec.positions_note)
    max_length, max_prompt_length = length_limits(data, *positions)
    only_looks = LOOKING.issuperset(config.stages)
    opened = [open_source(source, kind) for source in sources]
    if kind == "prompts" and data.prompt_words is not None:
        opened = [FirstWords(source, "prompt", data.prompt_words) for source in opened]
    return load_table(
        opened,
        kind=kind,
        tokenizer=tokenizer,
        vocab_size=None if spec is None else spec.vocab_size,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        separator=data.separator,
        template=data.template,
        template_arguments=data.template_arguments,
        add_bos=data.add_bos,
        add_eos=data.add_eos,
        train_on=data.train_on,
        ranking=Ranking(data.ranked.rule, data.ranked.margin, data.ranked.score),
        on_bad_row=data.on_bad_row,
        bad_rows_path=None if only_looks else Path(config.output_dir) / f"bad_rows_{name}.jsonl",
        cache_dir=data.cache_dir,
        template_date=template_date(config, tokenizer),
        name=f"data.{name}",
        say=_say,
        positions=None if spec is None else spec.max_positions,
        image_tokens=() if spec is None or spec.wrapping is None else spec.wrapping.image_tokens,
    )


def hold_pairs(sources: list) -> bool:
    """Whether some sources are read as pairs: no row of them is a single response with a label.

    Raises:
        UserError: a source cannot be read.
    """
    from sparsepo_jax.data.sources import open_sources
    from sparsepo_jax.data.unpaired import are_pairs

    opened = (source for configured in sources for source in open_sources(open_source(configured, "pairs")))
    return are_pairs(row.content for source in opened for row in source.rows())


def check_some_row_counts(table: TokenTable, name: str) -> None:
    """Checks that rows to train on do not all weigh nothing.

    Args:
        table: the rows.
        name: of the setting that holds their sources.

    Raises:
        UserError: every pair_weight is 0.
    """
    if table.pair_weight_N is not None and not table.pair_weight_N.any():
        raise UserError(f"{name}: every pair_weight is 0, so that no row would count")


def check_pairs_can_be_weighed(table: TokenTable, name: str, objective: Any) -> None:
    """Checks that no pair has a weight where an objective has no use for it.

    Args:
        table: the rows.
        name: of the setting that holds their sources.
        objective: the section.

    Raises:
        UserError: there are weights, and the objective sorts the pairs of a batch.
    """
    if table.pair_weight_N is not None and (table.pair_weight_N != 1).any() and sorts_pairs(objective):
        raise UserError(
            f"{name}: rows with a pair_weight, and AOT compares quantiles of the batch, not pairs that could "
            "be weighed: leave the column out with columns: {unread: pair_weight} beside the path, or take "
            "another objective"
        )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def is_shared(config: Config) -> bool:
    """Whether the prompt runs once for all responses of a row."""
    return config.compute.layout == "shared"


def make_training_plan(config: Config, stage: str, table: TokenTable, mesh: Mesh) -> BatchPlan:
    """The plan of a training stage: one row of tokens for each shard and micro-step."""
    training = getattr(config, stage)
    sizes = _sizes(table, is_shared(config))
    if table.mismatched is not None:  # these lie in batches of the same shapes
        others = _sizes(table.mismatched, is_shared(config))
        sizes = Sizes(*map(np.maximum, sizes, others))
    return BatchPlan(
        sizes,
        table.row_weight_N,
        batch_size=training.batch_size,
        rows=training.accumulation * pair_shards(mesh),
        micro_steps=training.accumulation,
        strata=config.data.strata,
        buckets=config.data.buckets,
        seed=config.seed,
        shuffle=True,
        epochs=training.epochs or 1.0,
        steps=training.steps,
        shape_steps=SHAPE_STEPS,
    )


def _sizes(table: TokenTable, shared: bool) -> Sizes:
    return sizes_of(
        table.prompt_lengths_N,
        table.response_lengths_NP,
        shared=shared,
        laid_lengths_NP=table.laid_lengths_NP,
    )


def make_reading_plan(
    config: Config,
    table: TokenTable,
    batch_size: int,
    mesh: Mesh,
    *,
    response_length: int | None = None,
) -> BatchPlan:
    """A plan of every row once, one row of tokens for each shard.

    Args:
        response_length: leave room for this many tokens in each response, whatever its length.
    """
    lengths_NP, laid_NP = table.response_lengths_NP, table.laid_lengths_NP
    if response_length is not None:
        lengths_NP = laid_NP = np.full_like(lengths_NP, response_length)
    sizes = sizes_of(table.prompt_lengths_N, lengths_NP, shared=is_shared(config), laid_lengths_NP=laid_NP)
    return BatchPlan(
        sizes,
        None,
        batch_size=batch_size,
        rows=pair_shards(mesh),
        strata=config.data.strata,
        buckets=config.data.buckets,
        seed=config.seed,
        shuffle=False,
        shape_steps=SHAPE_STEPS,
    )


def abstract_batches(
    config: Config,
    table: TokenTable,
    plan: BatchPlan,
    mesh: Mesh,
    *,
    with_weights: bool,
    response_length: int | None = None,
) -> list[Any]:
    """Shapes and shardings of a batch of each shape that the plan has."""

    def with_sharding(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))

    return [
        jax.tree.map(
            with_sharding,
            empty_batch(
                table,
                plan,
                shape,
                shared=is_shared(config),
                with_weights=with_weights,
                response_length=response_length,
            ),
        )
        for shape in plan.shapes
    ]


def check_room(name: str, new_tokens: int, prompts: TokenTable, spec: DecoderSpec) -> None:
    """UserError if a response of new_tokens may run past the model's positions."""
    longest = int(prompts.prompt_lengths_N.max())
    if longest + new_tokens > spec.max_positions:
        raise UserError(
            f"{name}: {new_tokens} tokens after the longest prompt ({longest}) do not fit the model's "
            f"{spec.max_positions} positions{spec.positions_note}; "
            f"take {max(spec.max_positions - longest, 0)} or fewer, or a smaller data.max_prompt_length"
        )
