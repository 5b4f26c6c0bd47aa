"""Rows whose prompt and responses are text, with a column for the prompt or without one."""

from typing import Any

from sparsepo_jax.data.annotations import Annotation
from sparsepo_jax.data.dialogues import check_response
from sparsepo_jax.data.example import Example
from sparsepo_jax.data.messages import refuse_system
from sparsepo_jax.data.rows import BadRow
from sparsepo_jax.data.values import check_text, common_prefix, elsewhere

# What published data calls its prompt, or a part of it.
_PROMPTS_ELSEWHERE = (
    *("question", "query", "input", "instruction", "problem", "context", "context_messages"),
    *("post", "history", "trajectory", "conversation", "dialogue", "messages", "document", "article"),
)
_STEPS = "initial_reason_steps"  # Step-DPO's, of the answer that both go on with
_TURN, _USER_TURN = "\n\nAssistant:", "\n\nHuman:"  # Anthropic's dialogues as text


def from_texts(row: dict[str, Any], names: tuple[str, ...], annotations: tuple[Annotation, ...]) -> Example:
    """A pair or a response, and its prompt, all of them text.

    Args:
        row: with its columns' known names, without nulls.
        names: of the responses.
        annotations: of the responses; spans count the characters of each.

    Raises:
        BadRow: a response is empty, or there is no prompt, or a column that the text has no place for.
    """
    responses = tuple(row[name] for name in names)
    prompt, is_shared = row.get("prompt"), False
    if prompt is None:
        is_shared = _TURN not in common_prefix(*responses)
        if is_shared:
            refuse_prompt_elsewhere(row)
        prompt, responses = _split_texts(responses)
    refuse_system(row)
    if row.get(_STEPS):
        raise BadRow(
            f"a column {_STEPS}, which stands between the prompt and both answers: write it at the end of "
            f"the prompt, or leave it out with columns: {{unread: {_STEPS}}} beside the path of the data"
        )
    texts = tuple(
        check_response(response, name, annotation)
        for response, name, annotation in zip(responses, names, annotations, strict=True)
    )
    return Example(
        check_text(prompt, "prompt"),
        texts,
        annotations,
        has_other_turns=any(_USER_TURN in text for text in texts),
        has_shared_prompt=is_shared,
        repeats_prompt=bool(prompt.strip()) and all(text.startswith(prompt) for text in texts),
    )


def refuse_prompt_elsewhere(row: dict[str, Any]) -> None:
    """Checks that a row without a prompt has no column which is probably meant to be it.

    Args:
        row: with its columns' known names, without nulls.

    Raises:
        BadRow: it has; the message says what to set.
    """
    for name in _PROMPTS_ELSEWHERE:
        value = row.get(name)
        if value and isinstance(value, str | list | dict) and not _is_id(value):
            as_turn = f" ({{instruction: {name}}} for the chat template to write it)"
            raise BadRow(
                f"no prompt, but a column {name}: if that is the prompt, "
                f"set columns: {{prompt: {name}}} beside the path of the data"
                f"{as_turn if isinstance(value, str) else ''}"
            )


def _is_id(value: Any) -> bool:
    """Whether a column names something instead of showing it: one word with a digit, as c1f3."""
    return isinstance(value, str) and len(value.split()) == 1 and any(map(str.isdigit, value))


def _split_texts(dialogues: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The common beginning and the rests, cut where a response may begin.

    That is after the last "\\n\\nAssistant:", or else before the last space, or after a last line end, which
    belongs to what opens the answer (ChatML's "<|im_start|>assistant\\n").

        chosen      \\n\\nHuman: Hi\\n\\nAssistant: Hello there         chosen      Is it good? Yes it is
        rejected    \\n\\nHuman: Hi\\n\\nAssistant: Hell no             rejected    Is it good? Yellow
        prompt      \\n\\nHuman: Hi\\n\\nAssistant:                     prompt      Is it good?
        responses                           " Hello there"          responses               " Yes it is"
                                            " Hell no"                                      " Yellow"
    """
    common = common_prefix(*dialogues)
    if _TURN in common:
        end = common.rindex(_TURN) + len(_TURN)
    elif any(_TURN in dialogue for dialogue in dialogues):
        raise BadRow("no prompt, and chosen and rejected share no turn up to an answer of the assistant")
    else:
        end = max((i for i, character in enumerate(common) if character.isspace()), default=0)
        end += common[end : end + 1] == "\n"
    if not common[:end].strip():
        raise BadRow(f"no prompt, and chosen and rejected have no common beginning; {elsewhere('prompt')}")
    return common[:end], tuple(dialogue[end:] for dialogue in dialogues)
