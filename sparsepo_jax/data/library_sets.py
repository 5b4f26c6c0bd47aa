"""Rows that the library `datasets` reads: of a directory, its own or another, or of a data set of the Hub."""

import functools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.data.readers import suffix_of
from sparsepo_jax.data.row_source import RowSource, digest_of_files
from sparsepo_jax.data.rows import BadRow, Row, one_line
from sparsepo_jax.data.splits import SplitError, split_ranges


def open_library_set(path: str, split: str, subset: str | None) -> RowSource:
    """A data set that `datasets` reads.

    Args:
        path: a directory, or an id of the Hub.
        split: a split or a part of it, as `datasets` writes it: train[:80%].
        subset: the configuration of a data set that has several.

    Raises:
        UserError: there is none, or it has no such split or subset.
    """
    if not os.path.isdir(path):
        _require_hub(path)
    import datasets

    saved = (os.path.join(path, name) for name in ("dataset_dict.json", "state.json"))
    try:
        if any(map(os.path.exists, saved)):
            parts = _saved_parts(datasets.load_from_disk(path), split)
        else:
            data = datasets.load_dataset(path, subset, split=split)
            parts = [(data, 0, len(data))]
    except SplitError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        # Whatever `datasets` raises (its errors have no common base) is about the user's path, split or
        # subset.
        raise UserError(f"{path}: `datasets` cannot read it ({one_line(error.__cause__ or error)})") from None
    # The fingerprint that a directory states is no proof that its rows are the same: they are read.
    files = dict.fromkeys(file["filename"] for data, _, _ in parts for file in data.cache_files)
    fingerprint = digest_of_files(files, f"{' '.join(data._fingerprint for data, _, _ in parts)} {split}")
    features = parts[0][0].features if parts else {}
    names = {
        column: list(kind.names)
        for column, kind in features.items()
        if isinstance(kind, datasets.ClassLabel) and kind.names
    }
    rows = functools.partial(_rows_of_parts, parts)
    return RowSource(path, fingerprint, rows, lambda: names)


def _rows_of_parts(parts: Iterable[tuple[Any, int, int]]) -> Iterator[Row]:
    return (row for part in parts for row in _dataset_rows(*part))


def _saved_parts(saved: Any, split: str) -> list[tuple[Any, int, int]]:
    """(data, first row, row after the last) of each part of a split of what `save_to_disk` wrote.

    A Dataset without splits counts as one split, train.
    """
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved, "train": saved}
    ranges = split_ranges(split, {name: len(data) for name, data in splits.items()})
    return [(splits[name], start, stop) for name, start, stop in ranges]


def _dataset_rows(data: Any, start: int, stop: int) -> Iterator[Row]:
    """Rows `start` to `stop` (not included); reading goes on behind one that cannot be decoded."""
    done = start
    while done < stop:
        try:
            for row in data if (done, stop) == (0, len(data)) else data.select(range(done, stop)):
                done += 1
                yield Row(done, row)
        except Exception as error:  # decoding an image, a date or text that is no UTF-8 may raise anything
            done += 1
            yield Row(done, BadRow(f"`datasets` cannot decode this row ({one_line(error)})"))


def _require_hub(path: str) -> None:
    """UserError unless this is a data set that the Hub has, or may have in the local cache.

    The Hub is asked before `datasets` does it, which tries for half a minute without a network.
    """
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and suffix_of(path) is None
    if not is_hub_id or is_mistyped_path(path):
        raise UserError(f"{path}: no such file or directory")
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(path, timeout=20)
    except Exception as error:
        raise UserError(
            f"{path}: no such file or directory, and as a Hub data set not to be had ({one_line(error)}); "
            "a copy in the local cache is used with HF_HUB_OFFLINE=1"
        ) from None
