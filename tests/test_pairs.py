"""The stage pairs: prompts read, answers scored, pairs chosen, and the same file whether it was interrupted
or not."""

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import lines_of, run, write_config
from sparsepo_jax.build.scorer import make_scorer
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.labelled import Labelled, read_labelled
from sparsepo_jax.data.load import load_table
from sparsepo_jax.data.preferences import choose_pairs
from sparsepo_jax.data.sources import FileRows, FirstWords, GeneratedRows
from sparsepo_jax.data.tokenizers import make_byte_tokenizer, train_bpe_tokenizer
from sparsepo_jax.main import RUN_AGAIN, main
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.scoring.classifier import load_classifier, save_classifier, train_classifier
from sparsepo_jax.scoring.scorers import function_scorer, hf_scorer, score_all, unit_test_scorer

# ---------------------------------------------------------------- which pairs


@pytest.mark.parametrize(
    ("rule", "settings", "expected"),
    [
        ("all", {}, [(0, 1), (0, 2), (0, 3), (2, 1), (2, 3)]),
        ("all", {"margin": 3}, [(0, 1), (0, 3), (2, 1), (2, 3)]),
        ("all", {"margin": 4}, [(0, 1), (0, 3)]),
        ("all", {"threshold": 7}, [(0, 1), (0, 2), (0, 3)]),
        ("all", {"threshold": 9}, []),
        ("all", {"threshold": 6}, [(0, 1), (0, 2), (0, 3)]),
        ("all", {"limit": 2}, [(0, 1), (0, 3)]),
        ("best_worst", {}, [(0, 1)]),
        ("best_worst", {"margin": 7}, []),
        ("first_two", {}, [(0, 1)]),
    ],
)
def test_rules_by_hand(rule, settings, expected):
    assert choose_pairs([9.0, 2.0, 6.0, 2.0], rule, **settings) == expected


@given(st.lists(st.integers(0, 4).map(float), max_size=6), st.integers(0, 2), st.none() | st.integers(0, 4))
def test_all_is_every_ordered_pair_that_differs_enough(scores, margin, threshold):
    wanted = {
        (a, b)
        for a in range(len(scores))
        for b in range(len(scores))
        if scores[a] - scores[b] > margin and (threshold is None or scores[a] > threshold >= scores[b])
    }
    chosen = choose_pairs(scores, "all", margin=margin, threshold=threshold)
    assert set(chosen) == wanted and len(chosen) == len(wanted)
    assert set(choose_pairs(scores, "best_worst", margin=margin, threshold=threshold)) <= wanted
    assert [pair for pair in chosen if set(pair) == {0, 1}] == choose_pairs(
        scores, "first_two", margin=margin, threshold=threshold
    )


# ---------------------------------------------------------------- prompts


