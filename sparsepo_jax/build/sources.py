"""The configured sources of rows, as the data room takes them."""

from typing import Any


def open_source(source: Any, kind: str) -> Any:
    """A configured source as the data room takes it."""
    from sparsepo_jax.data.sources import Exchanged

    opened = _rows_of(source, kind)
    return Exchanged(opened) if source.exchanged else opened


def _rows_of(source: Any, kind: str) -> Any:
    from sparsepo_jax.data.sources import FileRows, GeneratedRows

    if source.kind == "reviews":
        from sparsepo_jax.data.reviews import make_labelled_reviews, make_review_pairs, make_review_texts

        make = {"sft": make_review_texts, "labelled": make_labelled_reviews}.get(kind, make_review_pairs)
        return GeneratedRows(
            name=f"reviews(seed={source.seed})", rows=make(source.rows, source.seed), weight=source.weight
        )
    return FileRows(
        path=source.path,
        split=source.split,
        subset=source.subset,
        columns=source.columns,
        weight=source.weight,
    )
