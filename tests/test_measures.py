"""pass@k, programs from rows, ROUGE, self-BLEU, distinct-n: by hand; and the stage measure over a run's
answers."""

import itertools
import json
import sys
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.program import lines_of, write_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.eval.text_measures import bertscore, distinct, rouge, self_bleu
from sparsepo_jax.main import main
from sparsepo_jax.sandbox.code_tests import mean_pass_at_k, pass_at_k, program_of
from sparsepo_jax.sandbox.parent import SandboxLimits, run_programs

# Problems of the two sets' shapes, written for this test.
PROMPT = (
    'import math\n\n\ndef half(x: float) -> float:\n    """ Half of x.\n    >>> half(3)\n    1.5\n    """\n'
)
HUMANEVAL = {
    "task_id": "Own/0",
    "entry_point": "half",
    "test": "\n\ndef check(candidate):\n    assert candidate(3) == 1.5\n    assert candidate(0) == 0\n",
}
MBPP = {
    "task_id": 7,
    "test_setup_code": "pair = Pair(1, 2)",
    "test_list": ["assert pair.total() == 3", "assert Pair(0, 0).total() == 0"],
    "challenge_test_list": [],
}
SANITIZED = {
    "task_id": 8,
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(third(1), 1 / 3)"],
}
PAIR = """\
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    def total(self):
        return self.a + self.b
"""


def judged(*programs):
    return [outcome.passed for outcome in run_programs(programs, SandboxLimits(10.0, 256))]


# ---------------------------------------------------------------- code


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
@settings(deadline=None)
def test_pass_at_k_is_the_share_of_draws_with_a_pass(drawn):
    n, c, k = drawn
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_by_hand():
    """4 samples, 1 passes: pass@1 1/4, pass@2 1 - C(3,2)/C(4,2) = 1/2. The biased 1 - (1 - c/n)^k would say
    7/16."""
    assert (
        pass_at_k(4, 1, 1) == 0.25
        and pass_at_k(4, 1, 2) == 0.5
        and pass_at_k(4, 1, 4) == 1.0
        and pass_at_k(4, 0, 4) == 0.0
    )
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-9)
    assert mean_pass_at_k([(4, 1), (4, 0), (2, 2)], 1) == pytest.approx((0.25 + 0 + 1) / 3)
    with pytest.raises(UserError, match="pass@5 needs at least 5 samples of each problem, got 4"):
        pass_at_k(4, 1, 5)


def test_a_humaneval_answer_goes_on_where_the_prompt_ends():
    full_function = "def half(x):\n    return math.fabs(x / 2)\n"
    answers = {
        "    return x / 2\n": True,
        "    return x\n": False,
        "    return x / 2\n```\nThat was it.": True,
        "    return x / 2\n\nUse it so:\n```python\nhalf(3)\n```": False,
        "\n    return x / 2": True,
        "": False,
        "    return x / 2\r\n": True,
        "```python\n    return x / 2\n```": True,
        f"```python\n{full_function}```": True,
        f"Sure, here it is:\n```python\n{full_function}```\nHope it helps.": True,
        f"```\n{full_function}": True,
        "```python\ndef half(x):\n    return x\n```": False,
        "    import sys; sys.exit(0)": False,
    }
    assert judged(*(program_of(HUMANEVAL, PROMPT, answer) for answer in answers)) == list(answers.values())
    chat = "<|user|>\nWrite half(x)."  # no Python, and the function's head is not in it
    assert judged(
        program_of(HUMANEVAL, chat, "def half(x):\n    return x / 2"),
        program_of(HUMANEVAL, chat, "    return x / 2"),
    ) == [True, False]


def test_an_mbpp_answer_is_a_whole_program():
    windows = {**MBPP, "test_setup_code": "\r\npair = Pair(1, 2)\r\n"}
    third = "def third(x):\n    return x / 3"
    programs = {
        program_of(MBPP, "", PAIR): True,
        program_of(windows, "ignored", PAIR.replace("\n", "\r\n")): True,
        program_of(MBPP, "", f"Here:\n```python\n{PAIR}```\n"): True,
        program_of(MBPP, "", PAIR.replace("+", "-")): False,
        program_of(MBPP, "", ""): False,
        program_of(SANITIZED, "", third): True,
        program_of(SANITIZED, "", f"```\r\n{third}\r\n```"): True,
        program_of(SANITIZED, "", third.replace("3", "4")): False,
    }
    assert judged(*programs) == list(programs.values())


