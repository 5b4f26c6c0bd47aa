"""Tokenised rows as columns: tokenisation makes them, the cache keeps them, batching reads them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsepo_jax.data.ragged import Ragged, concat_ragged, ragged

PER_ROW = ("prompt_key_N", "prompt_cut_N", "response_cut_NP", "row_weight_N", "file_N", "line_N")
PER_TOKEN = ("all_weights", "all_decisive", "all_chance", "all_ref_logp", "all_before")
IF_GIVEN = ("pair_weight_N", "label_N")  # one value a row, where the data has some


@dataclass(frozen=True, eq=False)
class TokenTable:
    """N tokenised rows with P responses each: 2 for pairs (chosen, rejected), 1 for sft, 0 for prompts.

    The columns all_... hold one value for each response token, in the order of `responses.flat`. They are
    None where the data says nothing.
    """

    prompts: Ragged
    """Token ids, int32."""
    responses: Ragged
    """Token ids, int32; sequence i * P + p is response p of row i."""
    prompt_key_N: np.ndarray
    """A hash of the prompt before tokenisation and truncation: equal for rows of one prompt."""
    prompt_cut_N: np.ndarray
    """Whether the prompt's beginning was cut off."""
    response_cut_NP: np.ndarray
    """Whether the response's end was cut off."""
    row_weight_N: np.ndarray
    """The source's weight: how often an epoch sees the row."""
    files: tuple[str, ...]
    """Names of the sources."""
    file_N: np.ndarray
    """Number of the row's source in `files`."""
    line_N: np.ndarray
    """The row's line there, from 1."""
    pair_weight_N: np.ndarray | None = None
    """How much the row counts in the loss, float32, >= 0. None: the data does not say, and all count the
    same."""
    label_N: np.ndarray | None = None
    """For rows of one response: whether it is desirable, bool. None: not known, or pairs."""
    mismatched: "TokenTable | None" = None
    """The same rows with a response to another prompt each, see data/unpaired. None: not asked for."""
    all_weights: np.ndarray | None = None
    """Token weights given with the data."""
    all_decisive: np.ndarray | None = None
    """Whether the token decides the preference."""
    all_chance: np.ndarray | None = None
    """P(decisive | what comes before the token)."""
    all_ref_logp: np.ndarray | None = None
    """The reference's log-prob of the token, nats."""
    all_before: np.ndarray | None = None
    """How many tokens of `between` stand directly before the token, int32."""
    between: Ragged | None = None
    """Tokens of other turns that stand between each response's own, which are seen and no response tokens:
    ids, int32. None: there are none, nor all_before."""
    all_content: Ragged | None = None
    """For prompts alone: the rows as they were read, as JSON in UTF-8."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def responses_per_row(self) -> int:
        """P."""
        return self.response_cut_NP.shape[1]

    @property
    def unit(self) -> str:
        """What rows are called: pairs, responses (which have labels), or rows."""
        if self.label_N is not None:
            return "responses"
        return "pairs" if self.responses_per_row == 2 else "rows"

    @property
    def prompt_lengths_N(self) -> np.ndarray:
        """Tokens of each prompt."""
        return self.prompts.lengths

    @property
    def response_lengths_NP(self) -> np.ndarray:
        """Tokens of each response."""
        return self.responses.lengths.reshape(len(self), self.responses_per_row)

    def prompt(self, i: int) -> np.ndarray:
        """Token ids of a prompt, int32 [S].

        Args:
            i: number of the row.
        """
        return self.prompts[i]

    def response(self, i: int, p: int) -> np.ndarray:
        """Token ids of a response, int32 [T].

        Args:
            i: number of the row.
            p: number of the response; of a pair, 0 is chosen and 1 is rejected.
        """
        return self.responses[i * self.responses_per_row + p]

    def laid(self, i: int, p: int) -> tuple[np.ndarray, np.ndarray]:
        """A response with the tokens of other turns that stand between its own.

            own tokens a b c, between x y, before 0 2 0        laid  a x y b c        own  0 3 4

        Args:
            i: number of the row.
            p: number of the response.

        Returns:
            (token ids as the model meets them, the places of the response's own tokens in them).
        """
        own = self.response(i, p)
        if self.between is None:
            return own, np.arange(len(own))
        before = self._of_response(self.all_before, "tokens between", i, p)
        places = np.cumsum(before + 1) - 1
        ids = np.empty(len(own) + before.sum(), np.int32)
        is_own = np.zeros(len(ids), bool)
        is_own[places] = True
        ids[is_own] = own
        ids[~is_own] = self.between[i * self.responses_per_row + p]
        return ids, places

    @property
    def laid_lengths_NP(self) -> np.ndarray:
        """Tokens of each response, those between its own included."""
        lengths = self._between().lengths
        return self.response_lengths_NP + lengths.reshape(len(self), self.responses_per_row)

    def _between(self) -> Ragged:
        return self.between or Ragged(np.zeros(0, np.int32), np.zeros(len(self.responses) + 1, np.int64))

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
        """Given weights of a response's tokens, float32 [T].

        Args:
            i: number of the row.
            p: number of the response.

        Raises:
            ValueError: the data has none.
        """
        return self._of_response(self.all_weights, "weights", i, p)

    def decisive(self, i: int, p: int) -> np.ndarray:
        """Whether each token of a response decides the preference, bool [T].

        Args:
            i: number of the row.
            p: number of the response.

        Raises:
            ValueError: the data has none.
        """
        return self._of_response(self.all_decisive, "decisive tokens", i, p)

    def chance(self, i: int, p: int) -> np.ndarray:
        """P(decisive | what comes before) of each token of a response, float32 [T].

        Args:
            i: number of the row.
            p: number of the response.

        Raises:
            ValueError: the data has none.
        """
        return self._of_response(self.all_chance, "chances", i, p)

    def ref_logp(self, i: int, p: int) -> np.ndarray:
        """The reference's log-prob of each token of a response, float32 [T], nats.

        Args:
            i: number of the row.
            p: number of the response.

        Raises:
            ValueError: the data has none.
        """
        return self._of_response(self.all_ref_logp, "log-probs of a reference", i, p)

    def _of_response(self, values: np.ndarray | None, name: str, i: int, p: int) -> np.ndarray:
        if values is None:
            raise ValueError(f"this data has no {name}")
        return Ragged(values, self.responses.starts)[i * self.responses_per_row + p]

    def origin(self, i: int) -> str:
        """file:line of a row. Lines count from 1; where the source has none, it is the row's number.

        Args:
            i: number of the row in this table.
        """
        return f"{self.files[self.file_N[i]]}:{self.line_N[i]}"

    def content(self, i: int) -> dict[str, Any]:
        """A row as it was read; {} where that is not kept.

        Args:
            i: number of the row.
        """
        return {} if self.all_content is None else json.loads(self.all_content[i].tobytes())

    def digest(self) -> str:
        """A hash of all tokens, and of the rows as they were read where those are kept."""
        return self._hashed().hexdigest()

    def _hashed(self) -> Any:
        digest = hashlib.sha256()
        parts = [self.prompts, self.responses]
        if self.all_content is not None:
            parts.append(self.all_content)
        if self.between is not None:
            parts.append(self.between)
            digest.update(self.all_before.view(np.uint8).data)
        for part in parts:
            for array in (part.flat, part.starts):
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest

    def file_digests(self) -> dict[str, str]:
        """A hash of the rows that came from each file, by name: `digest`, labels and weights."""
        digests = {}
        for name in dict.fromkeys(self.files):
            numbers = [n for n, other in enumerate(self.files) if other == name]
            rows = self.take(np.flatnonzero(np.isin(self.file_N, numbers)))
            digest = rows._hashed()
            for weights in (rows.pair_weight_N, rows.all_weights, rows.label_N):
                if weights is not None:
                    digest.update(np.ascontiguousarray(weights).view(np.uint8).data)
            digests[name] = digest.hexdigest()
        return digests

    def take(self, rows: Sequence[int] | np.ndarray) -> "TokenTable":
        """Some of the rows.

        Args:
            rows: their numbers, in any order, repeated or not.
        """
        rows = np.asarray(rows, np.int64)
        sequences = (rows[:, None] * self.responses_per_row + np.arange(self.responses_per_row)).ravel()
        positions = self.responses.positions(sequences)
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in PER_ROW}
        for names, places in ((PER_TOKEN, positions), (IF_GIVEN, rows)):
            for name in names:
                values = getattr(self, name)
                columns[name] = None if values is None else values[places]
        return TokenTable(
            prompts=self.prompts.take(rows),
            responses=self.responses.take(sequences),
            files=self.files,
            all_content=None if self.all_content is None else self.all_content.take(rows),
            between=None if self.between is None else self.between.take(sequences),
            **columns,
        )

    def distinct_prompts(self, limit: int | None) -> "TokenTable":
        """The first row of each prompt.

        Args:
            limit: rows at the most. None: all.
        """
        first = np.sort(np.unique(self.prompt_key_N, return_index=True)[1])
        return self.take(first[:limit])

    def with_columns(self, **values: Any) -> "TokenTable":
        """The same rows with other columns.

        Args:
            **values: new values by the names of this class's fields.
        """
        return replace(self, **values)

    def with_responses(self, responses: Sequence[np.ndarray]) -> "TokenTable":
        """The same prompts, each with one response.

        Args:
            responses: token ids, one array for each row.
        """
        return replace(
            self,
            responses=ragged(responses, np.int32),
            response_cut_NP=np.zeros((len(self), 1), bool),
            between=None,
            **dict.fromkeys(PER_TOKEN),
        )

    def from_source(self, name: str, weight: float) -> "TokenTable":
        """The same rows with another origin.

        Args:
            name: of the source that they come from.
            weight: how often an epoch sees them.
        """
        return replace(
            self,
            files=(name,),
            file_N=np.zeros(len(self), np.int32),
            row_weight_N=np.full(len(self), weight, np.float32),
        )

    @staticmethod
    def concat(tables: "Sequence[TokenTable]") -> "TokenTable":
        """All rows, one table after the other.

        Rows and tokens without given weights weigh 1 if others have weights. Decisive tokens and chances stay
        only if every table has them, since False for a token of which nothing is known would be wrong.

        Args:
            tables: at least one, all with the same number of responses a row.
        """
        if len(tables) == 1:
            return tables[0]
        first_files = np.cumsum([0] + [len(table.files) for table in tables[:-1]])
        has_between = any(table.between is not None for table in tables)
        columns: dict[str, Any] = {name: _joined(tables, name) for name in PER_ROW if name != "file_N"}
        for name in ("all_decisive", "all_chance", "label_N"):
            if all(getattr(table, name) is not None for table in tables):
                columns[name] = _joined(tables, name)
        if all(table.all_content is not None for table in tables):
            columns["all_content"] = concat_ragged([table.all_content for table in tables])
        files = [table.file_N + first for table, first in zip(tables, first_files, strict=True)]
        return TokenTable(
            prompts=concat_ragged([table.prompts for table in tables]),
            responses=concat_ragged([table.responses for table in tables]),
            files=tuple(name for table in tables for name in table.files),
            file_N=np.concatenate(files).astype(np.int32),
            all_weights=_filled(tables, "all_weights", np.float32(1)),
            pair_weight_N=_filled(tables, "pair_weight_N", np.float32(1)),
            all_before=_filled(tables, "all_before", np.int32(0)),
            between=concat_ragged([table._between() for table in tables]) if has_between else None,
            **columns,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All columns as plain arrays, for one .npz file without pickled objects."""
        named = {
            "prompts": self.prompts.flat,
            "prompt_starts": self.prompts.starts,
            "responses": self.responses.flat,
            "response_starts": self.responses.starts,
            "files": np.array(self.files, np.str_),
        }
        if self.all_content is not None:
            named |= {"contents": self.all_content.flat, "content_starts": self.all_content.starts}
        if self.between is not None:
            named |= {"between": self.between.flat, "between_starts": self.between.starts}
        for name in (*PER_ROW, *PER_TOKEN, *IF_GIVEN):
            if getattr(self, name) is not None:
                named[name] = getattr(self, name)
        return named


def _joined(tables: Sequence[TokenTable], column: str) -> np.ndarray:
    return np.concatenate([getattr(table, column) for table in tables])


def _filled(tables: Sequence[TokenTable], column: str, value: np.generic) -> np.ndarray | None:
    """A column of all tables, with a value for the rows or tokens of those that lack it; None if all do."""
    if all(getattr(table, column) is None for table in tables):
        return None
    parts = []
    for table in tables:
        length = len(table.responses.flat) if column in PER_TOKEN else len(table)
        known = getattr(table, column)
        parts.append(np.full(length, value) if known is None else known)
    return np.concatenate(parts)
