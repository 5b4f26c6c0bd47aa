"""From rows in files to token tables: sources, row shapes, the seam, truncation, the cache, bad rows."""

import base64
import gzip
import json
import pwd
import sys
from contextlib import nullcontext

import numpy as np
import pytest

from helpers.chat import BAD, GOOD, USER
from helpers.configs import make_config
from helpers.loading import BYTES, Load, texts
from sparsepo_jax.build.data import check_pairs_can_be_weighed, check_some_row_counts
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data import cache
from sparsepo_jax.data.cache import cache_directory
from sparsepo_jax.data.holdout import split_holdout
from sparsepo_jax.data.inspect import format_rows
from sparsepo_jax.data.load import read_texts
from sparsepo_jax.data.packing import FILLER, Shape, pack
from sparsepo_jax.data.sources import FileRows, GeneratedRows
from sparsepo_jax.data.tokenizers import (
    END,
    load_tokenizer,
    make_byte_tokenizer,
    make_word_tokenizer,
    train_bpe_tokenizer,
)
from sparsepo_jax.models.directory import has_tokenizer

EOS = BYTES.eos_token_id


@pytest.fixture
def load(tmp_path):
    """load(rows or sources, tokenizer, **settings) -> TokenTable, tokenised by bytes."""
    return Load(tmp_path, max_length=400, max_prompt_length=200)


PAIR = {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."}
WHOLE = (f"{END}Is it good?", f" Yes.{END}", f" No.{END}")

# ---------------------------------------------------------------- sources


def write(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def written(kind, directory):
    import datasets
    import pyarrow
    import pyarrow.parquet

    if kind in ("jsonl", "jsonl.gz"):
        return FileRows(write(directory / f"pairs.{kind}", [PAIR, PAIR | {"chosen": " Sure."}]))
    rows = [PAIR, PAIR | {"chosen": " Sure."}]
    if kind == "json":
        (directory / "pairs.json").write_text(json.dumps(rows, indent=1))
        return FileRows(str(directory / "pairs.json"))
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / "pairs.parquet")
        return FileRows(str(directory / "pairs.parquet"))
    data = datasets.DatasetDict({"validation": datasets.Dataset.from_list(rows)})
    data.save_to_disk(directory / "saved")
    return FileRows(str(directory / "saved"), split="validation")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "parquet", "datasets"])
def test_every_kind_of_source_gives_the_same_rows(load, tmp_path, kind):
    table = load([written(kind, tmp_path)])
    assert [texts(table, i) for i in range(2)] == [WHOLE, (WHOLE[0], f" Sure.{END}", WHOLE[2])]
    assert table.origin(1).endswith(":2")


def test_columns_are_renamed(load, tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        [{"question": "Is it good?", "chosen": " Yes.", "worse": " No.", "rejected_other": 1}],
    )
    assert texts(load([FileRows(path, columns={"prompt": "question", "rejected": "worse"})])) == WHOLE


def test_mixed_sources_keep_their_weights_and_origins(load, tmp_path):
    path = write(tmp_path / "x.jsonl", [PAIR])
    table = load([GeneratedRows("made", [PAIR, PAIR], 0.5), FileRows(path, weight=2.0)])
    assert table.row_weight_N.tolist() == [0.5, 0.5, 2.0]
    assert [table.origin(i) for i in range(3)] == ["made:1", "made:2", f"{path}:1"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FileRows("no/such/file.jsonl"), "no/such/file.jsonl: no such file or directory"),
        (FileRows("owner/data"), "owner/data: "),
    ],
)
def test_a_source_that_is_not_there_is_one_line(load, source, message):
    with pytest.raises(UserError) as error:
        load([source])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_missing_split_names_those_there_are(load, tmp_path):
    source = written("datasets", tmp_path)
    with pytest.raises(UserError, match="no split 'train'; it has: validation"):
        load([FileRows(source.path)])


# ---------------------------------------------------------------- row shapes


def test_implicit_prompts_are_the_common_beginning(load):
    dialogue = "\n\nHuman: Hi\n\nAssistant:"
    table = load(
        [
            {"chosen": f"{dialogue} Hello there", "rejected": f"{dialogue} Hell no"},
            {"chosen": "Is it? Yes it is", "rejected": "Is it? Yellow"},
        ]
    )
    assert texts(table, 0) == (f"{END}{dialogue}", f" Hello there{END}", f" Hell no{END}")
    assert texts(table, 1) == (f"{END}Is it?", f" Yes it is{END}", f" Yellow{END}")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_messages_without_a_chat_template_take_the_papers_turns(load, row):
    assert texts(load([row])) == (f"{END}<|user|>\nHi\n<|assistant|>\n", f"Hello{END}", f"What{END}")


