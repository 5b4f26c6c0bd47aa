"""A policy as lm-evaluation-harness sees a model, so that its tasks can ask it. Needs the extra lm_eval.

Text becomes tokens, and what is too long is cut, as in the harness's own HFLM, so that figures compare. Two
functions make numbers and texts of tokens: `score` reads continuations, `answer` writes them. Continuations
of one long context are read in one row, so that the context runs once.
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
from sparsepo_jax.data.ragged import ragged
from sparsepo_jax.data.rows import BadRow, one_line
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.generate.sampler import Generated, Sampling

Score = Callable[[TokenTable], Iterable[tuple[int, np.ndarray, np.ndarray]]]
"""score(table) gives for each row, in any order: (row, log-probs of its responses [P] in nats, whether greedy
decoding would write them [P])."""
Answer = Callable[[TokenTable, Sampling], Iterable[Generated]]
"""answer(table, sampling) gives answers to the prompts, in any order. The seed and the ends are the run's."""

SHARED = (4, 2, 1)  # continuations that one row may hold; each number is compiled on its own
# Put behind a message that the model is to go on with, to see where it ends.
_SEAM = "(here the model goes on) "
# Settings of generation with the values that change nothing.
NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "min_p": 0.0,
    "use_cache": True,
}


class HarnessModel(TemplateLM):
    """A model of the harness. Methods without a word here are what the harness asks of any model."""

    def __init__(
        self,
        tokenizer: Any,
        score: Score,
        answer: Answer,
        render: Callable[[list[dict[str, str]], Any, bool], str],
        *,
        max_length: int,
        vocab_size: int | None = None,
        add_bos: bool | None = None,
        quiet: bool = False,
    ):
        """Checks the tokenizer.

        Args:
            tokenizer: of the policy.
            score: reads continuations.
            answer: writes them.
            render: `render(messages, tools, whether a generation prompt follows)` gives the text of a chat.
            max_length: tokens that the model reads at most.
            vocab_size: rows of the model's embedding; None: token ids are not checked.
            add_bos: whether a BOS stands before a text; None: as the tokenizer does of itself.
            quiet: shows no bars.

        Raises:
            UserError: the tokenizer has neither a BOS nor an EOS token.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self._score = score
        self._answer = answer
        self._render = render
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._add_bos = add_bos
        self._quiet = quiet
        if self.prefix_token_id is None:
            raise UserError(
                "stage harness: the tokenizer has neither a BOS nor an EOS token, and an empty context "
                "is one of them"
            )
        self._refuse_outside([self.prefix_token_id], "an empty context")

    # ------------------------------------------------------------ what the harness asks of any model

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """The longest answer, for tasks that do not set it."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text. One that begins with BOS gets no second one."""
        if add_special_tokens is None:
            has_bos = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = False if has_bos else self._add_bos
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
        """UserError: the model has no row for a token."""
        if self._vocab_size is None:
            return
        outside = next((i for i in ids if i >= self._vocab_size), None)
        if outside is not None:
            raise UserError(
                f"stage harness: token id {outside} ({self.tokenizer.convert_ids_to_tokens(outside)!r}) "
                f"in {where} is outside the model's vocabulary of {self._vocab_size}"
            )

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat. A template that refuses system messages gets none.

        Without a generation prompt the last message is a beginning, with which the model goes on.
        """
        if not add_generation_prompt:
            last = chat_history[-1]
            chat_history = [*chat_history[:-1], last | {"content": last["content"] + _SEAM}]
        try:
            text = self._render(chat_history, None, add_generation_prompt)
        except jinja2.TemplateError:
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = self._render(chat_history, None, add_generation_prompt)
        except BadRow as fault:
            raise UserError(f"stage harness: {fault}") from None
        if add_generation_prompt:
            return text
        at = text.rfind(_SEAM.strip())
        if at < 0:
            raise UserError(
                "stage harness: the chat template does not write the message that the model is to go on with "
                f"({last['content'][:60]!r})"
            )
        # A template may trim the end of the message.
        return text[:at] if text.startswith(_SEAM, at) else text[:at].rstrip()

    # ------------------------------------------------------------ reading

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-prob in nats, whether greedy decoding would write it) of each continuation.

        A request is (name, context, continuation).
        """
        pairs = [(self._cut(context, continuation), continuation) for _, context, continuation in requests]
        answers: list[Any] = [None] * len(pairs)
        with self._bar(len(pairs), "continuations", disable_tqdm) as bar:
            for count, rows in grouped(pairs).items():
                contexts = [pairs[row[0]][0] for row in rows]
                table = table_of(contexts, [[pairs[n][1] for n in row] for row in rows])
                for row, logp_P, greedy_P in self._score(table):
                    for n, logp, greedy in zip(rows[row], logp_P, greedy_P, strict=True):
                        answers[n] = float(logp), bool(greedy)
                    bar.update(count)
        for (name, *_), answer in zip(requests, answers, strict=True):
            if name is not None:
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return answers

    def _bar(self, total: int, what: str, disabled: bool) -> tqdm:
        return tqdm(total=total, desc=f"harness: {what}", disable=disabled or self._quiet)

    def _cut(self, context: list[int], continuation: list[int]) -> list[int]:
        """The end of the context that fits: max_length + 1 tokens in all, the last of which is not read."""
        if not continuation:
            raise UserError(
                f"stage harness: a continuation of {self.tok_decode(context)[-40:]!r} has no token of its "
                "own: the tokenizer joins it with the context"
            )
        if len(continuation) > self.max_length:
            raise UserError(
                f"stage harness: a continuation of {len(continuation)} tokens does not fit "
                f"{self.max_length} (harness.max_length, or the model's positions)"
            )
        return context[-(self.max_length + 1 - len(continuation)) :]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-probs of complete texts, nats.

        They are read in windows: each token is predicted once, after a context that is as long as it can be.
        """
        windows, whose = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
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
        """What the policy writes after each context, up to a string of `until`, an EOS, or max_gen_toks.

        A context that leaves no room for so many tokens loses its beginning.
        """
        texts: list[Any] = [None] * len(requests)
        by_sampling: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            by_sampling.setdefault(self._sampling(request.args[1]), []).append(number)
        with self._bar(len(requests), "answers", disable_tqdm) as bar:
            for sampling, numbers in by_sampling.items():
                room = self.max_length - sampling.max_new_tokens
                if room < 1:
                    raise UserError(
                        f"stage harness: a task asks for {sampling.max_new_tokens} tokens, but context "
                        f"and answer have only {self.max_length} (harness.max_length, or the model's "
                        f"positions); set harness.gen_kwargs.max_gen_toks to {self.max_length // 2} or so"
                    )
                contexts = [
                    (self.tok_encode(requests[n].args[0]) or [self.prefix_token_id])[-room:] for n in numbers
                ]
                prompts = table_of(contexts, [[] for _ in contexts])
                for generated in self._answer(prompts, sampling):
                    number = numbers[generated.row]
                    texts[number] = generated.text
                    self.cache_hook.add_partial("generate_until", requests[number].args, generated.text)
                    bar.update()
        return texts

    def _sampling(self, gen_kwargs: dict[str, Any]) -> Sampling:
        """Sampling by a task's generation_kwargs. UserError: one of them is not supported."""
        settings = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        until = settings.pop("until")
        max_new_tokens = settings.pop("max_gen_toks")
        temperature = settings.pop("temperature", 1.0)
        if not settings.pop("do_sample"):
            temperature = 0.0
        top_k = settings.pop("top_k", None)
        top_p = settings.pop("top_p", 1.0)
        unknown = [
            f"{name}={value}"
            for name, value in settings.items()
            if value is not None and NEUTRAL.get(name, ...) != value
        ]
        if unknown:
            raise UserError(
                f"stage harness: a task wants {', '.join(unknown)}, which is not supported; set other "
                "values in harness.gen_kwargs, or leave the task out"
            )
        special = {
            string: self.tokenizer.convert_tokens_to_ids(string)
            for string in until
            if string in self.tokenizer.all_special_tokens
        }
        return Sampling(
            max_new_tokens,
            float(temperature),
            top_k or None,
            1.0 if top_p is None else float(top_p),
            ends=tuple(sorted(special.values())),
            stop=tuple(string for string in until if string and string not in special),
        )


