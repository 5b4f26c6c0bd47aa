"""A policy as lm-evaluation-harness sees a model, so that any of its tasks can ask it. Imports lm_eval, which is an extra.

Text becomes tokens, and what is too long is cut, as in the harness's own HFLM, so that figures compare. Tokens become numbers by two functions that
are given: `score` reads continuations, `answer` writes them. Continuations of one long context are read in one row, so that the context runs once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jinja2
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.rows import one_line
from sparsepo_jax.data.ragged import ragged
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.generate.sampler import Generated, Sampling

Score = Callable[[TokenTable], Iterable[tuple[int, np.ndarray, np.ndarray]]]
"""Of a table's rows, in any order: (row, log-prob of each response [P], nats; whether it is what greedy decoding writes [P])."""
Answer = Callable[[TokenTable, Sampling], Iterable[Generated]]
"""Answers to a table's prompts, in any order; its seed and the run's ends are its own."""

SHARED = (4, 2, 1)  # continuations that one row may hold: each number is a program of its own
NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "min_p": 0.0,
    "use_cache": True,
}  # values that change nothing


class HarnessModel(TemplateLM):
    """render(messages, tools, whether a generation prompt follows) -> text. max_length: tokens that the model reads at most. vocab_size: rows of
    the model; None: not checked. add_bos: before a text; None: as the tokenizer does of itself. UserError if the tokenizer has neither a BOS
    nor an EOS token."""

    def __init__(
        self,
        tokenizer: Any,
        score: Score,
        answer: Answer,
        render: Callable,
        *,
        max_length: int,
        vocab_size: int | None = None,
        add_bos: bool | None = None,
        quiet: bool = False,
    ):
        super().__init__()
        self.tokenizer, self._score, self._answer, self._render = tokenizer, score, answer, render
        self._max_length, self._vocab_size, self._add_bos, self._quiet = (
            max_length,
            vocab_size,
            add_bos,
            quiet,
        )
        if self.prefix_token_id is None:
            raise UserError(
                "stage harness: the tokenizer has neither a BOS nor an EOS token, and an empty context is one of them"
            )
        self._refuse_outside([self.prefix_token_id], "an empty context")

    # ------------------------------------------------------------ what the harness asks of any model

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that has no context."""
        return (
            self.tokenizer.eos_token_id
            if self.tokenizer.bos_token_id is None
            else self.tokenizer.bos_token_id
        )

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Of tasks that do not say how long an answer may be."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text that begins with BOS gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = (
                False
                if has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
                else self._add_bos
            )
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        try:
            ids = self.tokenizer.encode(string, **special)
        except Exception as error:  # a tokenizer of words meets one that it does not know
            raise UserError(
                f"stage harness: the run's tokenizer cannot encode {string[:60]!r} ({one_line(error)})"
            ) from None
        self._refuse_outside(ids, repr(string[:60]))
        return ids

    def _refuse_outside(self, ids: list[int], where: str) -> None:
        """UserError: a token for which the model has no row."""
        outside = next((i for i in ids if self._vocab_size is not None and i >= self._vocab_size), None)
        if outside is not None:
            raise UserError(
                f"stage harness: token id {outside} ({self.tokenizer.convert_ids_to_tokens(outside)!r}) in {where} is outside the model's "
                f"vocabulary of {self._vocab_size}"
            )

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Without a generation prompt the last message is a beginning that the model goes on with. A template that refuses system messages gets none."""
        try:
            text = self._render(chat_history, None, add_generation_prompt)
        except jinja2.TemplateError:
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = self._render(chat_history, None, add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"].lstrip()
        at = text.rindex(begun.rstrip())
        return text[
            : at + len(begun if text.startswith(begun, at) else begun.rstrip())
        ]  # a template may trim

    # ------------------------------------------------------------ reading

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-prob of the continuation, nats; whether greedy decoding writes it) of (name, context, continuation), in order."""
        pairs = [(self._cut(context, continuation), continuation) for _, context, continuation in requests]
        found: list[Any] = [None] * len(pairs)
        with tqdm(
            total=len(pairs), desc="harness: continuations", disable=disable_tqdm or self._quiet
        ) as bar:
            for count, rows in grouped(pairs).items():
                table = table_of(
                    [pairs[row[0]][0] for row in rows], [[pairs[n][1] for n in row] for row in rows]
                )
                for row, logp_P, greedy_P in self._score(table):
                    for n, logp, greedy in zip(rows[row], logp_P, greedy_P, strict=True):
                        found[n] = float(logp), bool(greedy)
                    bar.update(count)
        for (name, *_), answer in zip(requests, found, strict=True):
            if name is not None:
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return found

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """The end of the context: with it max_length + 1 tokens, of which the last one is not read."""
        if not continuation:
            raise UserError(
                f"stage harness: a continuation of {self.tok_decode(context)[-40:]!r} has no token of its own: the tokenizer joins it with the "
                "context"
            )
        if len(continuation) > self.max_length:
            raise UserError(
                f"stage harness: a continuation of {len(continuation)} tokens does not fit {self.max_length} (harness.max_length, or the model's "
                "positions)"
            )
        return context[-(self.max_length + 1 - len(continuation)) :]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """log-prob of whole texts, nats, in windows: each token is predicted once, and what comes before it is as long as it can be."""
        windows, whose = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            ):
                windows.append((None, *make_disjoint_window(window)))
                whose.append(number)
        totals = [0.0] * len(requests)
        for number, (logp, _) in zip(whose, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += logp
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # ------------------------------------------------------------ writing

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """What the policy writes after each context, up to the first of the strings `until`, an EOS, or max_gen_toks. A context that leaves no room for
        so many tokens loses its beginning."""
        texts: list[Any] = [None] * len(requests)
        alike: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(self._sampling(request.args[1]), []).append(number)
        with tqdm(total=len(requests), desc="harness: answers", disable=disable_tqdm or self._quiet) as bar:
            for sampling, numbers in alike.items():
                room = self.max_length - sampling.max_new_tokens
                if room < 1:
                    raise UserError(
                        f"stage harness: a task asks for {sampling.max_new_tokens} tokens, but context and answer have only {self.max_length} "
                        f"(harness.max_length, or the model's positions); set harness.gen_kwargs.max_gen_toks to {self.max_length // 2} or so"
                    )
                contexts = [
                    (self.tok_encode(requests[n].args[0]) or [self.prefix_token_id])[-room:] for n in numbers
                ]
                for one in self._answer(table_of(contexts, [[]] * len(contexts)), sampling):
                    request = requests[numbers[one.row]]
                    texts[numbers[one.row]] = one.text
                    self.cache_hook.add_partial("generate_until", request.args, one.text)
                    bar.update()
        return texts

    def _sampling(self, gen_kwargs: dict[str, Any]) -> Sampling:
        """As a task's generation_kwargs say. UserError: something that we cannot do and that would change the answer."""
        asked = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until, max_new_tokens, draws = asked.pop("until"), asked.pop("max_gen_toks"), asked.pop("do_sample")
        temperature, top_k, top_p = (
            asked.pop("temperature", 1.0),
            asked.pop("top_k", None),
            asked.pop("top_p", 1.0),
        )
        unknown = {
            name: value
            for name, value in asked.items()
            if value is not None and NEUTRAL.get(name, ...) != value
        }
        if unknown:
            said = ", ".join(f"{name}={value}" for name, value in unknown.items())
            raise UserError(
                f"stage harness: a task wants {said}, which is not supported; set other values in harness.gen_kwargs, or leave the task out"
            )
        special = {
            string: self.tokenizer.convert_tokens_to_ids(string)
            for string in until
            if string in self.tokenizer.all_special_tokens
        }
        return Sampling(
            max_new_tokens,
            float(temperature) if draws else 0.0,
            top_k or None,
            1.0 if top_p is None else float(top_p),
            ends=tuple(sorted(special.values())),
            stop=tuple(string for string in until if string and string not in special),
        )