def prompts_of(rows, tmp_path, tokenizer, words=None, separator=""):
    source = GeneratedRows("rows", rows)
    return load_table(
        [source if words is None else FirstWords(source, "prompt", words)],
        kind="prompts",
        tokenizer=tokenizer,
        vocab_size=None,
        max_length=64,
        max_prompt_length=32,
        separator=separator,
        template="none",
        template_arguments={},
        add_bos=False,
        add_eos=True,
        on_bad_row="error",
        bad_rows_path=tmp_path / "bad.jsonl",
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_dialogue_with_its_last_answer_is_no_prompt(name, tmp_path):
    """Kills: a second answer of the assistant's behind the first, which conversations once asked for."""
    dialogue = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
    assert len(prompts_of([{name: dialogue[:1]}], tmp_path, make_byte_tokenizer())) == 1
    with pytest.raises(UserError, match=f"rows:1: {name} end with a turn of the assistant"):
        prompts_of([{name: dialogue}], tmp_path, make_byte_tokenizer())


def test_a_prompt_may_be_the_first_words_and_its_row_is_kept(tmp_path):
    rows = [
        {"prompt": "  A film\nof two  parts , long", "label": 1},
        {"prompt": "Short", "tests": ["assert f(1)"]},
        {"prompt": "A film\nof fun"},
    ]
    for _ in range(2):  # tokenised, and from the cache
        table = prompts_of(rows, tmp_path, make_byte_tokenizer(), words=3)
        assert [table.content(i) for i in range(3)] == [
            {"prompt": "A film\nof", "label": 1},
            {"prompt": "Short", "tests": ["assert f(1)"]},
            {"prompt": "A film\nof"},
        ]
        assert (
            bytes(make_byte_tokenizer().decode(table.prompt(0)), "ascii") == b"A film\nof"
            and table.responses_per_row == 0
        )
    first = table.distinct_prompts(None)
    assert [first.origin(i) for i in range(len(first))] == ["rows:1", "rows:2"] and first.content(1) == rows[
        1
    ]
    assert prompts_of(rows, tmp_path, make_byte_tokenizer(), words=2).content(0)["prompt"] == "A film"
    with pytest.raises(UserError, match="rows:1: prompt: only text has first words"):
        prompts_of(
            [{"prompt": [{"role": "user", "content": "Hi"}]}], tmp_path, make_byte_tokenizer(), words=3
        )


def test_rows_of_another_content_are_another_table(tmp_path):
    digests = [
        prompts_of([{"prompt": "Add", "test": test}], tmp_path, make_byte_tokenizer()).digest()
        for test in ("a", "b", "a")
    ]
    assert digests[0] == digests[2] != digests[1]


def test_a_last_space_is_left_to_the_response_where_words_begin_with_it(tmp_path):
    """As the prompt of a pair is: else the policy would answer after a token that it never saw in that
    place."""
    bpe = train_bpe_tokenizer(["a film a film an ant and a film"] * 3, 280)
    for tokenizer, left in ((bpe, "a film"), (make_byte_tokenizer(), "a film ")):
        alone = prompts_of([{"prompt": "a film"}], tmp_path, tokenizer, separator=" ")
        assert tokenizer.decode(alone.prompt(0)) == left
        pairs = load_table(
            [GeneratedRows("pairs", [{"prompt": "a film", "chosen": "and", "rejected": "ant"}])],
            kind="pairs",
            tokenizer=tokenizer,
            vocab_size=None,
            max_length=64,
            max_prompt_length=32,
            separator=" ",
            template="none",
            template_arguments={},
            add_bos=False,
            add_eos=True,
            on_bad_row="error",
            bad_rows_path=tmp_path / "bad.jsonl",
            cache_dir=str(tmp_path / "cache"),
        )
        np.testing.assert_array_equal(alone.prompt(0), pairs.prompt(0))


def test_messages_and_token_ids_are_prompts_too(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": "Hi"}], "n": 1},
        {"prompt_ids": [3, 4, 5], "n": 2},
        {"prompt": "Hi"},
    ]
    table, tokenizer = prompts_of(rows, tmp_path, make_byte_tokenizer()), make_byte_tokenizer()
    assert tokenizer.decode(table.prompt(0)) == "<|user|>\nHi\n<|assistant|>\n" and table.prompt(
        1
    ).tolist() == [3, 4, 5]
    assert len(table.distinct_prompts(None)) == 3 and table.content(0) == rows[0]
    with pytest.raises(UserError, match="rows:1: no prompt; the row has: text"):
        prompts_of([{"text": "a"}], tmp_path, make_byte_tokenizer())


# ---------------------------------------------------------------- scorers


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Writes a module that a run can import."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, name="my_scores"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (
            "import absent_module",
            "my_scores:f",
            "importing my_scores raised ModuleNotFoundError: No module named 'absent_module'",
        ),
        ("g = 1", "my_scores:g", "has no function g"),
        (
            "def f(prompts, completions, rows):\n    return [1 / 0]",
            "my_scores:f",
            r"my_scores:f raised ZeroDivisionError: division by zero \(.*my_scores.py:2\)",
        ),
        ("def f(prompts, completions):\n    return [1]", "my_scores:f", "my_scores:f raised TypeError"),
        (
            "def f(prompts, completions, rows):\n    return [1]",
            "my_scores:f",
            "a score for each of 2 completions, got 1",
        ),
        (
            "def f(prompts, completions, rows):\n    return ['good', 2]",
            "my_scores:f",
            "expected a list of numbers, got",
        ),
        (
            "def f(prompts, completions, rows):\n    raise SystemExit(3)",
            "my_scores:f",
            r"my_scores:f raised SystemExit: 3 \(.*my_scores.py:2\)",
        ),
        (
            "def f(prompts, completions, rows):\n    return None",
            "my_scores:f",
            "expected a list of numbers, got 'None'",
        ),
        (
            "def f(prompts, completions, rows):\n    return [1, float('nan')]",
            "my_scores:f",
            "expected finite scores, got nan for the completion 'd'",
        ),
    ],
)
def test_mistakes_of_a_function_are_one_line(module, text, function, message):
    module(text)
    with pytest.raises(UserError, match=message) as caught:
        score_all(function_scorer(function), ["a", "b"], ["c", "d"], [{}, {}])
    assert "\n" not in str(caught.value)