def test_a_row_without_tests_is_refused():
    for row in ({}, {"test": "x"}, {"test_list": []}, {"test_list": [1]}):
        with pytest.raises(UserError, match="expected tests in the row") as caught:
            program_of(row, "", "")
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- texts


def test_rouge_by_hand():
    """the cat sat | the cat lay down: 2 of 3 words and 2 of 4, F1 4/7; 1 of 2 pairs of words and 1 of 3, F1
    2/5; the longest common sequence is "the cat". Over two lines in another order Lsum finds all words, L
    only the longer line's."""
    (scores,) = rouge(["the cat sat"], ["the cat lay down"])
    assert scores == pytest.approx({"rouge1": 4 / 7, "rouge2": 2 / 5, "rougeL": 4 / 7, "rougeLsum": 4 / 7})
    (scores,) = rouge(["a b c\nd e"], ["d e\na b c"])
    assert scores["rougeL"] == pytest.approx(3 / 5) and scores["rougeLsum"] == pytest.approx(1.0)
    assert rouge(["cats"], ["cat"])[0]["rouge1"] == 0, "words are not stemmed"


def test_self_bleu_is_one_for_copies_and_falls_with_variety():
    """Half of the groups' texts are copies: the mean over texts. One answer alone says nothing."""
    same, other = "a b c d e", "f g h i j"
    assert self_bleu([[same, same]]) == pytest.approx(1.0) and self_bleu([[same, other]]) < 0.05
    assert self_bleu([[same, same], ["x"]]) == pytest.approx(1.0) and self_bleu([["x"], []]) is None
    assert self_bleu([[same, same, other]]) == pytest.approx(
        (1 + 1 + self_bleu([[other, same]])) / 3, abs=0.02
    )
    assert self_bleu([["", ""]]) == 0.0


def test_distinct_by_hand():
    """a b a | b a: words a b a b a, 2 of 5 are distinct; pairs of words ab ba | ba, 2 of 3, none across
    texts."""
    assert (
        distinct(["a b a", "b a"], 1) == 2 / 5
        and distinct(["a b a", "b a"], 2) == 2 / 3
        and distinct(["a b a", "b a"], 3) == 1.0
    )
    assert distinct(["a", ""], 2) is None


def tiny_bert(directory, words=("a", "cat", "sat", "on", "the", "mat", "dog", "lay", "down")):
    """A random BERT of three layers and a tokenizer of one token a word, as files; the path."""
    torch, transformers, tokenizers = (
        pytest.importorskip(name) for name in ("torch", "transformers", "tokenizers")
    )
    entries = {token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(directory)
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(entries),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
    ).save_pretrained(directory)
    return str(directory)


def bertscore_by_hand(model, layer, text, reference):
    """F1 of P and R: P the mean over the text's own tokens of the largest cosine with any of the
    reference's, R the other way (Zhang et al. 2020, without idf). [CLS] and [SEP] have no weight of their
    own in the package, but a token may match them."""
    import torch
    import transformers

    tokenizer, bert = (
        transformers.AutoTokenizer.from_pretrained(model),
        transformers.AutoModel.from_pretrained(model).eval(),
    )

    def states(words):
        with torch.no_grad():
            outputs = bert(torch.tensor([tokenizer.encode(words)]), output_hidden_states=True)
        states_TD = outputs.hidden_states[layer][0].double()
        return states_TD / states_TD.norm(dim=-1, keepdim=True)

    cosines = states(text) @ states(reference).T
    precision, recall = cosines.max(1).values[1:-1].mean().item(), cosines.max(0).values[1:-1].mean().item()
    return 2 * precision * recall / (precision + recall)


def test_bertscore_by_hand(tmp_path):
    """Texts of other lengths than their references', so that the package pads; a copy scores 1, an empty
    text 0."""
    pytest.importorskip("bert_score")
    model = tiny_bert(tmp_path)
    texts = ["the cat sat", "a dog lay down on the mat", "", "the cat sat", "on"]
    references = ["the cat lay down on a mat", "cat", "the dog", "the cat sat", "a dog sat on the cat"]
    for layer in (1, 2):
        by_hand = [
            0.0 if not text else bertscore_by_hand(model, layer, text, reference)
            for text, reference in zip(texts, references, strict=True)
        ]
        assert bertscore(texts, references, model, layer) == pytest.approx(by_hand, abs=1e-5)
        assert by_hand[3] == pytest.approx(1.0) and all(
            score < 0.99 for score in (by_hand[0], by_hand[1], by_hand[4])
        )
    first, second = (bertscore(texts[:1], references[:1], model, layer)[0] for layer in (1, 2))
    assert abs(first - second) > 1e-3, "another layer, another score"


