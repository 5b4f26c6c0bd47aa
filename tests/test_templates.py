"""What a chat template gets and what comes of it, held against transformers and TRL."""

import datetime
import json
from pathlib import Path

import pytest

from helpers.chat import (
    BAD,
    CHATML,
    GEMMA,
    GOOD,
    LLAMA,
    MISTRAL,
    NO_END,
    ONLY_PARTS,
    OPENED,
    THINKING,
    USER,
    call,
    chat_tokenizer,
    full_ids,
    ids,
    tool,
)
from helpers.loading import Load
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data import load as loading
from sparsepo_jax.data.sources import FileRows
from sparsepo_jax.data.tokenizers import END, make_byte_tokenizer

PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama": (LLAMA, "<|eot|>"),
    "opened": (OPENED, "<|im_end|>"),
    "gemma": (GEMMA, "</s>"),
    "mistral": (MISTRAL, "</s>"),
    "only parts": (ONLY_PARTS, "</s>"),
    "no end": (NO_END, "</s>"),
    "thinking": (THINKING, "<|im_end|>"),
}


@pytest.fixture
def load(tmp_path):
    """load(rows or sources, tokenizer, **settings) -> TokenTable; what is said is in load.lines."""
    return Load(tmp_path)


# ---------------------------------------------------------------- tokens are transformers'


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("thinking", "only parts")])
def test_prompt_and_responses_are_what_apply_chat_template_writes(load, name):
    tokenizer = chat_tokenizer(*TEMPLATES[name])
    prompt = [USER, GOOD, {"role": "user", "content": "And\n\nthen?"}]
    row = {"prompt": prompt, "chosen": [{"role": "assistant", "content": "Yes.\n"}], "rejected": [BAD]}
    table = load([row], tokenizer)
    assert table.prompt(0).tolist() == ids(tokenizer, prompt, add_generation_prompt=True)
    assert full_ids(table) == [ids(tokenizer, prompt + row[name]) for name in ("chosen", "rejected")]
    asked = load([{"prompt": prompt}], tokenizer, kind="prompts")
    assert asked.prompt(0).tolist() == ids(tokenizer, prompt, add_generation_prompt=True)
    sft = load([{"messages": [*prompt, BAD]}], tokenizer, kind="sft")
    assert full_ids(sft) == [ids(tokenizer, [*prompt, BAD])]
    assert sft.response(0, 0).tolist() == table.response(0, 1).tolist()


def test_knobs_of_texts_add_nothing_to_what_a_template_writes(load):
    tokenizer = chat_tokenizer(NO_END)
    table = load([PAIR], tokenizer, add_bos=True, add_eos=True)
    assert full_ids(table)[0] == ids(tokenizer, [USER, GOOD])
    tokenizer.eos_token = tokenizer.bos_token = None
    assert full_ids(load([PAIR], tokenizer))[0] == ids(tokenizer, [USER, GOOD]), (
        "a tokenizer without EOS is no matter: none is added"
    )


def test_an_opening_that_the_answer_does_not_repeat_is_left_out_as_in_trl_and_said(load):
    data_utils = pytest.importorskip("trl.data_utils")
    tokenizer = chat_tokenizer(*TEMPLATES["thinking"])
    row = {"prompt": [USER], "chosen": [{"role": "assistant", "content": "<b>"}], "rejected": [BAD]}
    table = load([row], tokenizer)
    asked, wholes = (
        ids(tokenizer, [USER], add_generation_prompt=True),
        [ids(tokenizer, [USER, *row[name]]) for name in ("chosen", "rejected")],
    )
    shared = min(data_utils.common_prefix_length(asked, other) for other in wholes)
    assert shared < len(asked) and table.prompt(0).tolist() == asked[:shared] and full_ids(table) == wholes
    assert (
        len(load.lines) == 1
        and "in 1 of 1 rows the chat template does not write the end of its generation prompt"
        in load.lines[0]
    )
    quiet = load([row], tokenizer, template_arguments={"enable_thinking": False})
    assert (
        quiet.prompt(0).tolist() == ids(tokenizer, [USER], add_generation_prompt=True, enable_thinking=False)
        and len(load.lines) == 1
    )


