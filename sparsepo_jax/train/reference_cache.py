"""What an objective needs of the reference, token by token, computed once and kept on disk: its log-probs and, for MaPO, its masks.

A file is found by what its numbers depend on: the reference's weights, the tokens, the truncation (and, for masks, which mask). Nothing else
counts: another learning rate, objective or batch size finds it again. What it says of itself must agree, or it is refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import written_atomically
from sparsepo_jax.core.tree import Weights
from sparsepo_jax.data.load import NOT_WHOLE
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.sharding.mesh import to_host


def weights_digest(weights: Weights) -> str:
    """A hash of all weights, by path; one at a time on the host."""
    digest = hashlib.sha256()
    for path in sorted(weights):
        for leaf in jax.tree.leaves(weights[path]):
            x = to_host(leaf)
            digest.update(f"{path} {x.dtype} {x.shape}".encode())
            digest.update(np.ascontiguousarray(x).view(np.uint8).data)
    return digest.hexdigest()


def with_reference(
    table: TokenTable,
    compute: Callable[[], Iterable[tuple]],
    *,
    directory: Path,
    key: Mapping[str, Any],
    dtype: str,
    masks: bool,
) -> tuple[TokenTable, bool]:
    """(the table with the reference's log-probs and, where wanted, its masks as token weights; whether they were found on disk).

    compute() gives, batch by batch, rows [B], their weights [B] (0: filler), log-probs and masks (or None) [B, P, T]. key: what the numbers depend on, plain JSON values.
    dtype: the reference's type of activations. UserError: a file under this key that says it is of something else.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path, about, names = (
        directory / f"{name}.npz",
        {**key, "dtype": dtype},
        ("ref_logp", "mask") if masks else ("ref_logp",),
    )
    found = _read(path, about, names, len(table.responses.flat))
    if jax.process_count() > 1:  # all or none: computing is a joint effort
        found = (
            found if bool(np.all(multihost_utils.process_allgather(np.array(found is not None)))) else None
        )
    columns = _collect(table, compute(), names) if found is None else found
    if found is None and jax.process_index() == 0:
        _write(path, about, columns)
    given = {"all_ref_logp": columns["ref_logp"]} | ({"all_weights": columns["mask"]} if masks else {})
    return table.with_columns(**given), found is not None


def _collect(table: TokenTable, computed: Iterable[tuple], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    columns = {name: np.full(len(table.responses.flat), np.nan, np.float32) for name in names}
    starts, P = table.responses.starts, table.responses_per_row
    for row_B, weight_B, *values in computed:
        for b in np.flatnonzero(weight_B):
            for p in range(P):
                begin, end = starts[row_B[b] * P + p : row_B[b] * P + p + 2]
                for column, x_BPT in zip(columns.values(), values):
                    column[begin:end] = x_BPT[b, p, : end - begin]
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise UserError(
                f"reference.cached: {int((~np.isfinite(column)).sum())} of {len(column)} values of {name} are not finite numbers; is the "
                "reference sound? (set reference.cached=false to train on it as it is)"
            )
    return columns


def _read(
    path: Path, about: dict[str, Any], names: tuple[str, ...], tokens: int
) -> dict[str, np.ndarray] | None:
    """None: nothing is there, or a file that is not whole (it is made anew, and said)."""
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            said = dict(json.loads(str(arrays["about"])))
            columns = {name: np.asarray(arrays[name], np.float32) for name in names}
        if not all(column.ndim == 1 and np.isfinite(column).all() for column in columns.values()):
            raise ValueError("nothing that was written here")
    except NOT_WHOLE:
        if jax.process_index() == 0:
            print(f"note: {path} is damaged: the reference's log-probs are computed anew")
        return None
    wrong = sorted(name for name in said.keys() | about.keys() if said.get(name) != about.get(name))
    if wrong or any(len(column) != tokens for column in columns.values()):
        what = (
            ", ".join(f"{name} {said.get(name)!r} (expected {about.get(name)!r})" for name in wrong)
            or "another number of tokens"
        )
        raise UserError(
            f"{path}: reference log-probs of something else: {what}; delete the file, or set reference.cached=false"
        )
    return columns


def _write(path: Path, about: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """Whole or not at all. A cache that cannot be written is no reason to stop."""
    try:
        with written_atomically(path) as file:
            np.savez(file, about=np.array(json.dumps(about)), **columns)
    except OSError as error:
        print(
            f"note: the reference's log-probs are not kept: {path.parent} cannot be written ({error.strerror})"
        )