def grouped(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[int, list[list[int]]]:
    """Pairs (context, continuation) put into rows of one context and 4, 2 or 1 continuations.

    A row holds more than one continuation only if its context is longer than they are together. So it is at
    most twice as long as the context.

        A B C > d, A B C > e, A > f, A > g        {2: [[0, 1]], 1: [[2], [3]]}

    Args:
        pairs: token ids.

    Returns:
        {continuations in a row: rows of the pairs' numbers}.
    """
    of_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        of_context.setdefault(tuple(context), []).append(number)
    rows: dict[int, list[list[int]]] = {}
    for context, numbers in of_context.items():
        lengths = [len(pairs[number][1]) for number in numbers]
        begin = 0
        while begin < len(numbers):
            count = _continuations_in_a_row(len(context), lengths[begin:])
            rows.setdefault(count, []).append(numbers[begin : begin + count])
            begin += count
    return rows


def _continuations_in_a_row(context_length: int, lengths: Sequence[int]) -> int:
    """How many of the next continuations, which have these lengths, go into one row with their context."""
    for count in SHARED:
        if count <= len(lengths) and sum(lengths[:count]) <= context_length:
            return count
    return 1


def table_of(prompts: list[list[int]], responses: list[list[list[int]]]) -> TokenTable:
    """A table of token ids, as batching takes it.

    Args:
        prompts: token ids of each row.
        responses: of each row, as many as of any other.
    """
    N, P = len(prompts), len(responses[0])
    no = np.zeros(N, bool)
    return TokenTable(
        ragged(prompts, np.int32),
        ragged([response for row in responses for response in row], np.int32),
        np.arange(N),
        no,
        np.zeros((N, P), bool),
        np.ones(N, np.float32),
        ("requests",),
        np.zeros(N, np.int32),
        np.arange(N),
    )
