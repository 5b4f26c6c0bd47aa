"""The one form to which every shape of a row is brought before it is tokenised."""

from dataclasses import dataclass
from typing import Literal

from sparsepo_jax.data.annotations import Annotation

RowKind = Literal["pairs", "unpaired", "sft", "prompts"]
"""What rows are read as: preference pairs, single responses with a label, texts to imitate, or prompts to be
answered."""

RESPONSES: dict[str, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "unpaired": ("completion",),
    "sft": ("completion",),
    "prompts": (),
}
"""The columns that hold the responses, by kind."""


@dataclass(frozen=True)
class Example:
    """A row in its one form: a prompt and its responses, all text (str) or all token ids (list of int)."""

    prompt: str | list[int] | None
    """None: the prompt is BOS, or the response's first token if there is no BOS."""
    responses: tuple[str, ...] | tuple[list[int], ...]
    """Empty for a prompt to be answered."""
    annotations: tuple[Annotation, ...]
    """One for each response."""
    templated: bool = False
    """Made from messages: the template has written everything between prompt and response."""
    has_ends: bool = False
    """The template was in charge of begin and end of text: none is added, even if it has written none."""
    content_ends: tuple[int | None, ...] = ()
    """Characters of each response before what ends the turn. None if that cannot be told."""
    unseen: str = ""
    """The end of the generation prompt that the template drops once the answer is there; not trained on."""
    key: str | None = None
    """Tells one prompt from another. None: the prompt itself does."""
    pair_weight: float | None = None
    """How much the row counts in the loss. None: the row does not say."""
    label: bool | None = None
    """Whether a row's one response is desirable. None: a pair, or a row without a label."""
    spans: tuple[tuple[tuple[int, int], ...] | None, ...] = ()
    """Of each response: (first character, character after the last) of the parts that are trained on; what
    lies between them is only read. None, or no entry: all of it."""
    before: tuple[list[list[int]] | None, ...] = ()
    """Of each response of token ids: the ids of other turns before each of its own. None, no entry: none."""
    has_other_turns: bool = False
    """A response holds turns that are not the assistant's, and is trained on as a whole."""
    has_context_turns: bool = False
    """A response holds turns that are not the assistant's, which are only read."""
    has_shared_prompt: bool = False
    """There is no column prompt: it is the text that both responses begin with, up to some space."""
    repeats_prompt: bool = False
    """The text of every response begins with the prompt once more, and so it is read twice."""
    prompt_is_answered: bool = False
    """The prompt's last message is the assistant's; the answer is another one behind it."""
    quotes_arguments: bool = False
    """The chat template writes a call's arguments, which came as text, as a string in quotes."""
    drops_tools: bool = False
    """The chat template leaves out all schemas of tools that it is given, or a call."""
    drops_thoughts: bool = False
    """The chat template leaves out what an answer's last message holds as reasoning_content or the like."""
    ids_vocabulary: str | None = None
    """Digest of the vocabulary that token ids are of; see tokenizers.vocabulary_digest. None: not known."""

    @property
    def is_text(self) -> bool:
        """Whether the row came as text, not as token ids."""
        return isinstance(self.responses[0] if self.responses else self.prompt, str)