def test_a_function_is_found_in_the_current_directory_however_the_program_was_started(tmp_path, monkeypatch):
    """Kills: no module under the command `sparsepo`, whose sys.path begins with the directory of programs."""
    (tmp_path / "only_here.py").write_text("def f(prompts, completions, rows):\n    return [3.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    assert score_all(function_scorer("only_here:f"), ["a"], ["b"], [{}]) == [3.0]


def test_a_function_that_cannot_be_found_is_told_before_any_training(tmp_path, capsys):
    settings = PAIRS | {"stages": ["sft", "pairs"], "scorer": {"kind": "function", "function": "not_here:f"}}
    settings["data"] = PAIRS["data"] | {"sft": [{"kind": "reviews", "rows": 8, "seed": 1}]}
    assert main(["--config", str(write_config(tmp_path, **settings))]) == 1
    said, error = capsys.readouterr()
    assert "not_here:f: importing not_here raised ModuleNotFoundError" in error and error.count("\n") == 1
    assert "sft" not in said and not (tmp_path / "run").exists()


def test_a_function_is_given_prompts_completions_and_rows(module):
    module(
        "import numpy\ndef f(prompts, completions, rows):\n    return numpy.array([len(p) + 10 * len(c) "
        "+ row['n'] for p, c, row in zip(prompts, completions, rows)])"
    )
    assert score_all(function_scorer("my_scores:f"), ["a", "bb"], ["c", ""], [{"n": 100}, {"n": 200}]) == [
        111.0,
        202.0,
    ]


REVIEWS = [
    "good great film",
    "great fun good",
    "fun great",
    "dull bad film",
    "bad boring dull",
    "boring dull",
] * 3
LABELLED = Labelled(REVIEWS, np.tile([True] * 3 + [False] * 3, 3), np.ones(18))


def test_a_classifier_is_kept_without_pickle_and_loads_equal(tmp_path):
    classifier = train_classifier(LABELLED, max_features=50, l2=0.1)
    assert (
        classifier.accuracy(LABELLED) == 1.0
        and len(classifier.words) <= 50
        and "great fun" in classifier.words
    )
    save_classifier(tmp_path / "kept", classifier, {"rows": 18, "accuracy": 1.0, "test_accuracy": None})
    again, about = load_classifier(tmp_path / "kept")
    texts = ["great film", "bad film", "nothing that was seen"]
    np.testing.assert_array_equal(classifier.probability(texts), again.probability(texts))
    assert about["rows"] == 18 and again.probability(texts)[0] > 0.6 > 0.4 > again.probability(texts)[1]
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".json", ".safetensors"}