def chat_tokenizer():
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% if tools %}[{{ tools[0].name }}]{% endif %}{% if loud %}!{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def test_a_chat_template_gets_tools_and_arguments_and_its_special_tokens_are_not_doubled(load):
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "tools": [{"name": "search"}]}
    for template in ("none", "chat"):
        table = load([row], tokenizer=chat_tokenizer(), template=template, template_arguments={"loud": True})
        assert texts(table) == (f"{END}[search]!<user>Hi<assistant>", f"Hello{END}\n", f"What{END}\n")
    assert table.response(0, 0).tolist().count(EOS) == 1 and table.prompt(0).tolist().count(EOS) == 1
    assert (
        texts(load([row], tokenizer=chat_tokenizer(), template="paper"))[0]
        == f"{END}<|user|>\nHi\n<|assistant|>\n"
    )


def test_a_chat_template_asked_for_but_absent_is_an_error(load):
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        load([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], template="chat")


def test_token_ids_are_taken_as_they_are(load):
    table = load(
        [{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}],
        tokenizer=None,
        add_eos=True,
        add_bos=True,
    )
    assert [x.tolist() for x in (table.prompt(0), table.response(0, 0), table.response(0, 1))] == [
        [5, 6],
        [7],
        [8, 9],
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "All of it."}, (END, f"All of it.{END}")),
        ({"prompt": "One", "completion": " two"}, (f"{END}One", f" two{END}")),
        ({"messages": [USER, GOOD]}, (f"{END}<|user|>\nHi\n<|assistant|>\n", f"Hello{END}")),
    ],
)
def test_rows_for_sft(load, row, expected):
    assert texts(load([row], kind="sft")) == expected


def test_text_without_bos_is_predicted_from_its_first_token(load):
    assert texts(load([{"text": "abc"}], kind="sft", add_bos=False)) == ("a", f"bc{END}")


# ---------------------------------------------------------------- begin, end, seam, truncation


def test_the_separator_counts_as_prompt(load):
    row = {"prompt": "Is it good?", "chosen": "Yes.", "rejected": "No."}
    assert texts(load([row], separator=" ")) == (f"{END}Is it good? ", f"Yes.{END}", f"No.{END}")


def test_end_of_text_is_there_once_and_only_if_wanted(load):
    ends = [
        load([PAIR | {"chosen": f" Yes.{END}"}], add_eos=add).response(0, 0).tolist().count(EOS)
        for add in (True, False)
    ]
    assert ends == [1, 1]
    assert load([PAIR], add_eos=False).response(0, 0).tolist().count(EOS) == 0
    assert load([PAIR | {"prompt": f"{END}Is it"}]).prompt(0).tolist().count(EOS) == 1
    assert load([PAIR], add_bos=False).prompt(0).tolist().count(EOS) == 0


def test_a_token_over_the_seam_belongs_to_the_response(load):
    tokenizer = train_bpe_tokenizer(["bc bc bc bc bc"] * 5, 258)  # 256 bytes, END, and the one merge: bc
    table = load([{"prompt": "ab", "chosen": "c", "rejected": "x"}], tokenizer=tokenizer)
    pieces = [
        tokenizer.convert_ids_to_tokens(ids.tolist())
        for ids in (table.prompt(0), table.response(0, 0), table.response(0, 1))
    ]
    assert pieces == [[END, "a"], ["bc", END], ["b", "x", END]]


def test_long_prompts_keep_their_end_and_bos_long_responses_their_start(load):
    table = load(
        [{"prompt": "abcdefgh", "chosen": "0123456789", "rejected": "98"}], max_length=10, max_prompt_length=4
    )
    assert texts(table) == (f"{END}fgh", "012345", f"98{END}")
    assert table.prompt_cut_N.tolist() == [True] and table.response_cut_NP.tolist() == [[True, False]]
    ids = load(
        [{"prompt_ids": list(range(8)), "chosen_ids": [1, 2], "rejected_ids": [3]}],
        tokenizer=None,
        max_length=10,
        max_prompt_length=4,
    )
    assert ids.prompt(0).tolist() == [4, 5, 6, 7], "ids are taken as they are: nothing is known of a BOS"


