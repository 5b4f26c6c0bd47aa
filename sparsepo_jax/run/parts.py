"""How many rows are trained on and how many evaluated, where data.holdout keeps some apart."""

from collections.abc import Iterator, Mapping

from sparsepo_jax.config.derive import evaluation_lists, is_unpaired
from sparsepo_jax.config.schema.data import Holdout
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.run.local import Count, total
from sparsepo_jax.run.row_counts import UNKNOWN, Rows, hold_pairs

MIXED_HOLDOUT = (
    "data.holdout: the rows held out are single responses, and those of data.eval pairs: give data.eval "
    "names, or leave one of them out"
)


def kept_rows(rows: Rows, config: Config) -> Count:
    """Rows that an epoch of po sees: about, since held-out prompts may have more or fewer rows than others.

    Args:
        rows: those of data.train.
        config: of the run.
    """
    once, epoch = rows.once.number, rows.epoch.number
    if not once or epoch is None or config.data.holdout is None:
        return rows.epoch
    held_out = _held_out_rows(once, config.data.holdout)
    return Count(round(epoch * (once - held_out) / once), exact=False)


def holdout_mistakes(rows: Mapping[str, Rows], config: Config) -> Iterator[str]:
    """A line if more prompts are held out than there can be, or single responses beside pairs.

    Args:
        rows: by the list of data.
        config: of the run.
    """
    prompts = config.data.holdout.prompts if config.data.holdout is not None else None
    train = rows.get("train", UNKNOWN).once
    if prompts is not None and train.exact and train.number is not None and 0 < train.number <= prompts:
        yield f"data.holdout.prompts: {prompts:,} leaves nothing of data.train's {train} rows to train on"

    is_mixed = config.data.holdout is not None and "eval" in rows and is_unpaired(config.objective)
    if is_mixed and hold_pairs(evaluation_lists(config.data)["eval"]):
        yield MIXED_HOLDOUT


def _held_out_rows(rows: int, holdout: Holdout) -> int:
    """About how many of the rows: as many as prompts, or the share of the prompts."""
    if holdout.share is None:
        return min(rows, holdout.prompts or 0)
    return round(rows * holdout.share)


def evaluated_rows(rows: dict[str, Rows], config: Config) -> dict[str, Count]:
    """Pairs of each evaluation set by its name; of data.eval and the held-out part by "" if it has none.

    Args:
        rows: by the list of data: `train`, `eval`, or `eval.NAME`.
        config: of the run.
    """
    held_out = Count(0)
    if config.data.holdout is not None:
        train = rows["train"].once.number
        number = None if train is None else _held_out_rows(train, config.data.holdout)
        held_out = Count(number, exact=False)
    if names := config.data.set_names:
        of_sets = {name: rows.get(f"eval.{name}", Rows(held_out, held_out)).once for name in names}
        return {name: _at_most(count, config) for name, count in of_sets.items()}
    own = rows["eval"].once
    pairs = total((own.number, held_out.number))
    return {"": _at_most(Count(pairs, pairs is None or (own.exact and held_out.exact)), config)}


def evaluated_unit(name: str, config: Config) -> str:
    """What the rows of an evaluation set are: pairs, or single responses; rows where that is not known.

    Args:
        name: the set's; "": it has none.
        config: of the run.
    """
    if not is_unpaired(config.objective):
        return "pairs"
    sources = evaluation_lists(config.data).get(f"eval.{name}" if name else "eval")
    if not sources:  # the held-out part
        return "responses"
    return {True: "pairs", False: "responses", None: "rows"}[hold_pairs(sources)]


def _at_most(pairs: Count, config: Config) -> Count:
    """The same, evaluation.max_pairs at the most."""
    limit = config.evaluation.max_pairs
    return pairs if pairs.number is None or limit is None or limit >= pairs.number else Count(limit)
