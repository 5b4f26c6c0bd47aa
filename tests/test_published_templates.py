"""Chat templates and tokenizers with the habits of published ones, held against transformers and TRL."""

import itertools
import json

import pytest
from transformers import AutoTokenizer

from helpers.chat import BAD, CHATML, GOOD, USER, call, chat_tokenizer, full_ids, ids, tool
from helpers.loading import Load
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import load_tokenizer
from sparsepo_jax.models.export import copy_tokenizer


@pytest.fixture
def load(tmp_path):
    """load(rows or sources, tokenizer, **settings) -> TokenTable; what is said is in load.lines."""
    return Load(tmp_path)


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


# ---------------------------------------------------------------- which template


PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
MARKED = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
DATED = "{{ strftime_now('%Y-%m-%d') }} {{ builtin }}" + TURNS


def prompt_text(table, tokenizer):
    return tokenizer.decode(table.prompt(0))


@pytest.mark.parametrize("choice", ["none", "chat"])
def test_a_template_that_the_settings_bring_is_taken_where_the_tokenizer_has_none(load, choice):
    """Kills: the paper's template in its place, without a word."""
    tokenizer = chat_tokenizer(None)
    table = load([PAIR], tokenizer, template=choice, template_arguments={"chat_template": CHATML})
    assert full_ids(table)[0] == ids(tokenizer, [USER, GOOD], chat_template=CHATML)
    rows = [PAIR | {"chat_template_kwargs": {"chat_template": CHATML}}]
    with pytest.raises(UserError, match=r"rows:1: chat_template_kwargs bring a chat_template, and the paper"):
        load(rows, tokenizer)
    tokenizer.chat_template = TURNS
    assert full_ids(load(rows, tokenizer)) == full_ids(table)


@pytest.mark.parametrize(
    ("templates", "name", "line"),
    [
        (
            {"default": TURNS, "rag": TURNS},
            "rga",
            r"'rga' is no text of a chat template in Jinja, nor one of",
        ),
        (TURNS, "default", r"'default' is no text of a chat template in Jinja; a file of one is read"),
        (None, "chat.jinja", r"'chat.jinja' is no text of a chat template in Jinja; a file of one is read"),
        (TURNS, ["a"], r"\['a'\]\" is no text of a chat template"),
    ],
)
def test_a_name_of_no_template_is_refused(load, templates, name, line):
    """Kills: rows that all read `rga`, as transformers would write them."""
    with pytest.raises(UserError, match=f"^data.template_arguments: chat_template: .*{line}"):
        load([PAIR], chat_tokenizer(templates), template_arguments={"chat_template": name})


def test_the_paper_s_template_and_another_one_are_refused_together(load):
    with pytest.raises(UserError, match="data.template=paper takes none: leave one of them out"):
        load([PAIR], chat_tokenizer(None), template="paper", template_arguments={"chat_template": TURNS})


def test_marks_are_those_of_the_template_that_is_taken(load):
    """Kills: marks that are missed since the settings name the template, or are those of another one."""
    tokenizer = chat_tokenizer({"default": TURNS, "marked": MARKED, "tool_use": MARKED})
    row = {"messages": [USER, GOOD, USER, BAD]}
    marked = {
        "kind": "sft",
        "train_on": "assistant",
        "template_arguments": {"chat_template": "marked"},
    }
    table = load([row], tokenizer, **marked)
    assert tokenizer.decode(table.response(0, 0)) == "HelloWhat"
    plain = load([row], tokenizer, **(marked | {"template_arguments": {}}))
    assert tokenizer.decode(plain.response(0, 0)) == "assistant: Hello\nassistant: What\n"
    by_row = row | {"chat_template_kwargs": {"chat_template": MARKED}}
    assert full_ids(load([by_row], tokenizer, **(marked | {"template_arguments": {}}))) == full_ids(table)
    with_tools = row | {"tools": [tool("w")]}
    assert full_ids(load([with_tools], tokenizer, **(marked | {"template_arguments": {}}))) == full_ids(table)


@pytest.mark.parametrize(
    ("templates", "arguments"),
    [
        (DATED, {"date_string": "Friday"}),  # which it does not read: gpt-oss's, Mistral's, Granite's
        (TURNS, {"chat_template": DATED}),
        ({"default": TURNS, "dated": DATED}, {"chat_template": "dated"}),
        (None, {"chat_template": DATED}),
    ],
)
def test_the_date_is_that_of_the_run_whichever_template_asks_for_it(load, templates, arguments):
    tokenizer = chat_tokenizer(templates)
    table = load([PAIR], tokenizer, template_arguments=arguments, template_date="2025-01-02")
    assert prompt_text(table, tokenizer).startswith("2025-01-02 ")
    assert ["2025-01-02 in this run" in line for line in load.lines] == [True]


# ---------------------------------------------------------------- what a template is given


