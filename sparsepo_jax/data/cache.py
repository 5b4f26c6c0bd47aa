"""Tokenised sources kept between runs, a file each, named by a hash of all that their tokens depend on."""

import functools
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import written_atomically
from sparsepo_jax.data.ragged import Ragged
from sparsepo_jax.data.table import IF_GIVEN, PER_ROW, PER_TOKEN, TokenTable
from sparsepo_jax.data.tokenised import Counts, Tokenised

PACKAGE = Path(__file__).parent.parent
CODE = ("data", "core")  # its rooms that decide which tokens a row becomes
PACKAGES = ("transformers", "tokenizers", "jinja2")  # and who else does
# What reading a file raises that is torn, altered or no .npz. Pickled objects are never loaded: a ValueError.
NOT_WHOLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def cache_directory(name: str) -> Path:
    """Where things of one kind are kept between runs, in the user's cache directory.

    Args:
        name: of the kind: tokens, reference, xla.

    Raises:
        UserError: there is none, as in a container whose user has no home.
    """
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if cache.startswith("~"):
        raise UserError("caches: this user has no home directory to keep them in: set HOME or XDG_CACHE_HOME")
    return Path(cache) / "sparsepo_jax" / name


def cache_path(directory: Path, fingerprint: str, settings: list[Any]) -> Path:
    """The file in which a tokenised source is kept.

    Args:
        directory: of the cache.
        fingerprint: of the source's rows.
        settings: all else that its tokens depend on, as JSON can hold it.
    """
    key = json.dumps([fingerprint, code_digest(), *settings], sort_keys=True)
    return directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


@functools.cache
def code_digest() -> str:
    """A hash of the code that tokenises: what another version has kept must not be read."""
    digest = hashlib.sha256(json.dumps([version(name) for name in PACKAGES]).encode())
    for file in sorted(file for room in CODE for file in (PACKAGE / room).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any | None) -> str | None:
    """A hash of all that makes a tokenizer what it is: vocabulary, rules, chat template, special tokens.

    Args:
        tokenizer: a fast one of Hugging Face, or None.
    """
    if tokenizer is None:
        return None
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        str(tokenizer.split_special_tokens),  # of a header in a text; no rule of the backend
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_kept(path: Path) -> Tokenised | None:
    """A source that was kept.

    Args:
        path: see `cache_path`.

    Returns:
        None if there is no such file, or one that is damaged: the source is then tokenised again.
    """
    try:
        with np.load(path) as arrays:
            bad = [(line, problem) for line, problem in json.loads(str(arrays["bad_rows"]))]
            return Tokenised(table_from_arrays(arrays), bad, Counts(*json.loads(str(arrays["counts"]))))
    except NOT_WHOLE:
        return None


def keep(path: Path, tokenised: Tokenised) -> None:
    """Writes a tokenised source, atomically, since several processes may write the same one.

    A cache that cannot be written is no reason to stop: a line says so.

    Args:
        path: see `cache_path`.
        tokenised: what is written.
    """
    beside = {
        "bad_rows": np.array(json.dumps(tokenised.bad)),
        "counts": np.array(json.dumps(tokenised.counts)),
    }
    try:
        with written_atomically(path) as file:
            np.savez(file, **beside, **tokenised.table.arrays())
    except OSError as error:
        print(f"note: tokenised data is not kept: {path.parent} cannot be written ({error.strerror})")


def table_from_arrays(arrays: Mapping[str, np.ndarray]) -> TokenTable:
    """The inverse of `TokenTable.arrays`.

    Args:
        arrays: by name, for example an opened .npz file.

    Raises:
        KeyError: a column is missing.
    """

    def ragged_if_kept(flat: str, starts: str) -> Ragged | None:
        return Ragged(arrays[flat], arrays[starts]) if flat in arrays else None

    return TokenTable(
        prompts=Ragged(arrays["prompts"], arrays["prompt_starts"]),
        responses=Ragged(arrays["responses"], arrays["response_starts"]),
        files=tuple(str(name) for name in arrays["files"]),
        all_content=ragged_if_kept("contents", "content_starts"),
        between=ragged_if_kept("between", "between_starts"),
        **{name: arrays[name] for name in PER_ROW},
        **{name: arrays.get(name) for name in (*PER_TOKEN, *IF_GIVEN)},
    )
