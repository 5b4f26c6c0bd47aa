"""Which tokens a run holds for decisive, and words of public lists among tokens: by hand, and against files
written here."""

import gzip
import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.program import lines_of, run, write_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tokens import unsure_tokens
from sparsepo_jax.data.inspect import token_texts
from sparsepo_jax.data.tokenizers import make_word_tokenizer, train_bpe_tokenizer
from sparsepo_jax.eval.auroc import precision
from sparsepo_jax.eval.lexicon import load_lexicons, load_strengths, mark_words
from sparsepo_jax.eval.scores import PairScore, ResponseScore, mask_sparsity
from sparsepo_jax.eval.which_tokens import FIGURES, RANKINGS, deletion, ranked, token_figures
from sparsepo_jax.main import main


def response(mask, ratio, *, ref=None, kl=0.0, kl_mask=None):
    """Log-ratios of a reference at log 1/2, or at `ref`."""
    ref = np.full(len(mask), -np.log(2)) if ref is None else np.log(ref)
    columns = (ref + ratio, ref, np.zeros(len(mask)) + kl, mask, mask if kl_mask is None else kl_mask)
    return ResponseScore(*(np.asarray(x, np.float32) for x in columns))


def pair(chosen, rejected, row=0):
    return PairScore(row, {}, (chosen, rejected))


# ---------------------------------------------------------------- rankings


def test_precision_by_hand():
    """Two decisive tokens. The largest two scores, 3 and 2, hold one of them; of [3, 1, 1, 1] the second
    place is drawn among three, of which one is decisive: (1 + 1/3) / 2."""
    assert precision([3, 1, 2, 0], [True, True, False, False]) == 0.5
    assert precision([3, 1, 1, 1], [True, True, False, False]) == pytest.approx((1 + 1 / 3) / 2)
    assert (
        precision([1, 2], [False, False]) is None
        and precision([2, 2, 2, 2], [True, False, False, False]) == 0.25
    )


def test_figures_by_hand():
    """Tokens of chosen c1 c2 c3 and rejected r1 r2; decisive c2 and r1. Reward mask 0 2 1 | 0 3: of 2 x 3
    comparisons c2 wins two (c1, c3), r1 ties with c1: 2.5 of 6. |log-ratio| .1 .5 .3 | .6 .4: all six.
    Kills: the signed ratio (r1's is negative), masks taken for one another."""
    scores = [
        pair(
            response([0, 2, 1], [0.1, 0.5, 0.3], kl_mask=[0, 1, 0]),
            response([0, 3], [-0.6, 0.4], kl_mask=[1, 0]),
        )
    ]
    figures = token_figures(scores, None, np.array([False, True, False, True, False]), mask="reward")
    assert (
        figures["auroc_reward"] == 2.5 / 6
        and figures["auroc_logratio"] == 1.0
        and figures["auroc_kl"] == 1.0
        and figures["auroc_token_kl"] == 0.5
    )
    assert (
        figures["auroc_untrained"] is None
        and figures["decisive_share"] == 0.4
        and figures["precision_reward"] == 0.5
    )  # of r2, c2
    # Early first: 0 1 2 | 0 1. c2 beats c3 and ties with r2: 1.5; r1 ties with c1, beats the other two: 2.5.
    assert figures["auroc_positional"] == 4 / 6
    assert figures.keys() == set(FIGURES)


def test_what_came_before_training_is_ranked_by_its_own_mask():
    after, before = ([pair(response(mask, [0, 0]), response(mask, [0, 0]))] for mask in ([1, 0], [0, 1]))
    figures = token_figures(after, before, np.array([True, False] * 2), mask="reward")
    assert figures["auroc_reward"] == 1.0 and figures["auroc_untrained"] == 0.0