def test_a_template_that_refuses_is_a_bad_row(load):
    with pytest.raises(
        UserError, match=r"rows:1: the chat template refuses these messages \(System role not supported\)"
    ):
        load([PAIR | {"prompt": [{"role": "system", "content": "x"}, USER]}], chat_tokenizer(GEMMA))


def test_of_several_templates_the_default_is_taken_or_the_one_that_is_named(load):
    tokenizer = make_byte_tokenizer()
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    for templates, arguments, expected in (
        ({"default": turns, "rag": f"R{turns}"}, {}, "user: "),
        ({"chat": turns, "rag": f"R{turns}"}, {"chat_template": "rag"}, "Ruser: "),
    ):
        tokenizer.chat_template = templates
        table = load([PAIR], tokenizer, template_arguments=arguments)
        assert tokenizer.decode(table.prompt(0)).startswith(expected)
    with pytest.raises(
        UserError, match=r"2 chat templates \(chat, rag\) and no default: set data.template_arguments.chat_t"
    ):
        load([PAIR], tokenizer)


PLAIN = {"prompt": [USER, GOOD, USER], "chosen": [GOOD], "rejected": [BAD]}
THOUGHT = {
    "prompt": [USER],
    "chosen": [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}],
    "rejected": [BAD],
}
CALLED = {
    "prompt": [USER],
    "rejected": [BAD],
    "chosen": [call("w", city="Ulm") | {"content": ""}],
    "tools": [tool("w", city={"type": "string"})],
}


@pytest.mark.parametrize(
    "name",
    [
        "cohere2",
        "deepseek_r1_distill",
        "gemma",
        "gemma3",
        "gptoss",
        "lfm2",
        "llama3_2",
        "phi3",
        "qwen2_5",
        "qwen3",
        "qwen3_5_think",
    ],
)
@pytest.mark.parametrize(
    "row",
    [PLAIN, THOUGHT, CALLED, PLAIN | {"chat_template_kwargs": {"enable_thinking": False}}],
    ids=["plain", "thought", "called", "quiet"],
)
def test_templates_of_real_families_give_the_tokens_of_trl(load, name, row):
    trl = pytest.importorskip("trl")
    pytest.importorskip("trl.data_utils")
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"this TRL ships no template {name}")
    tokenizer = chat_tokenizer(path.read_text(), "<|im_end|>")
    arguments = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    asked = ids(tokenizer, row["prompt"], add_generation_prompt=True, **arguments)
    wholes = [
        ids(tokenizer, row["prompt"] + row[response], **arguments) for response in ("chosen", "rejected")
    ]
    shared = min(trl.data_utils.common_prefix_length(asked, other) for other in wholes)
    table = load([row], tokenizer, max_length=20_000, max_prompt_length=10_000)
    assert table.prompt(0).tolist() == asked[:shared] and full_ids(table) == wholes


# ---------------------------------------------------------------- contents


def in_parts(message, *texts):
    return message | {"content": [{"type": "text", "text": text} for text in texts or (message["content"],)]}


@pytest.mark.parametrize("name", ["chatml", "llama", "gemma", "mistral", "only parts"])
def test_text_parts_are_the_text(load, name):
    tokenizer = chat_tokenizer(*TEMPLATES[name])
    parts = load(
        [{"prompt": [in_parts(USER, "H", "i")], "chosen": [in_parts(GOOD)], "rejected": [in_parts(BAD)]}],
        tokenizer,
    )
    text = load([PAIR], tokenizer)
    assert (
        full_ids(parts) == full_ids(text)
        and "Hello" in tokenizer.decode(text.response(0, 0))
        and "Hi" in tokenizer.decode(text.prompt(0))
    )
    if name == "gemma":
        assert full_ids(parts)[0] == ids(tokenizer, [in_parts(USER, "H", "i"), in_parts(GOOD)])


def test_a_template_that_reads_parts_gets_them(load):
    tokenizer = chat_tokenizer(GEMMA)
    row = {"prompt": [in_parts(USER, " Hi ", " there")], "chosen": [in_parts(GOOD)], "rejected": [BAD]}
    table = load([row], tokenizer)
    assert full_ids(table)[0] == ids(
        tokenizer, row["prompt"] + row["chosen"]
    ) and "Hithere" in tokenizer.decode(table.prompt(0))


