"""Tokenised rows as columns: what tokenisation makes, the cache keeps and batching reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths in one array: sequence i is flat[starts[i]:starts[i + 1]]."""

    flat: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.flat[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def positions(self, sequences: np.ndarray) -> np.ndarray:
        """Where the values of these sequences lie in `flat`, one sequence after the other."""
        lengths = self.lengths[sequences]
        shift = self.starts[:-1][sequences] - (np.cumsum(lengths) - lengths)
        return np.arange(lengths.sum()) + np.repeat(shift, lengths)

    def take(self, sequences: np.ndarray) -> "Ragged":
        return Ragged(self.flat[self.positions(sequences)], starts_of(self.lengths[sequences]))


def starts_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def ragged(sequences: Sequence[np.ndarray | list], dtype: type) -> Ragged:
    flat = np.concatenate([np.asarray(s, dtype) for s in sequences]) if sequences else np.zeros(0, dtype)
    return Ragged(flat, starts_of([len(s) for s in sequences]))


def _concat_ragged(parts: Sequence[Ragged]) -> Ragged:
    return Ragged(
        np.concatenate([p.flat for p in parts]), starts_of(np.concatenate([p.lengths for p in parts]))
    )


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N tokenised rows with P responses each: 2 for pairs (chosen, rejected), 1 for sft, none for prompts. Sequence i * P + p of `responses` is response p of row i.

    `all_weights`, `all_decisive`, `all_chance` and `all_ref_logp` have one value per response token, laid out as `responses.flat`, or are None
    where there is none: token weights given with the data; whether the token decides the preference; P(decisive | what comes before the
    token); the reference's log-prob of the token.
    `prompt_key_N` is a hash of the prompt before tokenisation and truncation: it says which rows are of one prompt. `all_content` holds, for prompts
    alone, the rows as they were read, JSON in UTF-8.
    """

    prompts: Ragged
    responses: Ragged
    prompt_key_N: np.ndarray
    prompt_cut_N: np.ndarray
    """Whether the prompt's beginning was cut off."""
    response_cut_NP: np.ndarray
    """Whether the response's end was cut off."""
    row_weight_N: np.ndarray
    """The source's weight: how often an epoch sees the row."""
    files: tuple[str, ...]
    file_N: np.ndarray
    line_N: np.ndarray
    all_weights: np.ndarray | None = None
    all_decisive: np.ndarray | None = None
    all_chance: np.ndarray | None = None
    all_ref_logp: np.ndarray | None = None
    all_content: Ragged | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def responses_per_row(self) -> int:
        return self.response_cut_NP.shape[1]

    @property
    def prompt_lengths_N(self) -> np.ndarray:
        return self.prompts.lengths

    @property
    def response_lengths_NP(self) -> np.ndarray:
        return self.responses.lengths.reshape(len(self), self.responses_per_row)

    def prompt(self, i: int) -> np.ndarray:
        """Token ids, int32 [S]."""
        return self.prompts[i]

    def response(self, i: int, p: int) -> np.ndarray:
        """Token ids, int32 [T]."""
        return self.responses[i * self.responses_per_row + p]

    @property
    def has_weights(self) -> bool:
        return self.all_weights is not None

    @property
    def has_decisive(self) -> bool:
        return self.all_decisive is not None

    @property
    def has_chance(self) -> bool:
        return self.all_chance is not None

    def weights(self, i: int, p: int) -> np.ndarray:
        """Given weights of response p of row i, float32 [T]. ValueError if the data has none, as with the next two."""
        return self._of_response(self.all_weights, "weights", i, p)

    def decisive(self, i: int, p: int) -> np.ndarray:
        """Whether each token decides the preference, bool [T]."""
        return self._of_response(self.all_decisive, "decisive tokens", i, p)

    def chance(self, i: int, p: int) -> np.ndarray:
        """P(decisive | what comes before) of each token, float32 [T]."""
        return self._of_response(self.all_chance, "chances", i, p)

    def ref_logp(self, i: int, p: int) -> np.ndarray:
        """The reference's log-prob of each token, float32 [T], nats."""
        return self._of_response(self.all_ref_logp, "log-probs of a reference", i, p)

    def _of_response(self, values: np.ndarray | None, name: str, i: int, p: int) -> np.ndarray:
        if values is None:
            raise ValueError(f"this data has no {name}")
        return Ragged(values, self.responses.starts)[i * self.responses_per_row + p]

    def origin(self, i: int) -> str:
        """file:line of row i, counted from 1 (the number of the row where the source has no lines)."""
        return f"{self.files[self.file_N[i]]}:{self.line_N[i]}"

    def content(self, i: int) -> dict[str, Any]:
        """Row i as it was read, where that is kept; else {}."""
        return {} if self.all_content is None else json.loads(self.all_content[i].tobytes())

    def digest(self) -> str:
        """A hash of all tokens, and of the rows as they were read where those are kept."""
        digest = hashlib.sha256()
        for part in (self.prompts, self.responses, *[self.all_content] * (self.all_content is not None)):
            for x in (part.flat, part.starts):
                digest.update(np.ascontiguousarray(x).view(np.uint8).data)
        return digest.hexdigest()

    def file_digests(self) -> dict[str, str]:
        """A hash of the tokens that came from each file."""
        return {
            name: self.take(
                np.flatnonzero(
                    np.isin(self.file_N, [n for n, other in enumerate(self.files) if other == name])
                )
            ).digest()
            for name in dict.fromkeys(self.files)
        }

    def take(self, rows: Sequence[int] | np.ndarray) -> "TokenTable":
        """These rows, in this order."""
        rows = np.asarray(rows, np.int64)
        sequences = (rows[:, None] * self.responses_per_row + np.arange(self.responses_per_row)).ravel()
        positions = self.responses.positions(sequences)
        return TokenTable(
            prompts=self.prompts.take(rows),
            responses=self.responses.take(sequences),
            prompt_key_N=self.prompt_key_N[rows],
            prompt_cut_N=self.prompt_cut_N[rows],
            response_cut_NP=self.response_cut_NP[rows],
            row_weight_N=self.row_weight_N[rows],
            files=self.files,
            file_N=self.file_N[rows],
            line_N=self.line_N[rows],
            all_content=self.all_content and self.all_content.take(rows),
            **{name: None if (v := getattr(self, name)) is None else v[positions] for name in _PER_TOKEN},
        )

    def distinct_prompts(self, limit: int | None) -> "TokenTable":
        """The first row of each prompt, `limit` at the most."""
        first = np.sort(np.unique(self.prompt_key_N, return_index=True)[1])
        return self.take(first[:limit])

    def with_columns(self, **values: np.ndarray) -> "TokenTable":
        """The same rows with these columns."""
        return replace(self, **values)

    def with_responses(self, responses: Sequence[np.ndarray]) -> "TokenTable":
        """The same prompts, each with one response of these token ids."""
        return replace(
            self,
            responses=ragged(responses, np.int32),
            response_cut_NP=np.zeros((len(self), 1), bool),
            **dict.fromkeys(_PER_TOKEN),
        )

    @staticmethod
    def concat(tables: "Sequence[TokenTable]") -> "TokenTable":
        """All rows, one table after the other. Rows without given weights get 1 where others have some; decisive and chance stay only if
        every table knows them, since False for an unknown token would be wrong."""
        if len(tables) == 1:
            return tables[0]
        first_file = np.cumsum([0] + [len(t.files) for t in tables])
        columns = {
            name: np.concatenate([getattr(t, name) for t in tables]) for name in _PLAIN if name != "file_N"
        }
        weights = None
        if any(t.all_weights is not None for t in tables):
            weights = np.concatenate(
                [
                    np.ones(len(t.responses.flat), np.float32) if t.all_weights is None else t.all_weights
                    for t in tables
                ]
            )
        known = {
            name: all(getattr(t, name) is not None for t in tables) for name in ("all_decisive", "all_chance")
        }
        return TokenTable(
            prompts=_concat_ragged([t.prompts for t in tables]),
            responses=_concat_ragged([t.responses for t in tables]),
            files=tuple(name for t in tables for name in t.files),
            file_N=np.concatenate([t.file_N + n for t, n in zip(tables, first_file)]).astype(np.int32),
            all_weights=weights,
            all_content=_concat_ragged([t.all_content for t in tables])
            if all(t.all_content is not None for t in tables)
            else None,
            **{
                name: np.concatenate([getattr(t, name) for t in tables]) if is_known else None
                for name, is_known in known.items()
            },
            **columns,
        )

    def from_source(self, name: str, weight: float) -> "TokenTable":
        """The same rows, said to come from `name` and seen `weight` times an epoch."""
        return replace(
            self,
            files=(name,),
            file_N=np.zeros(len(self), np.int32),
            row_weight_N=np.full(len(self), weight, np.float32),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All columns as plain arrays, for one .npz without pickle."""
        named = {
            "prompts": self.prompts.flat,
            "prompt_starts": self.prompts.starts,
            "responses": self.responses.flat,
            "response_starts": self.responses.starts,
            "files": np.array(self.files, np.str_),
        }
        if self.all_content is not None:
            named |= {"contents": self.all_content.flat, "content_starts": self.all_content.starts}
        for name in _PLAIN + _PER_TOKEN:
            if getattr(self, name) is not None:
                named[name] = getattr(self, name)
        return named


_PLAIN = ("prompt_key_N", "prompt_cut_N", "response_cut_NP", "row_weight_N", "file_N", "line_N")
_PER_TOKEN = ("all_weights", "all_decisive", "all_chance", "all_ref_logp")


def table_from_arrays(arrays) -> TokenTable:
    """The inverse of `TokenTable.arrays`. KeyError where a column is missing."""
    return TokenTable(
        prompts=Ragged(arrays["prompts"], arrays["prompt_starts"]),
        responses=Ragged(arrays["responses"], arrays["response_starts"]),
        files=tuple(str(name) for name in arrays["files"]),
        all_content=Ragged(arrays["contents"], arrays["content_starts"]) if "contents" in arrays else None,
        **{name: arrays[name] for name in _PLAIN},
        **{name: arrays[name] if name in arrays else None for name in _PER_TOKEN},
    )