def test_a_missing_package_is_named(monkeypatch):
    for module, measure, extra in (
        ("bert_score", lambda: bertscore(["a"], ["a"], "m", 1), "bertscore"),
        ("sacrebleu", lambda: self_bleu([["a", "a"]]), "measures"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"pip install 'sparsepo_jax\[{extra}\]'"):
            measure()


# ---------------------------------------------------------------- the stage

ANSWERS = [
    {
        "index": 0,
        "origin": "problems.jsonl:1",
        "prompt": PROMPT,
        "row": HUMANEVAL | {"chosen": "return x / 2"},
        "samples": [
            {"text": "    return x / 2"},
            {"text": "    return x"},
            {"text": "    exit(0)"},
            {"text": "    return 0.5 * x"},
        ],
    },
    {
        "index": 1,
        "origin": "problems.jsonl:2",
        "prompt": "",
        "row": MBPP | {"chosen": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a b"}]},
        "samples": [
            {"text": "a b"},
            {"text": "class Pair: pass"},
            {"text": PAIR},
            {"text": "while True: pass"},
        ],
    },
]
BOTH = {"code": {"k": [1, 2], "time_s": 2.0, "memory_mb": 256}, "text": {}}


@pytest.fixture
def measured(tmp_path, capsys):
    """(output directory, run it again): the stages measure and report over ANSWERS."""
    output = tmp_path / "run"
    output.mkdir()

    def run(answers=ANSWERS, measure=BOTH, code=0, stages=("measure", "report")):
        if answers is not None:
            (output / "generations.jsonl").write_text(
                "".join(json.dumps(answer) + "\n" for answer in answers)
            )
        assert main(["--config", str(write_config(tmp_path, stages=list(stages), measure=measure))]) == code
        return "".join(capsys.readouterr())

    return output, run


def test_answers_that_were_cut_are_one_line(measured):
    output, run = measured
    (output / "generations.jsonl").write_text(json.dumps(ANSWERS[0])[:-9])
    assert "run the stage generate again" in run(None, code=1)
    for line in ("null", "[]"):
        (output / "generations.jsonl").write_text(json.dumps(ANSWERS[0]) + f"\n{line}\n")
        assert "expected a JSON object a line" in run(None, code=1)


def test_the_stage_measures_code_and_texts(measured):
    """2 of 4 and 1 of 4 pass: pass@1 3/8; pass@2 (1 - C(2,2)/C(4,2) + 1 - C(3,2)/C(4,2)) / 2 = (5/6 + 1/2)
    / 2."""
    output, run = measured
    printed = run()
    figures = json.loads((output / "measures.json").read_text())
    assert figures["code"]["pass@1"] == pytest.approx(3 / 8) and figures["code"]["pass@2"] == pytest.approx(
        2 / 3
    )
    assert [(count["samples"], count["passed"]) for count in figures["code"]["counts"]] == [(4, 2), (4, 1)]
    samples = lines_of(output / "measures_samples.jsonl")
    assert [(line["index"], line["sample"], line["passed"]) for line in samples] == [
        (0, 0, True),
        (0, 1, False),
        (0, 2, False),
        (0, 3, True),
        (1, 0, False),
        (1, 1, False),
        (1, 2, True),
        (1, 3, False),
    ]
    assert [samples[n]["why"] for n in (0, 1, 2, 7)] == ["", "AssertionError: ", "exit 0", "time"]
    assert samples[4]["rouge1"] == 1.0, "the last turn of messages is the reference"
    assert figures["text"]["rouge1"] == pytest.approx(sum(line["rouge1"] for line in samples) / 8)
    assert (
        figures["text"]["words"] == pytest.approx(sum(line["words"] for line in samples) / 8)
        and 0 < figures["text"]["distinct2"] <= 1
    )
    assert "pass@1 0.3750" in printed and "rouge1" in printed
    page = (output / "report.html").read_text()
    assert "pass@2" in page and "0.667" in page and "self_bleu" in page and "problems.jsonl" not in page
    assert "measure: finished before" in run(answers=None)
    assert (
        "finished before" not in run(answers=ANSWERS[:1])
        and len(lines_of(output / "measures_samples.jsonl")) == 4
    )


def test_what_cannot_be_measured_is_said_in_one_line(measured):
    output, run = measured
    assert "run the stage generate first" in run(answers=None, code=1)
    assert "pass@100 needs at least 100 samples of each problem, got 4" in run(measure={"code": {}}, code=1)
    assert "expected tests in the row" in run([{**ANSWERS[0], "row": {}}], {"code": {"k": [1]}}, code=1)
    assert "expected a text in the column summary (measure.text.reference), got the columns chosen, " in run(
        measure={"text": {"reference": "summary"}}, code=1
    )
    assert "holds token ids without text" in run(
        [{**ANSWERS[0], "samples": [{"text": None}]}], {"text": {}}, code=1
    )
    assert not (output / "measures.json").exists()
    assert "measure: needed by stage measure" in run(measure={}, code=2)
    assert "measure.code.k: pass@2 needs as many samples" in run(
        measure={"code": {"k": [2]}}, stages=["generate", "measure"], code=2
    )
    lacking = (
        "needs bert_score, which is not installed"
        if find_spec("bert_score") is None
        else "the best layer of m is not known to bert-score"
    )
    assert lacking in run(measure={"text": {"bertscore": {"model": "m"}}}, code=1)


def test_without_a_reference_texts_are_compared_with_each_other(measured):
    output, run = measured
    run([{**answer, "row": {}} for answer in ANSWERS], {"text": {"reference": None}}, stages=["measure"])
    assert json.loads((output / "measures.json").read_text())["text"].keys() == {
        "words",
        "self_bleu",
        "distinct1",
        "distinct2",
        "distinct3",
        "prompts",
        "samples",
    }


def test_answers_to_the_prompts_of_pairs_are_compared_with_the_chosen_responses(tmp_path):
    """Without data.prompts: the default reference is the column chosen, which was not there."""
    rows = [{"prompt": f"say {word}. ", "chosen": word, "rejected": "no"} for word in ("yes", "é well")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(
        tmp_path,
        stages=["generate", "measure"],
        tokenizer={"kind": "bytes"},
        policy={"config": {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 64}},
        data={"sft": [], "train": [], "eval": [{"path": str(tmp_path / "pairs.jsonl")}]},
        generation={"max_new_tokens": 3},
        measure={"text": {"self_bleu": False}},
    )
    assert main(["--config", str(config)]) == 0
    answered = lines_of(tmp_path / "run" / "generations.jsonl")
    assert [answer["row"] for answer in answered] == [
        {"chosen": row["chosen"], "rejected": row["rejected"]} for row in rows
    ]
    assert "rouge1" in json.loads((tmp_path / "run" / "measures.json").read_text())["text"]


def test_tests_and_references_travel_with_the_answers(tmp_path):
    """A random policy answers a HumanEval row and is measured by that row's tests and reference."""
    (tmp_path / "problems.jsonl").write_text(
        json.dumps({"prompt": PROMPT, **HUMANEVAL, "chosen": "    return x / 2"}) + "\n"
    )
    config = write_config(
        tmp_path,
        stages=["generate", "measure"],
        tokenizer={"kind": "bytes"},
        policy={"config": {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 256}},
        data={
            "sft": [],
            "train": [],
            "eval": [],
            "prompts": [{"path": str(tmp_path / "problems.jsonl")}],
            "max_prompt_length": 200,
        },
        generation={"max_new_tokens": 3, "samples": 2},
        measure={"code": {"k": [1, 2]}, "text": {"self_bleu": False}},
    )
    assert main(["--config", str(config)]) == 0
    (answered,) = lines_of(tmp_path / "run" / "generations.jsonl")
    assert answered["prompt"] == PROMPT and answered["row"]["entry_point"] == "half"
    figures = json.loads((tmp_path / "run" / "measures.json").read_text())
    assert (
        figures["code"]["pass@2"] == 0.0 and figures["code"]["samples"] == 2 and "rouge1" in figures["text"]
    )
