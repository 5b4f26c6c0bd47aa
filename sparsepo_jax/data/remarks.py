"""What a user should know of the rows that were read: what a chat template does to them, what is cut."""

from typing import Any

from sparsepo_jax.data.ranked import Ranking
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.tokenised import Counts
from sparsepo_jax.data.tokenize import LengthLimits
from sparsepo_jax.data.turns import TrainOn
from sparsepo_jax.data.values import columns_of, elsewhere


def template_remarks(
    counts: Counts, rows: int, has_template: bool, date: str | None, train_on: TrainOn
) -> list[str]:
    """A line for each thing that a chat template does and that is worth knowing.

    Args:
        counts: of the rows.
        rows: how many they are.
        has_template: whether the tokenizer's chat template writes messages.
        date: that the template was told, YYYY-MM-DD. None: it does not ask.
        train_on: see data.train_on.
    """
    lines = []
    if has_template and counts.plain:
        lines.append(
            f"in {counts.plain} of {rows} rows the prompt is text: it and the answers are read as they "
            "stand, without the chat template; columns: {instruction: prompt} beside the path makes turns of "
            "them"
        )
    if date is not None and counts.templated:
        lines.append(
            f"the chat template writes the date: {date} in this run, whenever it goes on (data.template_date)"
        )
    if counts.prompt_cut_short:
        lines.append(
            f"in {counts.prompt_cut_short} of {rows} rows the chat template does not write the end of its "
            "generation prompt once the answer is there: it is left out, as in TRL, and the policy will be "
            "asked with it; data.template_arguments may switch it off (enable_thinking: false)"
        )
    if counts.answered_prompts:
        lines.append(
            f"in {counts.answered_prompts} of {rows} rows the prompt ends with a message of the assistant, "
            "and the answer is another message behind it"
        )
    if counts.quoted_arguments:
        lines.append(
            f"in {counts.quoted_arguments} of {rows} rows the arguments of a call are text, which the chat "
            "template writes as a string in quotes: write them as objects if it is to write them as such"
        )
    if counts.dropped_tools:
        lines.append(
            f"in {counts.dropped_tools} of {rows} rows the chat template leaves out the tools, or a call of "
            "one, as in TRL: the policy does not learn of them; take a tokenizer whose template knows tools"
        )
    if counts.dropped_thoughts:
        lines.append(
            f"in {counts.dropped_thoughts} of {rows} rows the chat template leaves out the reasoning_content "
            "(reasoning, thinking) of an answer, as in TRL: write it into the content, or take a tokenizer "
            "whose template writes it"
        )
    if counts.other_turns:
        lines.append(
            f"in {counts.other_turns} of {rows} rows a response holds turns that are not the assistant's; "
            "they are trained on like its own"
        )
    if counts.context_turns:
        own = (
            "nor are the assistant's before its last (data.train_on=assistant trains on them)"
            if train_on == "last"
            else "the assistant's all are"
        )
        lines.append(
            f"in {counts.context_turns} of {rows} rows a response holds turns that are not the assistant's: "
            f"they are read and not trained on, {own}"
        )
    return lines


def front_remarks(tokenizer: Any | None, counts: Counts, add_bos: bool | None) -> list[str]:
    """A line where text begins with another token than the tokenizer itself, and so TRL, puts there.

    Args:
        tokenizer: None: the rows are token ids. Of one that was not loaded from files nothing is said.
        counts: of the rows.
        add_bos: see data.add_bos.
    """
    if tokenizer is None or add_bos is not None or not counts.plain or not tokenizer.name_or_path:
        return []
    bare, whole = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (False, True))
    start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    bos = tokenizer.bos_token_id
    ours = [] if bos is None else [bos]
    if whole[:start] == ours:
        return []
    own, here = (tokenizer.decode(ids) or "nothing" for ids in (whole[:start], ours))
    remedy = "data.add_bos=false leaves it out" if ours else "write it into the prompts if it is needed"
    return [
        f"text prompts begin with {here} here, and with {own} where the tokenizer is left to itself, as in "
        f"TRL: {remedy}"
    ]


def column_remarks(counts: Counts, rows: int) -> list[str]:
    """A line for columns that are not read, for prompts that no column holds, and for those that stand twice.

    Args:
        counts: of the rows.
        rows: how many they are.
    """
    lines = []
    if counts.unread:
        lines.append(f"columns that are not read: {columns_of(dict.fromkeys(counts.unread))}")
    if counts.shared_prompts:
        lines.append(
            f"in {counts.shared_prompts} of {rows} rows no column is the prompt: it is what chosen and "
            f"rejected both begin with, up to a space; {elsewhere('prompt')}"
        )
    if counts.repeated_prompts > rows / 2:
        lines.append(
            f"in {counts.repeated_prompts} of {rows} rows the responses begin with the prompt once more, so "
            "that it is read twice: take it off them (or, of pairs, leave the column out with "
            "columns: {unread: prompt}: what both begin with is then the prompt)"
        )
    return lines


def ranked_remarks(counts: Counts, ranking: Ranking) -> list[str]:
    """A line for pairs that rows of ranked answers could have made and did not, one for an order as rank.

    Args:
        counts: of the rows.
        ranking: how lists became pairs.
    """
    lines = []
    if counts.best_first:
        lines.append(
            f"{counts.best_first} rows of responses have no scores: they are read as ranked, the best first "
            "(data.ranked.score names a column of scores)"
        )
    if not counts.ties:
        return lines
    return [
        *lines,
        f"of the pairs of ranked answers {counts.ties} are left out (data.ranked.rule={ranking.rule}): their "
        f"scores do not differ by more than data.ranked.margin={ranking.margin:g}, or the answers are the "
        "same",
    ]


def cut_remarks(table: TokenTable, counts: Counts, limits: LengthLimits, positions: int | None) -> list[str]:
    """A line for each kind of cut, with what to set to avoid it.

    Args:
        table: the rows.
        counts: of the rows.
        limits: by which they were cut.
        positions: tokens that the model can hold. None: not known.
    """
    responses = int(table.response_cut_NP.sum())
    prompts = int(table.prompt_cut_N.sum())
    remedy = f"to keep them whole, set data.max_length={counts.longest_row}"
    if prompts:
        remedy += f" data.max_prompt_length={counts.longest_prompt}"
    if positions is not None and counts.longest_row > positions:
        remedies = [
            *([f"set data.max_length={positions} to cut less"] if limits.max_length < positions else ()),
            *(["raise data.max_prompt_length to cut responses instead of prompts"] if prompts else ()),
            "leave long rows out",
        ]
        remedy = (
            f"the longest row has {counts.longest_row} tokens, the model {positions} positions: "
            + ", or ".join(remedies)
        )
    lines = []
    if responses:
        total = table.response_cut_NP.size
        consequence = ", so that the policy hardly learns to end" if responses > total / 2 else ""
        lines.append(
            f"{responses} of {total} responses lose their end, EOS included, "
            f"at data.max_length={limits.max_length}{consequence}; {remedy}"
        )
    if prompts:
        lines.append(
            f"{prompts} of {len(table)} prompts lose their beginning "
            f"at data.max_prompt_length={limits.max_prompt_length}; {remedy}"
        )
    return lines