def test_a_row_with_which_a_template_fails_does_not_decide_for_the_others(load):
    """Whether a template reads plain text is asked with a row's tools, and asked again where it fails."""
    strict = "{% if mode == 'tools' and not tools %}{{ raise_exception('no tools') }}{% endif %}" + ONLY_PARTS
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    calls = PAIR | {"tools": tools, "chat_template_kwargs": {"mode": "tools"}}
    alone = load([PAIR], chat_tokenizer(strict, "</s>"))
    table = load([calls, PAIR], chat_tokenizer(strict, "</s>"))
    assert full_ids(table, 1) == full_ids(alone)
    fails = PAIR | {"chat_template_kwargs": {"mode": "tools"}}
    assert full_ids(load([fails, PAIR], chat_tokenizer(strict, "</s>"), on_bad_row="skip")) == full_ids(alone)


@pytest.mark.parametrize(
    "part", [{"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}]
)
def test_parts_that_are_no_text_are_refused_by_name(load, part):
    row = PAIR | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}]}
    with pytest.raises(
        UserError, match=f"rows:1: prompt: a content has a part of type '{part['type']}'; only parts"
    ):
        load([row], chat_tokenizer(GEMMA))


# ---------------------------------------------------------------- tools, arguments, nulls


CALLS = [
    {
        "prompt": [USER],
        "chosen": [call("weather", city="Ulm")],
        "rejected": [BAD],
        "tools": [tool("weather", city={"type": "string"})],
    },
    {
        "prompt": [USER],
        "chosen": [call("time", zone="CET")],
        "rejected": [BAD],
        "tools": [tool("time", zone={"type": "string", "enum": ["CET"]})],
    },
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_calls_and_schemas_are_the_same_from_every_kind_of_file(load, tmp_path, kind):
    import datasets
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in CALLS))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CALLS), path)
    else:
        datasets.Dataset(pyarrow.Table.from_pylist(CALLS)).save_to_disk(path)
    tokenizer = chat_tokenizer(*TEMPLATES["llama"])
    table = load([FileRows(str(path))], tokenizer)
    assert [full_ids(table, i)[0] for i in range(2)] == [
        ids(tokenizer, row["prompt"] + row["chosen"], tools=row["tools"]) for row in CALLS
    ]
    assert "null" not in tokenizer.decode(full_ids(table)[0])


@pytest.mark.parametrize(
    "as_text", [json.dumps, lambda tools: [json.dumps(tool) for tool in tools]], ids=["all", "each"]
)
def test_tools_as_json_are_read(load, as_text):
    tokenizer = chat_tokenizer(*TEMPLATES["llama"])
    assert full_ids(load([CALLS[0] | {"tools": as_text(CALLS[0]["tools"])}], tokenizer)) == full_ids(
        load([CALLS[0]], tokenizer)
    )


@pytest.mark.parametrize("none", [[], None, "", "[]", "null"])
def test_no_tools_are_none(load, none):
    tokenizer = chat_tokenizer(*TEMPLATES["llama"])
    assert full_ids(load([PAIR | {"tools": none}], tokenizer)) == full_ids(load([PAIR], tokenizer))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"tools": "{"}, "tools is a text that is no JSON"),
        ({"tools": {"a": 1}}, "tools must be a list, got dict"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be a mapping, got list"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize: no argument of a chat template"),
    ],
)
def test_what_a_template_cannot_take_is_a_bad_row(load, column, message):
    with pytest.raises(UserError, match=f"rows:1: {message}"):
        load([PAIR | column], chat_tokenizer(CHATML))


@pytest.mark.parametrize("write", [dict, json.dumps])
def test_arguments_of_a_row_go_over_those_of_the_settings(load, write):
    tokenizer = chat_tokenizer("{{ tone }}{{ pace }}" + CHATML)
    rows = [PAIR, PAIR | {"chat_template_kwargs": write({"tone": "low", "pace": None})}]
    table = load(rows, tokenizer, template_arguments={"tone": "high", "pace": "slow"})
    prompts = [tokenizer.decode(table.prompt(i)) for i in range(2)]
    assert prompts[0].startswith("highslow<") and prompts[1].startswith("lowslow<")


# ---------------------------------------------------------------- the clock


class OtherDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 4)


def test_a_template_that_asks_for_the_date_is_told_the_same_on_another_day(load, monkeypatch):
    tokenizer = chat_tokenizer(*TEMPLATES["llama"])
    first = load([PAIR], tokenizer, template_date="2026-11-27")
    assert "Today Date: 27 Nov 2026" in tokenizer.decode(first.prompt(0))
    assert ["2026-11-27" in line for line in load.lines] == [True]
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", OtherDay)
    monkeypatch.setattr(loading, "read_kept", lambda path: None)
    again = load([PAIR], tokenizer, template_date="2026-11-27")
    assert again.digest() == first.digest() and (again.prompt_key_N == first.prompt_key_N).all()
    other = load([PAIR], tokenizer, template_date="2031-05-04")
    assert full_ids(other)[0] == ids(tokenizer, [USER, GOOD]), (
        "the same as by transformers' own clock on that day"
    )
    assert (other.prompt_key_N == first.prompt_key_N).all(), "the held-out part does not move with the day"


def test_the_date_is_in_the_key_of_the_cache_only_if_it_is_read(load, monkeypatch):
    counts = []
    monkeypatch.setattr(
        loading,
        "tokenize_source",
        lambda *a, tokenize=loading.tokenize_source: counts.append(1) or tokenize(*a),
    )
    for date in ("2026-11-27", "2026-11-28"):
        load([PAIR], chat_tokenizer(*TEMPLATES["llama"]), template_date=date)
        load([PAIR], chat_tokenizer(*TEMPLATES["chatml"]), template_date=date)
        load(
            [PAIR],
            chat_tokenizer(*TEMPLATES["llama"]),
            template_date=date,
            template_arguments={"date_string": "never"},
        )
    assert len(counts) == 4


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %Y", "%H:%M %p", "%y%j"])
def test_every_form_of_the_date_is_as_transformers_writes_it(load, monkeypatch, form):
    tokenizer = chat_tokenizer(
        "\n{% macro now() %}{{ strftime_now('"
        + form
        + "') }}{% endmacro %}  {% if true %}{{ now() }}{% endif %}"
        + CHATML
    )
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", OtherDay)
    assert full_ids(load([PAIR], tokenizer, template_date="2031-05-04"))[0] == ids(tokenizer, [USER, GOOD])


# ---------------------------------------------------------------- weights and spans


@pytest.mark.parametrize("name", ["chatml", "llama", "mistral"])
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_weights_may_lack_what_ends_the_turn(load, name, lacking):
    tokenizer = chat_tokenizer(*TEMPLATES[name])
    table = load([PAIR], tokenizer)
    length = len(table.response(0, 0))
    ends = {"chatml": 2, "llama": 1, "mistral": 1}[name]
    row = PAIR | {"chosen_weights": [0.5] * (length - lacking)}
    if lacking <= ends:
        assert load([row], tokenizer).weights(0, 0).tolist() == [0.5] * (length - lacking) + [1.0] * lacking
    else:
        without_end = rf"{length - ends} tokens \(without the {ends} that end the turn\)"
        with pytest.raises(UserError, match=f"weights for a response of {without_end}"):
            load([row], tokenizer)


def test_weights_may_lack_an_eos_that_the_data_wrote(load):
    tokenizer = make_byte_tokenizer()
    row = {"prompt": "Q", "chosen": f" yes{END}", "rejected": " no", "chosen_weights": [2, 2, 2, 2]}
    assert load([row], tokenizer).weights(0, 0).tolist() == [2, 2, 2, 2, 1]
    row = {
        "prompt_ids": [1],
        "chosen_ids": [2, 3, tokenizer.eos_token_id],
        "rejected_ids": [4],
        "chosen_weights": [2, 2],
    }
    assert load([row], tokenizer).weights(0, 0).tolist() == [2, 2, 1]


def test_spans_stand_on_the_content_wherever_a_template_puts_it(load):
    tokenizer = chat_tokenizer(*TEMPLATES["mistral"])
    table = load([PAIR | {"chosen_weights": [[0, 5, 0.25]]}], tokenizer)
    assert table.weights(0, 0).tolist() == [1, *[0.25] * 5, 1], (
        "the space before the content and EOS are not in the span"
    )