def test_characters_of_several_bytes_stay_whole_across_the_seam(load):
    table = load([{"prompt": "né", "chosen": "é", "rejected": "ü"}])
    assert texts(table) == (f"{END}né", f"é{END}", f"ü{END}")


# ---------------------------------------------------------------- per-token columns


def test_weights_by_token_and_by_span_stand_on_their_tokens(load):
    rows = [PAIR | {"chosen_weights": [0.5, 1, 2, 3, 4], "rejected_weights": [[1, 3, 0.25]]}, PAIR]
    table = load(rows)
    assert table.weights(0, 0).tolist() == [0.5, 1, 2, 3, 4, 1]  # EOS: 1
    assert table.weights(0, 1).tolist() == [1, 0.25, 0.25, 1, 1]
    assert table.weights(1, 0).tolist() == [1] * 6
    assert not load([PAIR]).has_weights


def test_weights_of_pairs_are_those_of_the_rows_and_go_into_batches(load):
    """Mixed with rows that have none, through the cache, and as cells of a CSV file."""
    rows = [PAIR | {"pair_weight": weight} for weight in (2, None, 0, 0.25, "1.5")]
    assert load([PAIR]).pair_weight_N is None
    load(rows)
    table = load([GeneratedRows("weighted", rows), GeneratedRows("plain", [PAIR])])
    assert table.pair_weight_N.tolist() == [2, 1, 0, 0.25, 1.5, 1]
    shape = Shape(200, 100, 100)
    batch = pack(table, [3, FILLER, 0, 5], shape, 16, rows=1, shared=True)
    assert batch.weight_B.tolist() == [0.25, 0, 2, 1]
    other = load([GeneratedRows("weighted", [PAIR | {"pair_weight": 3}])]).file_digests()
    assert other != load([GeneratedRows("weighted", [PAIR])]).file_digests(), "a resumed run sees it"
    nothing = load([PAIR | {"pair_weight": 0}])  # to evaluate, where every pair counts once
    with pytest.raises(UserError, match="data.train: every pair_weight is 0"):
        check_some_row_counts(nothing, "data.train")
    for kind, refused in (("aot", True), ("dpo", False)):
        objective = make_config(objective={"kind": kind}).objective
        with pytest.raises(UserError, match="rows with a pair_weight") if refused else nullcontext():
            check_pairs_can_be_weighed(table, "data.train", objective)
        check_pairs_can_be_weighed(load([PAIR | {"pair_weight": 1}]), "data.train", objective)


def test_a_resumed_run_sees_other_token_weights(load):
    weighted = [PAIR | {"chosen_weights": [[1, 3, weight]]} for weight in (0.5, 0.25)]
    one, other = (load([row]).file_digests() for row in weighted)
    assert one != other and load([weighted[0]]).file_digests() == one


def test_decisive_spans_and_chances_stand_on_the_tokens_they_touch(load):
    words = make_word_tokenizer(["it", "was", "fine", "bad"])
    row = {
        "prompt": "it was",
        "chosen": " fine it",
        "rejected": " bad",
        "chosen_decisive": [[1, 5]],
        "rejected_decisive": [[1, 4]],
        "chosen_chance": [[1, 5, 0.5], [6, 8, 0.25]],
        "rejected_chance": [[1, 4, 0.5]],
    }
    table = load([row], tokenizer=words)
    assert table.decisive(0, 0).tolist() == [True, False, False] and table.decisive(0, 1).tolist() == [
        True,
        False,
    ]
    assert table.chance(0, 0).tolist() == [0.5, 0.25, 0.0]
    unknown = load([row, {"prompt": "it was", "chosen": " fine", "rejected": " bad"}], tokenizer=words)
    assert not unknown.has_decisive, "False on a row that says nothing would be wrong"


# ---------------------------------------------------------------- bad rows