def test_tokens_that_do_not_count_change_nothing():
    scores = [pair(response([5, 2, 1], [9, 0, 0]), response([0, 3], [0, 0]))]
    kept = np.array([False, True, True, True, True])
    assert (
        token_figures(scores, None, np.array([False, True, False, False, True]), mask="reward")[
            "auroc_reward"
        ]
        == 4 / 6
    )
    assert (
        token_figures(scores, None, np.array([False, True, False, False, True]), mask="reward", kept_N=kept)[
            "auroc_reward"
        ]
        == 1.0
    )


def test_figures_are_of_the_mask_that_is_there():
    """Kills: zeros and order of a reward mask of ones, where the KL alone is masked."""
    ones, zeros = np.ones(4, np.float32), np.array([0, 1, 0, 0], np.float32)
    response = ResponseScore(*(np.zeros(4, np.float32) for _ in range(3)), ones, zeros)
    scores = [PairScore(0, {}, (response, response))]
    decisive = np.array([False, True, False, False] * 2)
    assert mask_sparsity(scores, "kl") == 0.75 and mask_sparsity(scores) == 0
    figures = token_figures(scores, scores, decisive, mask="kl")
    assert figures["auroc_kl"] == figures["precision_reward"] == 1.0
    assert figures["auroc_reward"] is figures["auroc_shuffled"] is figures["auroc_untrained"] is None
    assert token_figures(scores, scores, decisive, mask="reward")["auroc_untrained"] == 0.5


def test_without_a_mask_only_what_needs_none_is_ranked():
    scores = [pair(response([1, 1], [0, 0.5]), response([1, 1], [0, 0.5]))]
    figures = token_figures(scores, scores, np.array([False, True] * 2), mask=None)
    nulls = {"auroc_reward", "auroc_kl", "auroc_shuffled", "auroc_untrained", "precision_reward"}
    assert {name for name in FIGURES if figures[name] is None} == nulls and figures["auroc_logratio"] == 1.0


def many(rng, pairs=300, tokens=12):
    """A mask that is large on the decisive tokens; half of each response is decisive in the odd rows, none
    in the even ones."""
    decisive = [[np.arange(tokens) % 2 * (n % 2) == 1 for _ in range(2)] for n in range(pairs)]
    scores = [
        pair(*(response(d + rng.uniform(0, 0.1, tokens), rng.normal(size=tokens)) for d in both), row=n)
        for n, both in enumerate(decisive)
    ]
    return scores, np.concatenate([d for both in decisive for d in both])


def test_controls_know_nothing_but_what_they_are_given():
    """Shuffled within each response, the mask still tells responses apart (kills: shuffled over all tokens,
    which would give 0.5); random does not."""
    scores, decisive = many(np.random.default_rng(0))
    figures = token_figures(scores, None, decisive, mask="reward")
    assert figures["auroc_reward"] == 1.0 and abs(figures["auroc_random"] - 0.5) < 0.02
    # Half the shuffled values of odd rows are large. A decisive token against the others of odd rows, a
    # third of all others: .5; against those of even rows: 1/2 x 1 + 1/2 x 1/2.
    assert figures["auroc_shuffled"] == pytest.approx(1 / 3 * 0.5 + 2 / 3 * 0.75, abs=0.02)
    for ranking in ("shuffled", "random"):
        assert (ranked(scores, ranking, 0) != ranked(scores, ranking, 1)).any() and (
            ranked(scores, ranking, 1) == ranked(scores, ranking, 1)
        ).all()
    np.testing.assert_array_equal(
        np.sort(RANKINGS["shuffled"](scores[0].responses[0], np.random.default_rng(1))),
        np.sort(scores[0].responses[0].reward_mask),
    )


def test_the_confidence_control_is_confpos():
    rng = np.random.default_rng(1)
    for prob in (rng.uniform(0.01, 0.99, 9), np.full(3, 0.1), np.array([0.2])):
        scored = response(np.zeros(len(prob)), rng.normal(size=len(prob)), ref=prob)
        expected = unsure_tokens(jnp.asarray(scored.ref_logp, jnp.float32), jnp.ones(len(prob), bool))
        np.testing.assert_array_equal(RANKINGS["confidence"](scored, rng), expected)


# ---------------------------------------------------------------- deletion