def test_documents_and_tools_reach_a_template_as_in_trl(load):
    tokenizer = chat_tokenizer("{{ documents | tojson }}{{ tools | tojson }}" + TURNS)
    documents, tools = [{"title": "t", "text": "body"}], [tool("w")]
    given = {"documents": documents, "tools": tools}
    whole = ids(tokenizer, [USER, GOOD], **given)
    for how in (given, json.dumps(given)):
        assert full_ids(load([PAIR | {"chat_template_kwargs": how}], tokenizer))[0] == whole
    by_column = PAIR | {"tools": tools, "chat_template_kwargs": {"tools": [tool("other")]}}
    assert "other" in prompt_text(load([by_column], tokenizer), tokenizer)
    table = load([PAIR | {"tools": tools}], tokenizer, template_arguments={"documents": documents})
    assert full_ids(table)[0] == whole


def test_a_variable_that_a_template_requires_is_named_with_what_to_set(load):
    tokenizer = chat_tokenizer("{{ functions + '\n' }}" + TURNS)
    with pytest.raises(UserError, match=r"'functions' is undefined\): set data.template_arguments.functions"):
        load([PAIR], tokenizer)
    table = load([PAIR], tokenizer, template_arguments={"functions": "none"})
    assert prompt_text(table, tokenizer).startswith("none\n")


def test_a_content_that_is_an_object_says_what_to_write(load):
    row = PAIR | {"prompt": [USER, {"role": "tool", "content": {"t": 7}}]}
    with pytest.raises(UserError, match=r"of 'tool' has no content of text, but dict: write it as JSON"):
        load([row], chat_tokenizer(CHATML))


# ---------------------------------------------------------------- templates that write a prompt anew


MISTRAL_2024 = (  # writes the system prompt before the last message alone, if that is the user's
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ m.content + '[/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
FORGETS = (  # drops the reasoning of all turns but the assistant's last
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{{ m.role + ': ' }}"
    "{{ m.content if loop.index0 >= ns.last else m.content.split('</think>')[-1] }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
OWN_WAY = (  # writes what the last message says, in its own way; the others only once there are several
    "{% if messages | length == 1 %}{{ 'Q' }}{% else %}{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% endfor %}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("template", "prompt", "remedy"),
    [
        (MISTRAL_2024, [SYSTEM, USER], "leaves out the system prompt once an answer follows"),
        (FORGETS, [USER, GOOD | {"content": "<think>hm</think>Yes"}, USER], "reasoning of earlier turns"),
        (OWN_WAY, [USER | {"content": "When?"}], "writes the messages before an answer differently"),
    ],
    ids=["system", "reasoning", "other"],
)
def test_a_prompt_that_is_written_anew_is_refused_with_what_to_do(load, template, prompt, remedy):
    """Kills: questions that are trained on as if they were the answer's."""
    row = PAIR | {"prompt": prompt}
    line = f"as a continuation of the prompt; it .*{remedy}.*or take another template"
    with pytest.raises(UserError, match=line):
        load([row], chat_tokenizer(template))


def test_a_mistral_takes_the_system_prompt_in_the_first_message(load):
    tokenizer = chat_tokenizer(MISTRAL_2024)
    prompt = [USER | {"content": "Be kind.\n\nHi"}]
    table = load([PAIR | {"prompt": prompt}], tokenizer)
    assert full_ids(table)[0] == ids(tokenizer, [*prompt, GOOD])


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (GOOD, "the chat template writes nothing of chosen; mend"),
        (
            call("w") | {"content": ""},
            "writes nothing of chosen: it knows no calls of tools; take a tokenizer",
        ),
    ],
)
def test_an_answer_that_a_template_drops_is_not_called_empty(load, answer, line):
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match=line):
        load([PAIR | {"chosen": [answer]}], chat_tokenizer(users))


# ---------------------------------------------------------------- files of tokenizers


def rewrite(directory, **settings):
    """Settings put into tokenizer_config.json; None takes one out."""
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def by_version(directory):
    """tokenizer.json under the name for a version of transformers."""
    (directory / "tokenizer.json").rename(directory / "tokenizer.4.0.json")
    rewrite(directory, fast_tokenizer_files=["tokenizer.4.0.json"])


def several(directory):
    """Several templates as a list in tokenizer_config.json: the form before files."""
    entries = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TURNS}]
    (directory / "chat_template.jinja").unlink()
    rewrite(directory, chat_template=entries)


def in_files(directory):
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(TURNS)


def old_beside_new(directory):
    """chat_template.jinja wins over an older one."""
    rewrite(directory, chat_template=TURNS)
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": MARKED}))


def of_a_processor(directory):
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))


def more_tokens(directory):
    rewrite(directory, extra_special_tokens=["<a>", "<b>"])


def named_tokens(directory):
    rewrite(directory, extra_special_tokens={"image_token": "<a>"})