def test_the_classifier_is_scikit_learns_own_and_weights_count(tmp_path):
    """Kills: coefficients without idf, an intercept forgotten, weights of sources ignored."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = Labelled([*REVIEWS, "film"], np.array([*LABELLED.positive_N, True]), np.array([1.0] * 18 + [9.0]))
    theirs = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=2.0, max_iter=1000)
    )
    theirs.fit(rows.texts, rows.positive_N, logisticregression__sample_weight=rows.weight_N)
    texts = ["great film film film", "dull", "unseen"]
    np.testing.assert_allclose(
        train_classifier(rows, max_features=999, l2=0.5).probability(texts),
        theirs.predict_proba(texts)[:, 1],
        rtol=1e-12,
    )


def test_labelled_rows_are_read_and_mistakes_named():
    rows = [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg", "id": 3}]
    labelled = read_labelled([GeneratedRows("rows", rows, 2.0)], "pos", on_bad_row="error")
    assert (
        labelled.texts == ["a", "b"]
        and labelled.positive_N.tolist() == [True, False]
        and labelled.weight_N.tolist() == [2.0, 2.0]
    )
    with pytest.raises(
        UserError,
        match="rows: expected rows with the label 1 and rows with another one, found the labels "
        "'neg', 'pos': set scorer.positive",
    ):
        read_labelled([GeneratedRows("rows", rows)], 1, on_bad_row="error")
    with pytest.raises(UserError, match="rows:3: expected a text in the column text"):
        read_labelled([GeneratedRows("rows", [*rows, {"label": 1}])], "pos", on_bad_row="error")
    assert (
        len(read_labelled([GeneratedRows("rows", [*rows, {"label": 1}])], "pos", on_bad_row="skip").texts)
        == 2
    )


@pytest.mark.parametrize(
    ("labels", "positive", "found"),
    [
        ([True, False], "true", [True, False]),
        ([True, False], "false", [False, True]),
        ([True, False], "1", [True, False]),  # the default
        (["TRUE", "False"], "true", [True, False]),  # cells of a spreadsheet
        ([1, 0], "true", "expected rows with the label True .* found the labels 0, 1: set scorer.positive"),
        ([1, 2], "false", "expected rows with the label False .* found the labels 1, 2"),
        ([0, 1], "1", [False, True]),
    ],
)
def test_truth_values_are_labels_of_their_own(tmp_path, labels, positive, found):
    """Kills: `positive: true` that is the number 1."""
    scorer = f"scorer={{kind: classifier, path: x, positive: {positive}}}"
    config, _ = load_config(write_config(tmp_path), [scorer])
    rows = [{"text": "a", "label": label} for label in labels]
    read = functools.partial(
        read_labelled, [GeneratedRows("rows", rows)], config.scorer.positive, on_bad_row="error"
    )
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            read()
    else:
        assert read().positive_N.tolist() == found


def test_a_label_is_called_by_the_name_that_datasets_gives_its_number(tmp_path):
    """In Parquet, a directory that `datasets` has written, and under another name of the column."""
    import datasets

    kinds = {"text": datasets.Value("string"), "sentiment": datasets.ClassLabel(names=["neg", "pos"])}
    columns = {"text": ["a", "b", "c"], "sentiment": [1, 0, -1]}  # -1: no label
    data = datasets.Dataset.from_dict(columns, datasets.Features(kinds))
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    for path in ("rows.parquet", "saved"):
        source = FileRows(str(tmp_path / path), columns={"label": "sentiment"})
        for positive, found in (("pos", [True, False, False]), ("neg", [False, True, False])):
            assert read_labelled([source], positive, on_bad_row="error").positive_N.tolist() == found
        assert read_labelled([source], 1, on_bad_row="error").positive_N.tolist() == [True, False, False]
        with pytest.raises(UserError, match=r"label 'good' .* found the labels -1, 0 \(neg\), 1 \(pos\)"):
            read_labelled([source], "good", on_bad_row="error")


@pytest.mark.parametrize(
    ("package", "make", "message"),
    [
        (
            "sklearn.feature_extraction.text",
            lambda: train_classifier(LABELLED, max_features=9, l2=1.0),
            r"needs scikit-learn: install sparsepo_jax\[reward\]",
        ),
        ("torch", lambda: hf_scorer("x", label=None, batch_size=1, device="cpu"), "needs torch"),
    ],
)
def test_a_missing_package_is_one_line(monkeypatch, package, make, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Tiny random classifiers: of three labels, of one output, and a model without a head."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model

    directory = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    shape = {
        "vocab_size": 257,
        "n_positions": 24,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "initializer_range": 0.3,
    }
    names = {0: "bad", 1: "fair", 2: "good"}
    GPT2ForSequenceClassification(
        GPT2Config(**shape, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()})
    ).save_pretrained(directory / "three")
    GPT2ForSequenceClassification(GPT2Config(**shape, num_labels=1)).save_pretrained(directory / "one")
    GPT2Model(GPT2Config(**shape)).save_pretrained(directory / "none")
    for path in directory.iterdir():
        make_byte_tokenizer().save_pretrained(path)
    return directory


def test_a_hugging_face_classifier_gives_the_probability_of_a_label(checkpoints):
    """One text at a time and in padded batches, by name and by number; a text longer than the model is
    cut."""
    import torch
    from transformers import AutoModelForSequenceClassification

    texts, tokenizer = [("ab", "c"), ("a", "long answer"), ("x", "y" * 40)], make_byte_tokenizer()
    prompts, completions = zip(*texts)
    for name, label, column in (("three", "good", 2), ("three", 1, 1), ("one", None, None)):
        model = AutoModelForSequenceClassification.from_pretrained(checkpoints / name)
        logits = [model(torch.tensor([tokenizer.encode(p + c)[:24]])).logits[0] for p, c in texts]
        expected = [(x[0] if column is None else x.softmax(-1)[column]).item() for x in logits]
        for size in (1, 2, 32):
            scores = hf_scorer(str(checkpoints / name), label=label, batch_size=size, device="cpu")(
                list(prompts), list(completions), [{}] * 3
            )
            np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("three", None, r"has the labels 0 \(bad\), 1 \(fair\), 2 \(good\): choose"),
        ("three", "great", "has no label 'great', only 0"),
        ("three", 3, "has no label 3"),
        ("one", 0, "has one output"),
        ("none", None, "is no trained sequence classifier: it has no score.weight"),
        ("absent", None, "no sequence classifier to be had there"),
    ],
)
def test_a_checkpoint_that_cannot_score_is_one_line(checkpoints, name, label, message):
    with pytest.raises(UserError, match=message):
        hf_scorer(str(checkpoints / name), label=label, batch_size=2, device="cpu")


def test_unit_tests_score_one_or_nought(monkeypatch):
    """MBPP's and HumanEval's columns, in the sandbox; the limits reach it."""
    from sparsepo_jax.sandbox import parent as sandbox

    asked, run_programs = [], sandbox.run_programs
    monkeypatch.setattr(
        sandbox,
        "run_programs",
        lambda programs, *settings: asked.append(settings) or run_programs(programs, *settings),
    )
    mbpp, human_eval = (
        {"test_list": ["assert add(1, 2) == 3"]},
        {"test": "def check(f):\n    assert f(2) == 4\n", "entry_point": "double"},
    )
    completions = [
        "def add(a, b):\n    return a + b\n",
        "def add(a, b):\n    return a - b\n",
        "    return 2 * x\n",
    ]
    scorer = unit_test_scorer(time_s=60.0, memory_mb=512, workers=2)
    assert scorer(["", "", "def double(x):\n"], completions, [mbpp, mbpp, human_eval]) == [1.0, 0.0, 1.0]
    assert asked == [(sandbox.SandboxLimits(60.0, 512), 2)]


# ---------------------------------------------------------------- the stage

COUNTS = """
import os, signal, time
calls = []
def f(prompts, completions, rows):
    calls.append(len(completions))
    if os.environ.get("STOP_AT") == str(len(calls)):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float(os.environ.get("SLEEP", "0")))
    return [len(text) % 7 for text in completions]