BAD_ROWS = {
    b'{"prompt": "a", "chosen": "b"}': "no rejected; the row has: prompt, chosen",
    b'{"prompt": "a", "chosen": "b", "rejected": " "}': "rejected is empty",
    b'{"prompt": "a", "chosen": "b", "rejected": "b"}': "chosen and rejected are the same",
    b'{"prompt": "a", "chosen": "\xff", "rejected": "b"}': "invalid UTF-8 (byte 0xff",
    b'{"prompt": "a", "chosen"': "no JSON",
    b"[1, 2]": "expected a JSON object, got list",
    b'{"prompt_ids": [1], "chosen_ids": [999], "rejected_ids": [2]}': (
        "token id 999 is outside the model's vocabulary of 300"
    ),
    b'{"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [2]}': "chosen_ids is empty",
    b'{"prompt": "a", "chosen": "b", "rejected": 3}': "expected text or lists of messages",
    b'{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_weights": [1, 2, 3]}': (
        "3 weights for a response of 1 tokens"
    ),
    b'{"prompt": "a", "chosen": "b", "rejected": "c", "pair_weight": -1}': (
        "pair_weight must be a finite number, 0 or above, got -1"
    ),
    b'{"prompt": "a", "chosen": "b", "rejected": "c", "pair_weight": NaN}': "pair_weight must be a finite",
    b'{"prompt": "a", "chosen": "b", "rejected": "c", "pair_weight": true}': "pair_weight must be a finite",
    b'{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_weights": [1, null]}': (
        "chosen_weights must be finite numbers"
    ),
}


@pytest.mark.parametrize(
    ("line", "message"), BAD_ROWS.items(), ids=[message[:30] for message in BAD_ROWS.values()]
)
def test_a_bad_row_is_an_error_with_file_and_line(load, tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        load([FileRows(str(path))], vocab_size=300)
    assert str(error.value).startswith(f"{path}:2: {message}") and "\n" not in str(error.value)


def test_skipped_rows_are_counted_and_listed_again_from_the_cache(load, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([*BAD_ROWS, json.dumps(PAIR).encode()]))
    for _ in range(2):
        table = load([FileRows(str(path))], vocab_size=300, on_bad_row="skip")
        assert texts(table) == WHOLE and table.origin(0) == f"{path}:{len(BAD_ROWS) + 1}"
        listed = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        assert [(row["file"], row["line"]) for row in listed] == [
            (str(path), n + 1) for n in range(len(BAD_ROWS))
        ]
        assert all(row["problem"].startswith(message) for row, message in zip(listed, BAD_ROWS.values()))
        assert f"{len(BAD_ROWS)} of {len(BAD_ROWS) + 1} rows are bad and left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"and 13 more bad rows"):
        load([FileRows(str(path))], vocab_size=300)


def test_no_row_left_is_an_error(load):
    with pytest.raises(UserError, match="no usable row; all 1 are listed in"):
        load([{"prompt": "a"}], on_bad_row="skip")


def test_pairs_that_differ_only_past_the_cut_are_bad(load):
    with pytest.raises(UserError, match="the same within the first 3 tokens"):
        load([{"prompt": "a", "chosen": "same one", "rejected": "same two"}], max_length=5)


def test_text_needs_a_tokenizer_and_the_tokens_it_is_asked_for(load):
    with pytest.raises(UserError, match="there is no tokenizer: set tokenizer.kind"):
        load([PAIR], tokenizer=None)
    bare = make_byte_tokenizer()
    bare.eos_token = None
    with pytest.raises(UserError, match="data.add_eos: the tokenizer has no EOS token"):
        load([PAIR], tokenizer=bare)


def test_words_that_a_tokenizer_does_not_know_are_bad_rows(load):
    unknown = "'c' is none of them; .* set tokenizer.kind=bpe, or a policy.path"
    with pytest.raises(UserError, match=f"rows:2: the tokenizer cannot encode it .*{unknown}"):
        load(
            [
                {"prompt": "a", "chosen": " b", "rejected": " a"},
                {"prompt": "a", "chosen": " c", "rejected": " a"},
            ],
            tokenizer=make_word_tokenizer(["a", "b"]),
        )


# ---------------------------------------------------------------- cache


@pytest.fixture
def counted(monkeypatch):
    """How many rows were tokenised, not read from the cache."""
    from sparsepo_jax.data import tokenised as module

    tokenize = module.tokenize
    count = []

    def counting(examples, *arguments, **settings):
        count.append(len(examples))
        return tokenize(examples, *arguments, **settings)

    monkeypatch.setattr(module, "tokenize", counting)
    return lambda: sum(count)


def test_rows_are_tokenised_once_by_what_matters_and_nothing_else(load, tmp_path, counted):
    path = write(tmp_path / "a.jsonl", [PAIR])
    load([FileRows(path)])
    assert counted() == 1
    again = load([FileRows(path)])
    moved = load(
        [FileRows(write(tmp_path / "b.jsonl", [PAIR]), weight=3.0)], bad_rows_path=tmp_path / "elsewhere"
    )
    assert counted() == 1
    assert texts(again) == texts(moved) == WHOLE
    assert moved.origin(0).endswith("b.jsonl:1") and moved.row_weight_N.tolist() == [3.0]
    changes = [
        dict(max_length=9),
        dict(max_prompt_length=5),
        dict(separator=" "),
        dict(add_eos=False),
        dict(add_bos=False),
        dict(vocab_size=300),
        dict(tokenizer=chat_tokenizer()),
        dict(tokenizer=train_bpe_tokenizer(["good good"], 258)),
        dict(template="paper"),
    ]
    for number, change in enumerate(changes):
        load([FileRows(path)], **change)
        assert counted() == 2 + number, change
    load([FileRows(write(tmp_path / "a.jsonl", [PAIR | {"chosen": " Sure."}]))])
    assert counted() == 2 + len(changes)


@pytest.mark.parametrize("part", ["code", "package"])
def test_what_other_code_has_tokenised_is_not_read(load, tmp_path, counted, monkeypatch, part):
    code = tmp_path / "package" / "data"
    code.mkdir(parents=True)
    for number, (text, release) in enumerate(
        [("a", "1"), ("a", "1"), ("b", "1") if part == "code" else ("a", "2")]
    ):
        (code / "tokenize.py").write_text(text)
        monkeypatch.setattr(cache, "PACKAGE", code.parent)
        monkeypatch.setattr(cache, "version", lambda name, release=release: release)
        cache.code_digest.cache_clear()
        load([FileRows(write(tmp_path / "a.jsonl", [PAIR]))])
        assert counted() == (2 if number == 2 else 1)
    cache.code_digest.cache_clear()


def test_a_torn_cache_file_is_made_anew(load, tmp_path, counted):
    load([PAIR])
    (kept,) = (tmp_path / "cache").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert texts(load([PAIR])) == WHOLE and counted() == 2
    assert texts(load([PAIR])) == WHOLE and counted() == 2


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, monkeypatch):
    """As in a container whose user is a number alone."""

    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match="no home directory .* set HOME or XDG_CACHE_HOME"):
        cache_directory("tokens")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory("tokens") == tmp_path / "sparsepo_jax" / "tokens"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/kept")  # as a file of settings has it that no shell reads
    assert cache_directory("tokens") == tmp_path / "kept" / "sparsepo_jax" / "tokens"