def grouped(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[int, list[list[int]]]:
    """Numbers of the pairs (context, continuation), in rows of one context and 4, 2 or 1 continuations, by how many a row holds. More than one only
    where the context is longer than they are: their row is twice as long at most as what has to be read.

        A B C > d, A B C > e, A > f, A > g        {2: [[0, 1]], 1: [[2], [3]]}
    """
    of_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        of_context.setdefault(tuple(context), []).append(number)
    rows: dict[int, list[list[int]]] = {}
    for context, numbers in of_context.items():
        fits = lambda some: sum(len(pairs[n][1]) for n in some) <= len(context)
        while numbers:
            count = next(n for n in SHARED if n == 1 or (n <= len(numbers) and fits(numbers[:n])))
            rows.setdefault(count, []).append(numbers[:count])
            numbers = numbers[count:]
    return rows


def table_of(prompts: list[list[int]], responses: list[list[list[int]]]) -> TokenTable:
    """Rows of token ids, each with the same number of responses, as batching takes them."""
    N, P = len(prompts), len(responses[0])
    no = np.zeros(N, bool)
    return TokenTable(
        ragged(prompts, np.int32),
        ragged([one for row in responses for one in row], np.int32),
        np.arange(N),
        no,
        np.zeros((N, P), bool),
        np.ones(N, np.float32),
        ("requests",),
        np.zeros(N, np.int32),
        np.arange(N),
    )
