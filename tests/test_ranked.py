"""Rows with several answers, brought to pairs by a rule."""

import json

import pytest

from helpers.loading import Load, texts
from sparsepo_jax.config.schema.data import FileSource
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.load import read_texts
from sparsepo_jax.data.ranked import Ranking
from sparsepo_jax.data.sources import Exchanged, GeneratedRows
from sparsepo_jax.data.tokenizers import END
from sparsepo_jax.run.row_counts import rows_of

ROW = {"prompt": "Q", "responses": [" a", " b", " c", " d"], "scores": [0.9, 0.2, 0.6, 0.6]}


@pytest.fixture
def load(tmp_path):
    return Load(tmp_path)


def pairs(table):
    return [texts(table, i)[1][1] + texts(table, i)[2][1] for i in range(len(table))]


@pytest.mark.parametrize(
    ("rule", "margin", "expected", "ties"),
    [
        ("best_worst", 0.0, ["ab"], 0),
        ("best_others", 0.0, ["ab", "ac", "ad"], 0),
        ("all", 0.0, ["ab", "ac", "ad", "cb", "db"], 1),
        ("all", 0.35, ["ab", "cb", "db"], 3),
        ("best_others", 0.35, ["ab"], 2),
    ],
)
def test_a_rule_makes_the_pairs_of_a_row_and_counts_ties(load, rule, margin, expected, ties):
    table = load([ROW], ranking=Ranking(rule, margin))
    assert pairs(table) == expected
    assert {table.origin(i) for i in range(len(table))} == {"rows:1"}
    assert len(set(table.prompt_key_N)) == 1, "held out together"
    assert load.lines == (
        [
            f"data: of the pairs of ranked answers {ties} are left out (data.ranked.rule={rule}): their "
            f"scores do not differ by more than data.ranked.margin={margin:g}, or the answers are the same"
        ]
        if ties
        else []
    )
    again = load([ROW], ranking=Ranking(rule, margin))
    assert again.digest() == table.digest() and load.lines[: len(load.lines) // 2] * 2 == load.lines


CHAT = [{"role": "user", "content": "Q"}]
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Q",
    "models": ["x", "y"],
    "completions": [
        {"model": "x", "response": "a", "overall_score": 7.5, "fine-grained_score": 4.0, "critique": "Good."},
        {"model": "y", "response": "b", "overall_score": 2.0, "fine-grained_score": 4.5, "critique": "Bad."},
    ],
    "correct_answers": ["None"],
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ULTRAFEEDBACK, "a"),
        (ULTRAFEEDBACK | {"completions": ULTRAFEEDBACK["completions"][::-1]}, "a"),
        ({"prompt": CHAT, "responses": ["a", "b"]}, "a"),
        ({"prompt": CHAT, "responses": [[{"role": "assistant", "content": x}] for x in "ab"]}, "a"),
        ({"prompt": CHAT, "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}]}, "a"),
        ({"instruction": "Q", "generations": ["b", "a"], "ratings": ["3", "4.5"]}, "a"),
        ({"prompt": CHAT, "responses": '["b", "a"]', "rewards": "[-1, 2]"}, "a"),
        ({"prompt": CHAT, "responses": ["b", "a"], "ranks": [2, 1], "chosen": None}, "a"),
    ],
)
def test_published_forms_are_one_pair(load, row, expected):
    table = load([row])
    prompt, chosen, rejected = texts(table)
    assert "Q" in prompt and (chosen, rejected) == (f"a{END}", f"b{END}")
    other = load([row], ranking=Ranking(score="fine-grained_score")) if row.get("source") else None
    assert other is None or texts(other)[1] == f"b{END}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Q", "completions": [" a", " b"]},
            "completions are several answers without score or scores",
        ),
        ({"prompt": "Q", "responses": [" a", " b"], "scores": [1]}, "scores must be a list of 2 numbers"),
        (
            {"prompt": "Q", "answers": [{"text": "a", "score": "N/A"}, {"text": "b", "score": 1}]},
            "score of answers must be finite numbers, got 'N/A'",
        ),
        ({"prompt": "Q", "responses": [" a"]}, "responses has one answer, and a pair needs two"),
        (
            {"prompt": "Q", "responses": [{"model": "x"}, " b"]},
            "an answer of responses has no response, answer",
        ),
        ({"prompt": "Q", "responses": [1, 2]}, "an answer of responses must be text or messages, got int"),
        (ROW | {"chosen_weights": [1, 2]}, "chosen_weights beside responses"),
        ({"prompt": "Q", "completions": ["a", "b"], "labels": [True, False]}, "no chosen, rejected"),
    ],
)
def test_what_is_no_ranking_is_one_line(load, row, message):
    with pytest.raises(UserError, match=f"rows:1: {message}"):
        load([row])


def test_an_order_is_a_rank_only_where_no_row_has_scores_and_is_said(load):
    """In whichever order they stand."""
    bare = {"prompt": "Q", "responses": [" a", " b"], "scores": None}
    for rows, line in (([bare, ROW], 1), ([ROW, bare], 2)):
        with pytest.raises(UserError, match=f"rows:{line}: responses have no scores, and those of other"):
            load(rows)
    assert pairs(load([bare])) == ["ab"]
    assert load.lines == [
        "data: 1 rows of responses have no scores: they are read as ranked, the best first "
        "(data.ranked.score names a column of scores)"
    ]


def test_ties_alone_are_named(load):
    with pytest.raises(UserError, match=r"no usable row: of the pairs of ranked answers 1 .*margin=0"):
        load([ROW | {"scores": [1, 1, 1, 1]}])


def test_equal_texts_and_other_columns(load):
    table = load([ROW | {"responses": [" a", " a"], "scores": [1, 0]}, ROW | {"pair_weight": 3}])
    assert pairs(table) == ["ab"] and table.pair_weight_N.tolist() == [3]
    assert "of the pairs of ranked answers 1 are left out" in load.lines[0]
    assert sorted(read_texts([GeneratedRows("rows", [ROW])], on_bad_row="error")) == [
        " a",
        " b",
        " c",
        " d",
        "Q",
    ]


def test_how_many_pairs_a_file_makes_is_not_known_before_it_is_read(tmp_path):
    path = tmp_path / "ranked.jsonl"
    path.write_text(json.dumps(ROW))
    mistakes = []
    assert rows_of([FileSource(path=str(path))], "data.train", mistakes).once.number is None and not mistakes


def test_answers_cannot_be_exchanged_before_they_are_pairs(load):
    with pytest.raises(UserError, match="responses are ranked answers, and only pairs can"):
        load([Exchanged(GeneratedRows("rows", [ROW]))])
