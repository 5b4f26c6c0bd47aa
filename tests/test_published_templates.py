"""Chat templates and tokenizers with the habits of published ones, held against transformers and TRL."""

import pytest

from helpers.chat import BAD, GOOD, USER, chat_tokenizer
from helpers.loading import Load


@pytest.fixture
def load(tmp_path):
    """load(rows or sources, tokenizer, **settings) -> TokenTable; what is said is in load.lines."""
    return Load(tmp_path)


def ids(tokenizer, messages, **arguments):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)


def full_ids(table, i=0):
    return [
        [*table.prompt(i).tolist(), *table.response(i, p).tolist()] for p in range(table.responses_per_row)
    ]


# ---------------------------------------------------------------- tokens that swallow white space


PHI = (  # whose headers are special tokens that swallow the line end behind them
    "{% for m in messages %}{{ ('<|start|>' if m.role == 'user' else '<|im_start|>') + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>\n' }}{% endif %}"
)


@pytest.mark.parametrize("space", ["", " ", "\n", "  \n "])
def test_a_header_that_swallows_white_space_stays_with_the_prompt(load, space):
    """Kills: a header that is trained on, since the answer's first space belongs to its token."""
    tokenizer = chat_tokenizer(PHI, "<|im_end|>", greedy=True)
    row = {"prompt": [USER], "chosen": [GOOD | {"content": f"{space}Hello"}], "rejected": [BAD]}
    table = load([row], tokenizer)
    assert table.prompt(0).tolist() == ids(tokenizer, [USER], add_generation_prompt=True)
    assert full_ids(table) == [ids(tokenizer, [USER, *row[name]]) for name in ("chosen", "rejected")]


def test_spans_do_not_reach_a_token_that_has_swallowed_their_first_space(load):
    tokenizer = chat_tokenizer(None, greedy=True)
    row = {"prompt": "Q</s>", "chosen": " <s> ab", "rejected": "c", "chosen_weights": [[4, 6, 0.5]]}
    assert load([row], tokenizer).weights(0, 0).tolist() == [1, 0.5, 1, 1]