def test_deletion_by_hand():
    """Chosen: mask 3 0 1 2, r 2 -1 0.5 0.25, k 0.5 each; rejected: mask 1 2, r 0 1. beta 2. At share 0.25
    one token goes of each: chosen's first (r 2), rejected's second (r 1): margins 2 x (1.75 + 2 - 0 - 1)
    whole, 2 x (-0.25 + 1.5 - 0) without the top, and without the bottom (r -1 and 0) 2 x (2.75 + 1.5 - 1).
    Kills: bottom for top, beta or k left out, k with the other sign."""
    scores = [pair(response([3, 0, 1, 2], [2, -1, 0.5, 0.25], kl=0.5), response([1, 2], [0, 1]))]
    figures = deletion(scores, beta=2.0, with_kl=True, shares=(0.0, 0.25))
    assert figures["0"]["margin_top"] == figures["0"]["margin_random"] == pytest.approx(2 * (1.75 + 2 - 1))
    assert figures["0.25"]["margin_top"] == pytest.approx(2 * 1.25) and figures["0.25"][
        "margin_bottom"
    ] == pytest.approx(2 * 3.25)
    plain = deletion(scores, beta=2.0, with_kl=False, shares=(0.25,))["0.25"]
    assert (
        plain["margin_top"] == pytest.approx(2 * -0.25)
        and plain["accuracy_top"] == 0.0
        and plain["accuracy_bottom"] == 1.0
    )


def test_the_shares_are_of_each_response_and_one_token_goes_at_least():
    """20 tokens of r 1 and 3 of r 1: 5 % is one of each, 40 % eight and one (1.2). All gone is a tie,
    whatever is rounded."""
    scores = [pair(response(np.arange(20), np.ones(20)), response(np.arange(3), np.ones(3)))]
    figures = deletion(scores, beta=1.0, with_kl=False, shares=(0.05, 0.4, 1.0))
    assert [figures[share]["margin_top"] for share in ("0.05", "0.4", "1")] == [
        pytest.approx(19 - 2, abs=1e-5),
        pytest.approx(12 - 2, abs=1e-5),
        0.0,
    ]
    assert figures["1"]["accuracy_random"] == 0.5


def test_equal_masks_are_ordered_by_chance():
    """A mask of ones is no better than chance, wherever in the response the preference lies. Kills: a
    stable sort."""
    ratio = np.array([4.0] + [0.0] * 9)
    scores = [pair(response(np.ones(10), ratio), response(np.ones(10), -ratio), row=n) for n in range(400)]
    figures = deletion(scores, beta=1.0, with_kl=False, shares=(0.4,))["0.4"]
    for rule in ("top", "bottom", "random"):
        assert figures[f"margin_{rule}"] == pytest.approx(8 * 0.6, abs=0.3), rule


def test_a_faithful_mask_loses_the_preference_first():
    rng, scores = np.random.default_rng(2), []
    for n in range(200):
        mask = (np.arange(20) % 10 == 3).astype(float)
        scores.append(
            pair(*(response(mask, sign * mask + rng.normal(0, 0.05, 20)) for sign in (1, -1)), row=n)
        )
    figures = deletion(scores, beta=1.0, with_kl=False)
    assert (
        figures["0"]["accuracy_top"] == 1.0
        and figures["0.1"]["accuracy_random"] > 0.95
        and abs(figures["0.1"]["accuracy_top"] - 0.5) < 0.1
    )
    assert figures["0.4"]["margin_bottom"] == pytest.approx(figures["0"]["margin_bottom"], abs=0.2)
    shuffled = deletion(
        [
            score._replace(
                responses=tuple(r._replace(reward_mask=1 - r.reward_mask) for r in score.responses)
            )
            for score in scores
        ],
        beta=1.0,
        with_kl=False,
        ranking="kl",
    )
    assert shuffled == figures, "ranking kl goes by the KL mask"


# ---------------------------------------------------------------- word lists


class Entry(NamedTuple):
    path: str
    kind: str
    threshold: float = 0.0