def test_the_cache_gives_back_every_column(load):
    row = PAIR | {
        "chosen_weights": [1, 2, 3, 4, 5],
        "chosen_decisive": [[1, 4]],
        "rejected_decisive": [],
        "chosen_chance": [[1, 4, 0.3]],
        "rejected_chance": [],
        "pair_weight": 2,
    }
    first, second = (
        load([row], max_length=20, max_prompt_length=6),
        load([row], max_length=20, max_prompt_length=6),
    )
    ours, theirs = first.arrays(), second.arrays()
    assert ours.keys() == theirs.keys() >= {"all_weights", "all_decisive", "all_chance", "pair_weight_N"}
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


# ---------------------------------------------------------------- holdout, tokenizers, inspect


def test_a_holdout_keeps_prompts_apart_and_does_not_move(load):
    rows = [PAIR | {"prompt": f"Prompt {n % 40}", "chosen": f" {n}"} for n in range(120)]
    rest, held = split_holdout(load(rows), share=0.25, seed=0)
    prompts = [{BYTES.decode(table.prompt(i)) for i in range(len(table))} for table in (rest, held)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 40 and len(rest) + len(held) == 120
    assert 0.1 < len(prompts[1]) / 40 < 0.4
    fewer = split_holdout(load(rows[:60]), share=0.25, seed=0)[1]
    assert {BYTES.decode(fewer.prompt(i)) for i in range(len(fewer))} == prompts[1]
    assert {BYTES.decode(t.prompt(0)) for t in split_holdout(load(rows), share=0.25, seed=1)} != {
        BYTES.decode(rest.prompt(0)),
        BYTES.decode(held.prompt(0)),
    }
    with pytest.raises(UserError, match="leaves none of 1 prompts for evaluation"):
        split_holdout(load([PAIR]), share=0.001, seed=0)


def test_a_number_of_prompts_is_held_out_with_all_their_rows(load):
    """Seven of 40, which a larger number holds out, too; so does the share that holds out as many or more."""
    table = load([PAIR | {"prompt": f"Prompt {n % 40}", "chosen": f" {n}"} for n in range(120)])

    def held_by(**holdout):
        rest, held = split_holdout(table, seed=0, **holdout)
        prompts = [{BYTES.decode(part.prompt(i)) for i in range(len(part))} for part in (rest, held)]
        assert not prompts[0] & prompts[1] and len(rest) + len(held) == 120
        return prompts[1]

    seven = held_by(prompts=7)
    assert len(seven) == 7 and seven < held_by(prompts=8) and seven <= held_by(share=0.5)
    for number, side in ((40, "training"), (99, "training")):
        with pytest.raises(
            UserError, match=f"prompts {number} leaves none of 40 prompts for {side}: hold out f"
        ):
            split_holdout(table, prompts=number, seed=0)


@pytest.mark.parametrize(
    "make",
    [make_byte_tokenizer, lambda: train_bpe_tokenizer(["some text to learn", "some more text"], 280)],
    ids=["bytes", "bpe"],
)
def test_tokenizers_made_here_take_any_text_and_come_back_from_disk(make, tmp_path):
    tokenizer = make()
    sample = "Ünïcode  two spaces\n\ttab 中文 🙂"
    assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again(sample)["input_ids"] == tokenizer(sample)["input_ids"] and len(again) == len(tokenizer)


def test_a_bpe_learns_from_all_texts_of_its_sources(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "lalala"}, {"prompt": [USER], "completion": "lolo"}])
    assert list(read_texts([FileRows(path)], on_bad_row="error")) == ["lalala", "Hi", "lolo"]
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(UserError, match="b.jsonl:1: no JSON"):
        list(read_texts([FileRows(str(tmp_path / "b.jsonl"))], on_bad_row="error"))