"""
PAIRS = {
    "stages": ["pairs"],
    "sft": None,
    "objective": None,
    "po": None,
    "evaluation": None,
    "data": {"sft": [], "train": [], "eval": [], "prompts": [{"kind": "reviews", "rows": 18, "seed": 5}]},
    "generation": {"samples": 3, "max_new_tokens": 8, "batch_size": 8},
    "scorer": {"kind": "function", "function": "my_scores:f"},
}


def tokens_of(output: Path, config_path: Path):
    """The pairs that a run has made, as po would read them."""
    from sparsepo_jax.build.data import load_data
    from sparsepo_jax.build.tokenizer import make_tokenizer

    config, _ = load_config(config_path, [f"data.train=[{{path: {output / 'pairs_made.jsonl'}}}]"])
    return load_data(config, "pairs", config.data.train, "train", make_tokenizer(config), None)


def test_interrupted_or_not_it_makes_the_same_pairs(tmp_path, module, monkeypatch, capsys):
    module(COUNTS)
    undisturbed = run(tmp_path / "whole", **PAIRS)
    assert sys.modules["my_scores"].calls == [
        24,
        23,
        3,
    ]  # 17 distinct prompts in batches of 8; one sample is empty
    printed = capsys.readouterr().out
    assert (
        "pairs: 17 prompts, 51 samples (1 empty and 0 repeated left out), " in printed
        and "mean score" in printed
    )

    module(COUNTS)
    monkeypatch.setenv("STOP_AT", "1")
    config = write_config(tmp_path / "stopped", **PAIRS)
    assert main(["--config", str(config)]) == RUN_AGAIN
    monkeypatch.delenv("STOP_AT")
    output = tmp_path / "stopped" / "run"
    assert len(lines_of(output / "scored_samples.jsonl")) == 8 and not (output / "pairs_made.jsonl").exists()
    with (output / "scored_samples.jsonl").open("a") as file:
        file.write('{"index": 16, "sam')  # as a crash leaves it
    assert main(["--config", str(config), "generation.max_new_tokens=9", "pairs.margin=0.1"]) == 1
    assert (
        "holds stage pairs with other settings: generation.max_new_tokens, pairs.margin; set them back"
        in capsys.readouterr().err
    )
    assert main(["--config", str(config), "data.prompts.0.seed=6"]) == 1
    assert "data.prompts" in capsys.readouterr().err
    assert main(["--config", str(config)]) == 0
    assert "pairs: continues after 8 of 17 prompts" in capsys.readouterr().out
    assert sys.modules["my_scores"].calls == [24, 23, 3], "each prompt is scored once"
    for name in ("scored_samples.jsonl", "pairs_made.jsonl"):
        assert (output / name).read_text() == (undisturbed / name).read_text()
    assert main(["--config", str(config)]) == 0
    assert "pairs: finished before" in capsys.readouterr().out

    made, scored = lines_of(output / "pairs_made.jsonl"), lines_of(output / "scored_samples.jsonl")
    assert [record["index"] for record in scored] == list(range(17)) and all(
        len(record["samples"]) == 3 for record in scored
    )
    by_text = {
        (record["prompt"], sample["text"]): sample for record in scored for sample in record["samples"]
    }
    assert made and all(
        by_text[pair["prompt"], pair["chosen"]]["score"] == pair["chosen_reward"] > pair["rejected_reward"]
        for pair in made
    )
    assert all(pair["origin"].startswith("reviews(seed=5):") for pair in made)
    table = tokens_of(output, config)
    assert len(table) == len(made)
    for row, pair in enumerate(made):
        for p, name in enumerate(("chosen", "rejected")):
            drawn = by_text[pair["prompt"], pair[name]]["token_ids"]
            assert table.response(row, p).tolist()[: len(drawn)] == drawn, (
                "po trains on the tokens that were drawn"
            )


@pytest.mark.slow
def test_two_processes_make_what_one_makes_and_stop_together(tmp_path, module, monkeypatch):
    """SIGTERM to the one that scores, in the middle; both ask to be started again. Kills: a process that
    writes its own part, or leaves alone."""
    from helpers.processes import run_together

    prompts = {"sft": [], "train": [], "eval": [], "prompts": [{"kind": "reviews", "rows": 60, "seed": 5}]}
    module(COUNTS)
    undisturbed = run(tmp_path / "whole", **PAIRS | {"data": prompts})
    config = write_config(tmp_path / "many", **PAIRS | {"data": prompts})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("SLEEP", "0.5")
    monkeypatch.setenv("STOP_AT", "2")
    stopped = run_together(config, 2, 1)
    assert [status for status, _ in stopped] == [RUN_AGAIN] * 2, stopped
    monkeypatch.delenv("STOP_AT")
    kept = len(lines_of(tmp_path / "many" / "run" / "scored_samples.jsonl"))
    continued = run_together(config, 2, 1)
    assert [status for status, _ in continued] == [0, 0], continued
    assert f"pairs: continues after {kept} of " in continued[0][1] and "pairs:" not in continued[1][1]
    for name in ("scored_samples.jsonl", "pairs_made.jsonl"):
        assert (tmp_path / "many" / "run" / name).read_text() == (undisturbed / name).read_text()


def test_a_mistake_of_the_scorer_can_be_mended(tmp_path, module, capsys):
    """Nothing was kept under the wrong setting, so another one is not refused."""
    module(COUNTS)
    config = write_config(tmp_path, **PAIRS)
    assert main(["--config", str(config), "scorer.function=my_scores:g"]) == 1
    assert "my_scores:g: the module" in capsys.readouterr().err
    assert main(["--config", str(config)]) == 0


def test_where_no_answers_differ_it_is_told_what_to_look_at(tmp_path, module, capsys):
    module("def f(prompts, completions, rows):\n    return [1.0] * len(completions)\n")
    run(tmp_path, **PAIRS)
    said = capsys.readouterr().out
    assert "note: there is nothing to train on" in said and "scored_samples.jsonl" in said


def test_a_classifier_trained_on_reviews_makes_pairs_across_classes(tmp_path, capsys):
    scorer = {
        "kind": "classifier",
        "train": [{"kind": "reviews", "rows": 60, "seed": 7}],
        "test": [{"kind": "reviews", "rows": 20, "seed": 8}],
    }
    output = run(
        tmp_path, **PAIRS | {"scorer": scorer, "pairs": {"threshold": 0.5, "max_pairs_per_prompt": 1}}
    )
    about = json.loads((output / "classifier" / "about.json").read_text())
    assert (
        about["rows"] == 120
        and 0.7 < about["test_accuracy"] < 1
        and "% on the test rows" in capsys.readouterr().out
    )
    made = lines_of(output / "pairs_made.jsonl")
    assert all(pair["chosen_reward"] > 0.5 >= pair["rejected_reward"] for pair in made)
    assert len({pair["origin"] for pair in made}) == len(made)
    summary = json.loads((output / "pairs" / "summary.json").read_text())
    assert summary["pairs"] == summary["prompts_with_a_pair"] == len(made)


def test_a_classifier_is_trained_anew_where_its_settings_or_files_are_others(tmp_path):
    rows, said = tmp_path / "labels.jsonl", []

    def words(*texts: str) -> None:
        rows.write_text(
            "".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, text in enumerate(texts))
        )

    def known(goes_on: bool = False, **settings) -> list[str]:
        scorer = {"kind": "classifier", "train": [{"path": str(rows)}]} | settings
        config, _ = load_config(write_config(tmp_path, **PAIRS | {"scorer": scorer}))
        make_scorer(config, said.append, goes_on=goes_on)
        return load_classifier(tmp_path / "run" / "classifier")[0].words

    words("dull film", "great film")
    assert known() == ["dull", "dull film", "film", "great", "great film"]
    kept = (tmp_path / "run" / "classifier" / "about.json").stat().st_ino
    known()
    assert (tmp_path / "run" / "classifier" / "about.json").stat().st_ino == kept
    assert known(max_features=1) == ["film"]
    words("bad", "good", "bad film", "good film")
    assert known(goes_on=True, max_features=1) == ["film"] and len(said) == 4
    assert known() == ["bad", "bad film", "film", "good", "good film"]


@pytest.mark.slow
def test_a_kept_classifier_scores_what_the_policy_writes(tmp_path, capsys):
    """The mean over the answers to sampled prompts, before and after; the file it is kept in is enough."""
    learned = {"kind": "classifier", "train": [{"kind": "reviews", "rows": 60, "seed": 7}]}
    kept = run(tmp_path / "a", **PAIRS | {"scorer": learned}) / "classifier"
    output = run(tmp_path / "b", scorer={"kind": "classifier", "path": str(kept)})
    printed, summary = capsys.readouterr().out, json.loads((output / "summary.json").read_text())
    samples = lines_of(output / "samples.jsonl")
    classifier, _ = load_classifier(kept)
    for when in ("before", "after"):
        texts = [sample["prompt"] + " " + sample[when] for sample in samples]
        assert summary[when]["generated_reward"] == pytest.approx(classifier.probability(texts).mean())
    assert (
        "reward of what it writes" in printed
        and "reward of what it writes" in (output / "report.html").read_text()
    )


def test_generate_answers_data_prompts_and_keeps_their_rows(tmp_path):
    (tmp_path / "tasks.jsonl").write_text(
        "".join(
            json.dumps({"question": f"Add {n}:", "test": f"assert {n}", "n": n}) + "\n" for n in (1, 2, 1)
        )
    )
    prompts = [{"path": str(tmp_path / "tasks.jsonl"), "columns": {"prompt": "question"}}]
    output = run(
        tmp_path,
        **PAIRS
        | {
            "stages": ["generate"],
            "tokenizer": {"kind": "bytes"},
            "data": {"sft": [], "train": [], "eval": [], "prompts": prompts},
        },
    )
    records = lines_of(output / "generations.jsonl")
    assert [(record["prompt"], record["row"]) for record in records] == [
        (f"Add {n}:", {"test": f"assert {n}", "n": n}) for n in (1, 2)
    ]
    assert all(len(record["samples"]) == 3 for record in records)


# ---------------------------------------------------------------- config


def test_what_the_stage_lacks_is_said_a_line_each(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "stages: [pairs]\noutput_dir: x\npolicy: {path: gpt2}\ngeneration: {temperature: 0}"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert [line.split(":")[0] for line in caught.value.lines] == [
        "data.prompts",
        "scorer",
        "generation.samples",
        "generation.temperature",
    ]


def test_the_plan_knows_the_stage(tmp_path):
    from sparsepo_jax.config.schema.root import Config

    (tmp_path / "three.jsonl").write_text("{}\n{}\n{}\n")
    path = str(tmp_path / "three.jsonl")
    config = {
        "stages": ["pairs"],
        "output_dir": "x",
        "policy": {"path": "gpt2"},
        "data": {"prompts": [{"path": path}]},
        "generation": {"samples": 4, "max_new_tokens": 40},
        "scorer": {"train": [{"path": path}] * 2},
        "pairs": {"threshold": 0.5},
    }
    plan = make_plan_text(Config.model_validate(config)).split("\n")
    assert "prompts     at most 3 distinct prompts, 4 responses each of at most 40 tokens" in plan
    assert "pairs       all across 0.5, scored by classifier, trained on 6 rows" in plan
    config["scorer"]["test"] = [{"path": "absent.jsonl"}]
    with pytest.raises(ConfigError, match="^scorer.test.0.path: no such file"):
        make_plan_text(Config.model_validate(config))


def test_scores_are_read_up_to_the_first_line_that_is_not_complete(tmp_path):
    """A power cut leaves zeros, or half a line in the middle where more was written later."""
    from sparsepo_jax.stages.pairs import _read_scored

    path, lines = tmp_path / "scored_samples.jsonl", [b'{"index": 0}\n', b'{"index": 1}\n']
    for tail in (b'{"ind', b"\0" * 20, b"\0\0\n" + lines[1], b'{"index"\n', b"null\n", b"{}\n"):
        path.write_bytes(b"".join(lines) + tail)
        assert list(_read_scored(path)) == [0, 1] and path.read_bytes() == b"".join(lines), tail


def test_a_classifier_that_was_cut_is_one_line(tmp_path):
    classifier = train_classifier(LABELLED, max_features=50, l2=0.1)
    save_classifier(tmp_path / "kept", classifier, {"rows": 18, "accuracy": 1.0, "test_accuracy": None})
    for name in ("words.json", "numbers.safetensors", "about.json"):
        content = (tmp_path / "kept" / name).read_bytes()
        (tmp_path / "kept" / name).write_bytes(content[:9])
        with pytest.raises(UserError, match="kept: expected a classifier .* delete the directory"):
            load_classifier(tmp_path / "kept")
        (tmp_path / "kept" / name).write_bytes(content)
