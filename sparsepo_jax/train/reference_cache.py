"""What an objective needs of the reference, token by token, computed once and kept on disk.

These are the reference's log-probs and, for MaPO, its masks. A file is found by what its numbers depend on:
the reference's weights, the tokens, the truncation (and, for masks, which mask). Nothing else counts: a run
with another learning rate, objective or batch size finds it again. What a file says of itself must agree,
or it is refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import written_atomically
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.cache import NOT_WHOLE
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.sharding.mesh import to_host

TokenColumns = dict[str, np.ndarray]  # name -> a number for each response token of a table, in order


def sha256_of_weights(weights: Weights) -> str:
    """A SHA-256 of all weights and their paths. They come to the host one at a time.

    Args:
        weights: arrays by path, or quantised weights, whose parts are hashed.
    """
    digest = hashlib.sha256()
    for path in sorted(weights):
        for leaf in jax.tree.leaves(weights[path]):
            x = to_host(leaf)
            digest.update(f"{path} {x.dtype} {x.shape}".encode())
            digest.update(np.ascontiguousarray(x).view(np.uint8).data)
    return digest.hexdigest()


def with_reference(
    table: TokenTable,
    compute: Callable[[], Iterable[tuple[Any, ...]]],
    *,
    directory: Path,
    key: Mapping[str, Any],
    dtype: str,
    masks: bool,
) -> tuple[TokenTable, bool]:
    """A table with what an objective needs of the reference, from disk or computed now and kept.

    Args:
        table: pairs without it.
        compute: `compute()` gives for each batch (rows [B], their weights [B] with 0 for filler, log-probs
            [B, P, T] in nats, masks [B, P, T] or None).
        directory: of the cache.
        key: what the numbers depend on, plain JSON values.
        dtype: the reference's type of activations.
        masks: whether the masks are wanted, too; they become the table's token weights.

    Returns:
        (the table with these columns, whether they were on disk).

    Raises:
        UserError: the file under this key says that it is of something else, or what was computed is not
            finite.
    """
    about = {**key, "dtype": dtype}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = directory / f"{name}.npz"
    names = ("ref_logp", "mask") if masks else ("ref_logp",)
    columns = _read(path, about, names, len(table.responses.flat))
    if not _everywhere(columns is not None):  # all processes or none read: computing is a joint effort
        columns = None
    is_cached = columns is not None
    if columns is None:
        columns = _collect(table, compute(), names)
        if jax.process_index() == 0:
            _write(path, about, columns)
    new_columns = {"all_ref_logp": columns["ref_logp"]}
    if masks:
        new_columns["all_weights"] = columns["mask"]
    return table.with_columns(**new_columns), is_cached


def _everywhere(here: bool) -> bool:
    """Whether it is so in all processes of the run."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def _collect(table: TokenTable, computed: Iterable[tuple[Any, ...]], names: Sequence[str]) -> TokenColumns:
    """Puts what was computed batch by batch into the order of the table's tokens."""
    columns = {name: np.full(len(table.responses.flat), np.nan, np.float32) for name in names}
    starts = table.responses.starts
    P = table.responses_per_row
    for row_B, weight_B, *values in computed:
        for b in np.flatnonzero(weight_B):
            for p in range(P):
                response = row_B[b] * P + p
                begin, end = starts[response : response + 2]
                # Without masks, the values have a None that no column takes.
                for column, x_BPT in zip(columns.values(), values, strict=False):
                    column[begin:end] = x_BPT[b, p, : end - begin]
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise UserError(
                f"reference.cached: {int((~np.isfinite(column)).sum())} of {len(column)} values of {name} "
                "are not finite numbers; is the reference sound? (set reference.cached=false to train on "
                "it as it is)"
            )
    return columns


def _read(path: Path, about: Mapping[str, Any], names: Sequence[str], tokens: int) -> TokenColumns | None:
    """None: there is no file, or a damaged one (which is told, and written anew later)."""
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            written_about = dict(json.loads(str(arrays["about"])))
            columns = {name: np.asarray(arrays[name], np.float32) for name in names}
        if not all(column.ndim == 1 and np.isfinite(column).all() for column in columns.values()):
            raise ValueError("nothing that was written here")
    except NOT_WHOLE:
        if jax.process_index() == 0:
            print(f"note: {path} is damaged: the reference's log-probs are computed anew")
        return None
    keys = written_about.keys() | about.keys()
    wrong = sorted(key for key in keys if written_about.get(key) != about.get(key))
    if not wrong and all(len(column) == tokens for column in columns.values()):
        return columns
    differences = ", ".join(
        f"{key} {written_about.get(key)!r} (expected {about.get(key)!r})" for key in wrong
    )
    raise UserError(
        f"{path}: reference log-probs of something else: {differences or 'another number of tokens'}; "
        "delete the file, or set reference.cached=false"
    )


def _write(path: Path, about: Mapping[str, Any], columns: TokenColumns) -> None:
    """Writes all or nothing. A cache that cannot be written is no reason to stop."""
    try:
        with written_atomically(path) as file:
            arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **columns}
            np.savez(file, **arrays)
    except OSError as error:
        print(
            f"note: the reference's log-probs are not kept: {path.parent} cannot be written "
            f"({error.strerror})"
        )