@pytest.mark.parametrize(
    "alter", [by_version, several, in_files, old_beside_new, of_a_processor, more_tokens, named_tokens]
)
def test_a_tokenizer_comes_back_from_an_export_as_it_was(tmp_path, alter):
    source, copy = tmp_path / "source", tmp_path / "copy"
    chat_tokenizer(CHATML, "<|im_end|>").save_pretrained(source)
    alter(source)
    (source / "tokenizer.model.v3").write_bytes(b"another form of it")
    copy_tokenizer(source, copy)
    assert (copy / "tokenizer.model.v3").exists()
    ours, theirs = load_tokenizer(str(copy)), AutoTokenizer.from_pretrained(source)
    assert ours.get_vocab() == theirs.get_vocab() and ours.special_tokens_map == theirs.special_tokens_map
    assert ours("<|im_start|> <a>Hi\n\n")["input_ids"] == theirs("<|im_start|> <a>Hi\n\n")["input_ids"]
    assert ours.chat_template == (CHATML if alter is of_a_processor else theirs.chat_template)
    assert ours.get_chat_template() == CHATML
    with_tools = TURNS if alter in (several, in_files) else CHATML
    assert ours.get_chat_template(tools=[tool("w")]) == with_tools


@pytest.mark.parametrize("template", [3, [{"name": "default", "template": "x"}], {"default": None}])
def test_a_chat_template_that_is_no_text_is_named(tmp_path, template):
    chat_tokenizer(None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(UserError, match="expected a chat template that is text, or several by name, got "):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["Qwen2Tokenizer", "LlamaTokenizer", "GPT2Tokenizer", "GemmaTokenizer", "TokenizersBackend"]
)
def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path, name):
    """Kills: rows of special tokens alone, read by what transformers makes of the other files."""
    chat_tokenizer(CHATML, "<|im_end|>").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    called = {"content": "<tool_call>", "special": False, "normalized": False}
    called |= {"lstrip": False, "rstrip": False, "single_word": False}
    rewrite(tmp_path, tokenizer_class=name, backend=None, added_tokens_decoder={"9": called})
    with pytest.raises(UserError, match="the tokenizer's vocabulary is missing, as after a download that"):
        load_tokenizer(str(tmp_path))


def test_a_file_in_the_place_of_a_directory_names_the_directory(tmp_path):
    chat_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"tokenizer.json: a file; expected the directory .*, so {tmp_path}$"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        UserError, match="no Hugging Face tokenizer to be had there .its files lack 'added_to"
    ):
        load_tokenizer(str(tmp_path))


# ---------------------------------------------------------------- pairs as two rows


THINKS = (  # opens a thought; a dialogue has it as it is written, and an empty one without its line ends
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{{ '<think>' }}"
    "{% if m.reasoning %}{{ '\n' + m.reasoning + '\n' }}{% endif %}{{ '</think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def test_a_pair_as_two_rows_is_what_each_response_is_with_a_label(load):
    """Kills: prompts that are cut short for the other response's sake. TRL, too, reads them one by one."""
    tokenizer = chat_tokenizer(THINKS, "<|im_end|>")
    chosen, rejected = [GOOD | {"reasoning": "hm"}], [BAD]
    halves = load([PAIR | {"chosen": chosen}], tokenizer, kind="unpaired")
    rows = [
        {"prompt": [USER], "completion": chosen, "label": True},
        {"prompt": [USER], "completion": rejected, "label": False},
    ]
    singles = load(rows, tokenizer, kind="unpaired")
    assert halves.label_N.tolist() == [True, False]
    for i, answer in enumerate((chosen, rejected)):
        whole = ids(tokenizer, [USER, *answer])
        asked = ids(tokenizer, [USER], add_generation_prompt=True)
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(asked, whole, strict=False))
        shared = len([*alike])
        assert (shared < len(asked)) == (answer is rejected)
        for table in (halves, singles):
            assert table.prompt(i).tolist() == asked[:shared]
            assert table.response(i, 0).tolist() == whole[shared:]
    weighed = PAIR | {"chosen": chosen, "chosen_weights": [[0, 5, 0.5]], "pair_weight": 2}
    table = load([weighed], tokenizer, kind="unpaired")
    at = len(table.weights(0, 0)) - 2 - len("Hello")
    assert table.weights(0, 0).tolist()[at:] == [0.5] * 5 + [1, 1] and table.pair_weight_N.tolist() == [2, 2]


def test_the_cache_tells_tokenizers_apart_that_split_special_tokens_or_not(load, tmp_path):
    chat_tokenizer(CHATML, "<|im_end|>").save_pretrained(tmp_path / "it")
    lengths = []
    for splits in (True, False):
        rewrite(tmp_path / "it", split_special_tokens=splits)
        tokenizer = load_tokenizer(str(tmp_path / "it"))
        table = load([PAIR], tokenizer)
        assert full_ids(table)[0] == ids(tokenizer, [USER, GOOD])
        lengths.append(len(table.response(0, 0)))
    assert lengths == [16, 7]