def test_a_directory_without_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        load_tokenizer(str(tmp_path))
    assert "no Hugging Face tokenizer" in str(error.value) and "\n" not in str(error.value)


def test_a_sentencepiece_without_its_package_says_which(tmp_path, monkeypatch):
    """transformers asks for tiktoken then, which does not read it."""
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_with_code_of_its_own_says_what_to_do(tmp_path):
    make_byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps(config | {"auto_map": {"AutoTokenizer": ["a.B", None]}, "tokenizer_class": "B"})
    )
    with pytest.raises(
        UserError, match="does not run here: .* take auto_map and tokenizer_class out of that"
    ):
        load_tokenizer(str(tmp_path))
    file.write_text(json.dumps({name: x for name, x in config.items() if name != "tokenizer_class"}))
    assert len(load_tokenizer(str(tmp_path))) == 257


def test_a_tokenizer_of_mistral_alone_is_found(tmp_path):
    """As beside some of its models, which have no other file."""
    tokens = [{"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode()} for n in range(256)]
    special = [{"rank": n, "token_str": text} for n, text in enumerate(["<unk>", "<s>", "</s>"])]
    sizes = {"pattern": ".", "num_vocab_tokens": 256, "default_vocab_size": 259}
    config = sizes | {"default_num_special_tokens": 3, "version": "v3"}
    content = {"config": config, "vocab": tokens, "special_tokens": special}
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    assert has_tokenizer(tmp_path) and len(load_tokenizer(str(tmp_path))) == 259


def test_inspect_marks_prompt_response_cuts_weights_and_decisive_tokens(load):
    words = make_word_tokenizer(["it", "was", "fine", "bad", "very"])
    row = {
        "prompt": "it was it was",
        "chosen": "very fine it was",
        "rejected": "bad",
        "chosen_decisive": [[5, 9]],
        "rejected_decisive": [],
        "chosen_weights": [[0, 4, 0.5]],
    }
    shown = format_rows(
        load([row], tokenizer=words, separator=" ", max_length=6, max_prompt_length=3), words, [0]
    ).splitlines()
    assert shown[1:] == [
        "rows:1",
        f"  prompt        3 tokens  …│{END}│ it│ was",
        "  chosen        3 tokens  very{0.5}│* fine*│ it│…",
        f"  rejected      2 tokens  bad│ {END}",
    ]
    ids = load([{"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}], tokenizer=None)
    assert "  chosen        2 tokens  2 │3 " in format_rows(ids, None, [0])