FILES = {
    "opinion": ("; Opinion lexicon\n;;;\n\ngood\nA+\nawfully\n", {"good": 1, "a+": 1, "awfully": 1}),
    "scores": (
        "bad\t-2.5\t0.9\t[-3, -2]\nfine\t0\ncan't stand\t-3\nBad\t-1.5\n",
        {"bad": 2, "fine": 0, "can't stand": 3},
    ),
    "treebank": (
        "(3 (2 A) (4 (4 Good) (2 film)))\n(1 (0 bad) (3 good))\n",
        {"a": 0, "good": 1.5, "film": 0, "bad": 2},
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_lists_are_read(tmp_path, kind):
    """A mean over occurrences in any case: good is labelled 4 and 3, 1.5 above neutral."""
    text, expected = FILES[kind]
    (tmp_path / "list.txt").write_text(text)
    assert load_strengths(str(tmp_path / "list.txt"), kind) == expected
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert load_strengths(str(tmp_path / "list.txt.gz"), kind) == expected


def test_words_above_the_threshold_decide_and_lists_of_a_kind_are_one(tmp_path):
    for kind, (text, _) in FILES.items():
        (tmp_path / kind).write_text(text)
    (tmp_path / "more").write_text("dull\n")
    lexicons = load_lexicons(
        [
            Entry(str(tmp_path / "opinion"), "opinion"),
            Entry(str(tmp_path / "more"), "opinion"),
            Entry(str(tmp_path / "scores"), "scores", 2.0),
            Entry(str(tmp_path / "treebank"), "treebank"),
        ]
    )
    assert lexicons == {
        "opinion": {"good", "a+", "awfully", "dull"},
        "scores": {"can't stand"},
        "treebank": {"good", "bad"},
    }
    with pytest.raises(UserError, match="has no word of a strength above 3.0"):
        load_lexicons([Entry(str(tmp_path / "scores"), "scores", 3.0)])


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("opinion", b"good\nvery bad\n", ":2 is no line of kind opinion, which is one word: 'very bad'"),
        ("scores", b"good\t1\nbad\tworse\n", ":2 is no line of kind scores"),
        ("scores", b"good 1\n", ":1 is no line of kind scores"),
        ("treebank", b"(5 good)\n", ":1 is no line of kind treebank"),
        ("opinion", b"\xff\xfe", "cannot be read"),
        ("opinion", None, "cannot be read (No such file"),
    ],
)
def test_what_is_no_list_is_named(tmp_path, kind, content, message):
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_strengths(str(tmp_path / "list"), kind)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_words_are_found_over_their_pieces():
    """Every piece of a word is decisive, all but its first are its rest; a word within another is none; an
    apostrophe belongs to a word from within only."""
    texts = [
        "aw",
        "ful",
        "ly",
        " 'bad",
        "' badly",
        " is",
        "n't",
        " film",
        ".",
        "",
        " good bad",
        "ness ba",
        "d",
    ]
    marks = mark_words(texts, {"one": {"awfully", "bad", "isn't", "good"}, "two": {"film"}})
    assert "".join("01"[int(x)] for x in marks.decisive["one"]) == "1111011000111"
    assert "".join("01"[int(x)] for x in marks.decisive["two"]) == "0000000100000"
    assert "".join("01"[int(x)] for x in marks.rest) == "0110001000001", (
        "a token that begins a word is not the rest of one"
    )
    assert "".join("01"[int(x)] for x in marks.union) == "1111011100111"


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_long_texts_are_told_token_by_token_in_windows(kind):
    """The same as by decoding everything before each token, which takes the square of the length.
    Characters of several tokens lie on the seams of the windows; the tokenizer of words puts no space
    before the first one of what it decodes."""
    if kind == "bpe":
        tokenizer = train_bpe_tokenizer(["the film was good and bad"] * 3, 300)
        text = "".join(f" the film{'é🙂' * (n % 3)} was good {n}" for n in range(40))
    else:
        tokenizer, text = make_word_tokenizer(["good", "bad"]), "good bad bad " * 100
    ids = np.array(tokenizer(text)["input_ids"])
    full_text, before = [], ""
    for n in range(len(ids)):
        now = tokenizer.decode(ids[: n + 1])
        same = next((k for k, (a, b) in enumerate(zip(before, now)) if a != b), min(len(before), len(now)))
        full_text.append(now[same:])
        before = now
    assert (
        len(ids) >= 300
        and token_texts(ids, tokenizer) == full_text
        and ("\ufffd" in "".join(full_text)) == (kind == "bpe")
    )


# ---------------------------------------------------------------- the program


def rows_of_text(n):
    yes, no = ("superb", "awful") if n % 3 else ("lovely", "dreadful")
    return {"prompt": f"Film {n}:", "chosen": f" It is a {yes} film.", "rejected": f" It is an {no} film."}


@pytest.mark.slow
def test_word_lists_mark_pairs_that_do_not_say_what_decides(tmp_path, capsys):
    """On text under a BPE: the evaluation's figures, the report's marks; evaluated again by other words
    without training again."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(rows_of_text(n)) + "\n" for n in range(24)))
    (tmp_path / "words.txt").write_text("superb\nlovely\nawful\ndreadful\n")
    (tmp_path / "trees.txt").write_text("(2 (2 a) (2 film) (4 superb))\n")
    changes = dict(
        stages=["po", "eval", "report"],
        tokenizer={"kind": "bpe", "vocab_size": 270},
        sft=None,
        po={"steps": 1},
        data={
            "sft": [],
            "train": [{"path": str(tmp_path / "pairs.jsonl")}],
            "eval": [],
            "holdout": {"share": 0.4},
        },
        evaluation={
            "batch_size": 8,
            "sampled_prompts": None,
            "lexicons": [
                {"path": str(tmp_path / "words.txt"), "kind": "opinion"},
                {"path": str(tmp_path / "trees.txt"), "kind": "treebank"},
            ],
        },
    )
    output = run(tmp_path, **changes)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["lexicons"].keys() == {"opinion", "treebank"} and all(
        0 <= summary["mask"][f"auroc_{name}"] <= 1 for name in ("reward", "logratio", "random")
    )
    opinion = summary["lexicons"]["opinion"]
    assert (
        summary["mask"]["auroc_reward"] == opinion["auroc_reward"]
        and summary["mask"]["auroc_ceiling"] is None
    )
    assert summary["lexicons"]["treebank"]["decisive_share"] < opinion["decisive_share"]
    assert 0 < opinion["first_pieces"]["decisive_share"] != opinion["decisive_share"]
    side = lines_of(output / "pairs.jsonl")[0]["chosen"]
    word = "".join(
        text for text, decisive in zip(side["tokens"], side["decisive"], strict=True) if decisive
    ).strip()
    assert word in ("superb", "lovely") and "underlined" in (output / "report.html").read_text()
    capsys.readouterr()
    (tmp_path / "words.txt").write_text("film\n")
    assert main(["--config", str(tmp_path / "config.yaml")]) == 0
    assert "po: finished before" in capsys.readouterr().out
    assert (
        json.loads((output / "summary.json").read_text())["lexicons"]["opinion"]["decisive_share"]
        != opinion["decisive_share"]
    )


def test_word_lists_that_cannot_serve_are_said_before_anything_runs(tmp_path, capsys):
    lexicons = {"lexicons": [{"path": str(tmp_path / "absent.txt"), "kind": "opinion"}]}
    assert main(["--config", str(write_config(tmp_path, evaluation=lexicons)), "--check"]) == 2
    assert "evaluation.lexicons.0.path: no such file" in capsys.readouterr().err
    config = write_config(
        tmp_path,
        evaluation=lexicons,
        tokenizer={"kind": "auto"},
        policy={"config": {"model_type": "gpt2", "vocab_size": 9}},
    )
    assert main(["--config", str(config), "--check"]) == 2
    assert "evaluation.lexicons: words are text: set tokenizer" in capsys.readouterr().err
