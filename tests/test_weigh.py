"""The stage weigh: weights by hand, rows that align with their tokens, and a run that reads them back."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.chat import BAD, CHATML, GOOD, LLAMA, USER, chat_tokenizer
from helpers.loading import Load
from helpers.program import lines_of, write_config
from sparsepo_jax.build.weighing import as_written, make_weigh
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.models import Policy
from sparsepo_jax.config.schema.token_weights import Weigh
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.sources import Exchanged, FileRows, GeneratedRows, open_sources
from sparsepo_jax.data.tokenizers import make_byte_tokenizer, train_bpe_tokenizer, vocabulary_digest
from sparsepo_jax.data.weighing import (
    critical_weights,
    log_ratio_weights,
    sepo_weights,
    tgdpo_weights,
    tis_weights,
)
from sparsepo_jax.eval.records import pair_record
from sparsepo_jax.eval.scores import PairScore, ResponseScore
from sparsepo_jax.main import main
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.run.resume import Marks
from sparsepo_jax.run.sweep import parse_axes, plan_sweep
from sparsepo_jax.stages.weigh import Weighing, _ids

CONFIGS = Path(__file__).parent.parent / "configs" / "weigh"

# ---------------------------------------------------------------- by hand

# Four tokens and EOS; positive - negative is 2, -1, 0, 0 and 5.
POSITIVE = np.array([-1.0, -3.0, -2.0, -0.5, -1.0])
NEGATIVE = np.array([-3.0, -2.0, -2.0, -0.5, -6.0])


def test_tis_weights_are_ranks_on_a_line_and_equal_ones_share_theirs():
    """Ranks of 2, -1, 0, 0 are 3, 0, 1.5, 1.5; of their negatives 0, 3, 1.5, 1.5. EOS has none."""
    settings = {"least": 0.7, "most": 1.3, "end": 0.0}
    chosen = tis_weights(POSITIVE, NEGATIVE, 1, is_chosen=True, **settings)
    np.testing.assert_allclose(chosen, [1.3, 0.7, 1.0, 1.0, 0.0])
    rejected = tis_weights(POSITIVE, NEGATIVE, 1, is_chosen=False, **settings)
    np.testing.assert_allclose(rejected, [0.7, 1.3, 1.0, 1.0, 0.0])
    single = tis_weights(POSITIVE[:2], NEGATIVE[:2], 1, is_chosen=True, **settings)
    np.testing.assert_allclose(single, [1.0, 0.0])
    assert tis_weights(POSITIVE[:1], NEGATIVE[:1], 1, is_chosen=True, **settings).tolist() == [0.0]


def test_tgdpo_weights_are_one_and_the_runs_reward():
    """0.5 x 0.2 x (2, -1, 0, 0, 5) = 0.2, -0.1, 0, 0, 0.5."""
    settings = {"alpha": 0.5, "beta": 0.2}
    chosen = tgdpo_weights(POSITIVE, NEGATIVE, is_chosen=True, **settings)
    np.testing.assert_allclose(chosen, [1.2, 0.9, 1.0, 1.0, 1.5])
    rejected = tgdpo_weights(POSITIVE, NEGATIVE, is_chosen=False, **settings)
    np.testing.assert_allclose(rejected, [0.8, 1.1, 1.0, 1.0, 0.5])


def test_critical_weights_are_contrasted_probabilities_and_their_rest():
    """2 log p - log q = 1, -4, -2, -0.5: at most log 1. The end of a response weighs 1."""
    settings = {"contrast": 1.0, "only_rejected": False}
    chosen = critical_weights(POSITIVE, NEGATIVE, 1, is_chosen=True, **settings)
    np.testing.assert_allclose(chosen, [1.0, np.exp(-4), np.exp(-2), np.exp(-0.5), 1.0])
    rejected = critical_weights(POSITIVE, NEGATIVE, 1, is_chosen=False, **settings)
    np.testing.assert_allclose(rejected, [0.0, 1 - np.exp(-4), 1 - np.exp(-2), 1 - np.exp(-0.5), 1.0])
    ones = critical_weights(POSITIVE, NEGATIVE, 1, is_chosen=True, contrast=1.0, only_rejected=True)
    assert ones.tolist() == [1.0] * 5
    assert critical_weights(POSITIVE, NEGATIVE, 0, is_chosen=False, **settings)[-1] == 0.0


def test_sepo_keeps_the_largest_of_chosen_and_the_smallest_of_rejected_the_earlier_of_equal_ones():
    """Half of five tokens is 2.5, so 3: log-ratios 2, -1, 0, 0, 5."""
    assert sepo_weights(POSITIVE, NEGATIVE, is_chosen=True, share=0.5).tolist() == [1, 0, 1, 0, 1]
    assert sepo_weights(POSITIVE, NEGATIVE, is_chosen=False, share=0.5).tolist() == [0, 1, 1, 1, 0]
    assert sepo_weights(POSITIVE, NEGATIVE, is_chosen=True, share=0.01).tolist() == [0, 0, 0, 0, 1]


def test_log_ratios_lose_their_sign():
    assert log_ratio_weights(POSITIVE, NEGATIVE).tolist() == [2, 1, 0, 0, 5]


def test_weights_are_written_with_the_digits_of_float32():
    assert as_written(np.array([0.7, 1 / 3])) == [0.7, 0.33333334]


SETTINGS = {
    "tis": {"least": -1.0, "most": 3.0, "end": 0.5},
    "tgdpo": {"alpha": 2.0, "beta": 7.0},
    "critical": {"contrast": 3.0, "only_rejected": True},
    "sepo": {"share": 0.9},
    "log_ratio": {},
    "mask": {"of": "kl"},
}
BASE = {"tgdpo": {"beta": 0.1}}  # else it is the scored run's


@pytest.mark.parametrize("kind", members(Weigh))
def test_every_setting_of_every_kind_moves_weights(kind):
    section = members(Weigh)[kind]
    runs = {name: name for name in ("run", "positive", "negative") if name in section.model_fields}
    assert SETTINGS[kind].keys() == section.model_fields.keys() - {"kind", *runs}
    first = {"logp": POSITIVE, "ref_logp": NEGATIVE, "reward_mask": POSITIVE, "kl_mask": NEGATIVE}
    scores = [first, first | {"logp": NEGATIVE}][: len(runs)]

    def weights(**changes) -> list[float]:
        settings = section(kind=kind, **runs, **(BASE.get(kind, {}) | changes))
        return np.concatenate([make_weigh(settings)(scores, 1, chosen) for chosen in (True, False)]).tolist()

    for name, value in SETTINGS[kind].items():
        assert weights() == weights() != weights(**{name: value}), name


# ---------------------------------------------------------------- from scores to a run that reads them

PAIRS = [{"kind": "reviews", "rows": 30, "seed": 2}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on the pairs, one on the exchanged pairs, both scored on the pairs; config.yaml beside them."""
    place = tmp_path_factory.mktemp("weigh")
    config = write_config(
        place,
        stages=["po", "score"],
        data={"eval": PAIRS},
        po={"steps": 2},
        report={"pairs": 3},
    )
    objective = "objective={kind: dpo, beta: 0.1}"
    command = ["--config", str(config), objective, "--sweep", "data.train.0.exchanged=false,true"]
    assert main(command) == 0
    return place


def weigh_into(place, name, settings, *overrides) -> Path:
    output = place / name
    text = json.dumps({"run": str(place / "run" / "exchanged=false")} | settings)
    command = ["--config", str(place / "config.yaml"), "stages=[weigh]", f"output_dir={output}"]
    assert main([*command, f"weigh={text}", *overrides]) == 0
    return output


def two(place) -> dict:
    runs = {"positive": False, "negative": True}
    return {name: str(place / "run" / f"exchanged={str(way).lower()}") for name, way in runs.items()}


@pytest.fixture(scope="module")
def tis(place):
    settings = {"kind": "tis", **two(place)}
    command = ["--config", str(place / "config.yaml"), "stages=[weigh]", f"output_dir={place / 'tis'}"]
    assert main([*command, f"weigh={json.dumps(settings)}"]) == 0
    return place / "tis"


def test_exchanged_pairs_are_trained_the_other_way_and_scored_as_they_are(place):
    ours, theirs = (
        lines_of(place / "run" / f"exchanged={way}" / "scores.jsonl") for way in ("false", "true")
    )
    assert [pair["chosen"]["token_ids"] for pair in ours] == [pair["chosen"]["token_ids"] for pair in theirs]
    margins = [np.mean([pair["margin"] for pair in pairs]) for pairs in (ours, theirs)]
    assert margins[0] > 0 > margins[1]


def test_every_weight_stands_on_the_token_that_was_scored(place, tis):
    """Recomputed for each row; EOS (0 in the reviews' vocabulary) weighs nothing."""
    pairs = zip(
        *(lines_of(Path(run) / "scores.jsonl") for run in two(place).values()),
        lines_of(tis / "weighed.jsonl"),
        strict=True,
    )
    for positive, negative, row in pairs:
        assert row["prompt_ids"] == positive["prompt_ids"] and row["origin"] == positive["origin"]
        for side in ("chosen", "rejected"):
            ids, weights = row[f"{side}_ids"], row[f"{side}_weights"]
            assert ids == positive[side]["token_ids"] and ids[-1] == 0 and weights[-1] == 0
            assert len(weights) == len(ids) == len(row[f"{side}_decisive"])
            contrast = np.subtract(positive[side]["logp"], negative[side]["logp"])[:-1]
            order = np.argsort(weights[:-1])
            assert (np.diff(contrast[order]) * (1 if side == "chosen" else -1) >= 0).all()
            assert min(weights[:-1]) == 0.7 and max(weights[:-1]) == 1.3


@pytest.mark.parametrize("stages", ["[score]", pytest.param("[po, score]", marks=pytest.mark.slow)])
def test_a_run_reads_the_weights_back_exactly(place, tis, stages):
    """The masks of a run with the mask `given` are what the file says; po trains with them."""
    output, file = place / f"final{len(stages)}", tis / "weighed.jsonl"
    data = f'data.train=[{{path: {file}, split: "train[:20]"}}]', f"data.eval=[{{path: {file}}}]"
    mask = "objective={kind: dpo, beta: 0.1, mask: {kind: given}}"
    command = ["--config", str(place / "config.yaml"), f"stages={stages}", f"output_dir={output}"]
    assert main([*command, *data, mask]) == 0
    for scored, row in zip(lines_of(output / "scores.jsonl"), lines_of(file), strict=True):
        for side in ("chosen", "rejected"):
            assert scored[side]["token_ids"] == row[f"{side}_ids"]
            assert scored[side]["decisive"] == row[f"{side}_decisive"]
            assert np.array_equal(np.float32(scored[side]["reward_mask"]), np.float32(row[f"{side}_weights"]))


def test_the_same_scores_give_the_same_bytes_and_are_weighed_once(place, tis, capsys):
    again = weigh_into(place, "again", {"kind": "tgdpo"})
    first = {name: (again / name).read_bytes() for name in ("weighed.jsonl", "weights.html")}
    weigh_into(place, "again", {"kind": "tgdpo"})
    assert "weigh: finished before" in capsys.readouterr().out
    weigh_into(place, "once_more", {"kind": "tgdpo"})
    assert {name: (place / "once_more" / name).read_bytes() for name in first} == first
    other = weigh_into(place, "again", {"kind": "tgdpo", "alpha": 0.1})
    assert (other / "weighed.jsonl").read_bytes() != first["weighed.jsonl"]


def test_the_picture_shows_weights_on_tokens_and_the_contrast_of_two_runs(place, tis):
    page = (tis / "weights.html").read_text()
    summary = json.loads((tis / "weigh" / "summary.json").read_text())
    row = lines_of(tis / "weighed.jsonl")[0]
    assert page.count('<article class="pair">') == 3 and "<script" not in page
    assert f"weight {row['chosen_weights'][0]:.3f}\ncontrast" in page and "(positive" in page
    assert "Tokens of the largest weight" in page and 'class="t decisive"' in page
    assert summary["pairs"] == 30 and 0 < summary["auroc_decisive"] < 1
    assert summary["chosen"]["zeros"] == pytest.approx(30 / summary["chosen"]["tokens"])
    of_one = (weigh_into(place, "page", {"kind": "sepo"}) / "weights.html").read_text()
    assert "Log-ratio" in of_one and "Contrast" not in of_one and "(policy" in of_one


def test_the_plan_says_what_is_weighed(place, tmp_path):
    settings = json.dumps({"kind": "tis", **two(place)})
    file = tmp_path / "run" / "weighed.jsonl"
    overrides = ["stages=[weigh, po]", f"output_dir={file.parent}", f"weigh={settings}"]
    data = [f"data.train=[{{path: {file}}}]"]
    mask = ["objective={kind: sparsepo, mask: {kind: given}}"]
    text = make_plan_text(load_config(place / "config.yaml", overrides + data + mask)[0])
    assert "\nweigh       tis, from " in text and "unknown pairs an epoch" in text
    absent = [f"weigh={{kind: sepo, run: {tmp_path / 'none'}}}"]
    with pytest.raises(ConfigError, match="weigh: no scores there yet: .*none/scores.jsonl"):
        make_plan_text(load_config(place / "config.yaml", overrides + absent)[0])


# ---------------------------------------------------------------- what is refused


def refused(place, capsys, settings, *overrides) -> str:
    command = ["--config", str(place / "config.yaml"), "stages=[weigh]", f"output_dir={place / 'refused'}"]
    assert main([*command, f"weigh={json.dumps(settings)}", *overrides]) == 1
    assert not (place / "refused" / "weighed.jsonl").exists()
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def other(place, tmp_path):
    """A copy of the second run, to be spoiled."""
    shutil.copytree(place / "run" / "exchanged=true", tmp_path / "other")
    return tmp_path / "other"


def spoil(file: Path, change) -> None:
    lines = lines_of(file)
    change(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[3]["chosen"]["token_ids"].reverse(), "scores.jsonl:4: another pair than in"),
        (lambda lines: lines.pop(), "scores.jsonl:30: another pair than in"),
        (lambda lines: lines[1]["rejected"]["logp"].pop(), ":2: rejected.logp must have a number a token"),
        (
            lambda lines: lines[1]["rejected"]["logp"].__setitem__(0, float("nan")),
            ":2: rejected.logp holds a number that is not finite",
        ),
        (lambda lines: lines[0].pop("prompt_ids"), ":1: no scored pair"),
    ],
)
def test_scores_that_do_not_fit_are_refused_by_file_and_line(place, other, capsys, change, said):
    spoil(other / "scores.jsonl", change)
    assert said in refused(place, capsys, {"kind": "tis", **two(place), "negative": str(other)})


def test_runs_without_fitting_scores_are_refused(place, other, capsys):
    settings = {"kind": "tis", **two(place), "negative": str(other)}
    marks = json.loads((other / "stages.json").read_text())
    again = marks | {"po": marks["po"] | {"finished": 1.0}}
    (other / "stages.json").write_text(json.dumps(again))
    assert "was trained again since these scores" in refused(place, capsys, settings)
    del marks["score"]
    (other / "stages.json").write_text(json.dumps(marks))
    assert "its stage score is not finished" in refused(place, capsys, settings)
    (other / "scores.jsonl").unlink()
    assert "found none; run the stage score there" in refused(place, capsys, settings)


def test_token_ids_of_another_vocabulary_are_refused(place, other, tis, capsys, tmp_path):
    facts = other / "score" / "facts.json"
    facts.write_text('{"vocabulary": "0123", "other_turns": true}')
    settings = {"kind": "tis", **two(place), "negative": str(other)}
    assert "what users and tools say between" in refused(place, capsys, settings)
    facts.write_text('{"vocabulary": "0123"}')
    assert "token ids of different vocabularies" in refused(place, capsys, settings)
    facts.unlink()
    assert "run the stage score there again" in refused(place, capsys, settings)
    one = {"kind": "sepo", "run": two(place)["positive"]}
    assert "another vocabulary (digest " in refused(place, capsys, one, "tokenizer={kind: bytes}")
    with pytest.raises(UserError, match=r"weighed.jsonl:1: its token ids are of another vocabulary"):
        Load(tmp_path)([FileRows(str(tis / "weighed.jsonl"))], make_byte_tokenizer())


def test_a_stage_that_weighs_needs_its_section_and_stands_before_po(place):
    for overrides, said in (
        (["stages=[weigh]"], "weigh: needed by stage weigh"),
        (["stages=[po, weigh]"], "sft/weigh, po"),
        (["weigh={kind: critical, positive: a, negative: a/scores.jsonl}"], "are the same run"),
        (["weigh={kind: tis, positive: a, negative: b, least: 2}"], "least (2) is above most"),
        (["data.sft.0.exchanged=true"], "these rows are no pairs"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(place / "config.yaml", overrides)
        assert any(said in line for line in caught.value.lines), caught.value.lines


# ---------------------------------------------------------------- rows of ids, templates, truncation

TEXT = {"prompt": "Is né 🙂 good? ", "chosen": "Yes, it is né 🙂 to see.", "rejected": "No né"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def weighed_rows(table, tokenizer, directory, kind="sepo"):
    """What the stage makes of a table's rows, with log-probs by chance; and the file that it writes."""
    draws = np.random.default_rng(0)
    scores = []
    for n in range(len(table)):
        responses = (ResponseScore(*draws.normal(size=(5, len(table.response(n, p))))) for p in range(2))
        scores.append(PairScore(n, {"loss": 0.0, "margin": 0.0}, tuple(responses)))
    runs = {"tis": {"positive": "a", "negative": "b"}}.get(kind, {"run": "a"})
    config = SimpleNamespace(
        weigh=members(Weigh)[kind](kind=kind, **runs), policy=Policy(), report=SimpleNamespace(pairs=1)
    )
    records = [pair_record(score, table, tokenizer, with_text=False) for score in scores]
    weighing = Weighing(
        SimpleNamespace(config=config, tokenizer=tokenizer), vocabulary_digest(tokenizer), config.weigh
    )
    others = [record | {"chosen": record["chosen"] | {"logp": record["chosen"]["kl"]}} for record in records]
    rows = list(weighing.rows(iter(zip(records, others)) if kind == "tis" else ([each] for each in records)))
    (directory / "weighed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows, FileRows(str(directory / "weighed.jsonl"))


@pytest.mark.parametrize("max_length", [200, 20])
@pytest.mark.parametrize(
    ("row", "tokenizer"),
    [
        (TEXT, make_byte_tokenizer()),
        (TEXT, train_bpe_tokenizer([TEXT["prompt"] + TEXT["chosen"]] * 9, 290)),
        (CHAT, chat_tokenizer(CHATML, eos="<|im_end|>")),
        (CHAT, chat_tokenizer(LLAMA, eos="<|eot|>")),
    ],
    ids=["bytes", "bpe", "chatml", "llama"],
)
def test_rows_are_read_back_token_for_token_whatever_wrote_and_cut_them(row, tokenizer, max_length, tmp_path):
    """Kills: weights that are placed by tokenising the text again."""
    load = Load(
        tmp_path, max_length=max_length, max_prompt_length=max_length // 2, template_date="2026-01-01"
    )
    table = load([row], tokenizer)
    (written,), file = weighed_rows(table, tokenizer, tmp_path)
    read = load([file], tokenizer)
    assert read.prompt(0).tolist() == table.prompt(0).tolist()
    for p, side in enumerate(("chosen", "rejected")):
        assert read.response(0, p).tolist() == table.response(0, p).tolist()
        assert read.weights(0, p).tolist() == written[f"{side}_weights"]
    shorter = load([file], tokenizer, max_length=12, max_prompt_length=6)
    kept = len(shorter.response(0, 0))
    assert shorter.weights(0, 0).tolist() == written["chosen_weights"][:kept]


def test_only_tokens_that_end_a_turn_are_its_end(tmp_path):
    """<|im_end|> and the line end behind it; nothing of a response that was cut before them."""
    tokenizer = chat_tokenizer(CHATML, eos="<|im_end|>")
    load = Load(tmp_path)
    table = load([CHAT], tokenizer)
    (row,), _ = weighed_rows(table, tokenizer, tmp_path, "tis")
    assert tokenizer.decode(row["chosen_ids"][-2:]) == "<|im_end|>\n"
    assert row["chosen_weights"][-2:] == [0, 0] and 0 not in row["chosen_weights"][:-2]
    prompt = len(table.prompt(0))
    cut = load([CHAT], tokenizer, max_length=prompt + 3, max_prompt_length=prompt)
    (row,), _ = weighed_rows(cut, tokenizer, tmp_path, "tis")
    assert len(row["chosen_ids"]) == 3 and 0 not in row["chosen_weights"]


def test_rows_without_a_tokenizer_have_ids_alone(tmp_path):
    load = Load(tmp_path)
    ids = {"prompt_ids": [3, 1], "chosen_ids": [4, 1, 5], "rejected_ids": [9]}
    (row,), file = weighed_rows(load([ids], None), None, tmp_path)
    assert row.keys() == {*ids, "chosen_weights", "rejected_weights", "origin"}
    assert load([file], None).weights(0, 0).tolist() == row["chosen_weights"]


def test_a_weight_of_a_pair_stays_with_it(tmp_path):
    load = Load(tmp_path)
    ids = {"prompt_ids": [3], "chosen_ids": [4, 1, 5], "rejected_ids": [9], "pair_weight": 2.5}
    (row,), file = weighed_rows(load([ids], None), None, tmp_path)
    assert row["pair_weight"] == 2.5 and load([file], None).pair_weight_N.tolist() == [2.5]


def test_turns_of_others_stay_between_the_tokens_that_are_weighed(tmp_path):
    load = Load(tmp_path)
    ids = {"prompt_ids": [3], "chosen_ids": [4, 1, 5], "rejected_ids": [9], "chosen_before": [[1, [7, 8]]]}
    table = load([ids], None)
    (row,), file = weighed_rows(table, None, tmp_path)
    again = load([file], None)
    assert row["chosen_before"] == [[1, [7, 8]]] and again.digest() == table.digest()
    assert len(row["chosen_weights"]) == 3


def test_tokens_that_end_a_turn_in_the_middle_have_no_rank(tmp_path):
    """And runs that read other turns of users have scored other pairs."""
    tokenizer = chat_tokenizer(CHATML, eos="<|im_end|>")
    end, a, b = (
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
        *tokenizer.encode("ab", add_special_tokens=False),
    )
    ids = {"prompt_ids": [a], "chosen_ids": [a, b, end, b, a, end], "rejected_ids": [b, end]}
    table = Load(tmp_path)([ids | {"chosen_before": [[3, [a, a]]]}], tokenizer)
    (row,), _ = weighed_rows(table, tokenizer, tmp_path, "tis")
    assert [weight == 0 for weight in row["chosen_weights"]] == [False, False, True, False, False, True]
    other = {"token_ids": [a], "before_ids": [[1, [b]]]}
    records = [{"prompt_ids": [a], "chosen": {"token_ids": [a]}, "rejected": each} for each in (other, other)]
    assert _ids(records[0]) == _ids(records[1])
    assert _ids(records[0]) != _ids(records[1] | {"rejected": other | {"before_ids": [[1, [a]]]}})


def test_a_failure_of_the_first_process_is_one_of_all(monkeypatch, tmp_path):
    """Kills: others that go on to po without the rows."""
    marked = []
    run = SimpleNamespace(
        output_dir=tmp_path,
        config=SimpleNamespace(weigh=members(Weigh)["sepo"](kind="sepo", run="a")),
        marks=SimpleNamespace(finished=lambda *asked: False),
        unmark=lambda stage: None,
        mark=lambda stage, began_s: marked.append(stage),
    )
    stage = sys.modules["sparsepo_jax.stages.weigh"]
    monkeypatch.setattr(stage, "_find_scores", lambda *asked: tmp_path / "scores.jsonl")
    monkeypatch.setattr(stage, "_common_vocabulary", lambda *asked: None)
    told = []
    monkeypatch.setattr(stage, "as_the_first", lambda x: told.append(bool(x)) or np.array(True))
    with pytest.raises(AttributeError):  # of the run above, which has no tokenizer
        stage.weigh(run)
    monkeypatch.setattr(stage.jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match="the first process of this run says why"):
        stage.weigh(run)
    assert told == [True, False] and marked == []


def test_tgdpo_takes_the_beta_of_its_run_and_cut_responses_are_told(place, other, capsys):
    marks = json.loads((other / "stages.json").read_text())
    marks["score"]["depends"]["objective"]["beta"] = 0.3
    (other / "stages.json").write_text(json.dumps(marks))
    facts = json.loads((other / "score" / "facts.json").read_text())
    assert facts["cut_responses"] == 0
    (other / "score" / "facts.json").write_text(json.dumps(facts | {"cut_responses": 7}))
    output = weigh_into(place, "tgdpo", {"kind": "tgdpo", "run": str(other)})
    assert "7 responses were cut" in capsys.readouterr().out
    assert json.loads((output / "weigh" / "summary.json").read_text())["settings"]["beta"] == 0.3
    score, row = lines_of(other / "scores.jsonl")[0]["chosen"], lines_of(output / "weighed.jsonl")[0]
    expected = 1 + 0.5 * 0.3 * (np.array(score["logp"]) - np.array(score["ref_logp"]))
    np.testing.assert_allclose(row["chosen_weights"], expected, rtol=1e-5)
    del marks["score"]["depends"]["objective"]["beta"]
    (other / "stages.json").write_text(json.dumps(marks))
    assert "set weigh.beta" in refused(place, capsys, {"kind": "tgdpo", "run": str(other)})


def test_truth_values_may_stand_for_spans(tmp_path):
    load = Load(tmp_path)
    ids = {"prompt_ids": [3], "chosen_ids": [4, 1, 5], "rejected_ids": [9]}
    marks = {"chosen_decisive": [False, True, False], "rejected_decisive": [True]}
    table = load([ids | marks], None)
    assert table.decisive(0, 0).tolist() == marks["chosen_decisive"] and table.decisive(0, 1).tolist() == [
        True
    ]
    with pytest.raises(UserError, match="2 truth values for a response of 3 tokens"):
        load([ids | marks | {"chosen_decisive": [True, False]}], None)


def test_exchanged_rows_take_all_their_columns_along(tmp_path):
    row = {
        "prompt": "Hi",
        "chosen": "a",
        "rejected": "b",
        "chosen_weights": [2.0],
        "rejected_decisive": [[0, 1]],
    }
    source = GeneratedRows("rows", [row], 2.0)
    (opened,) = open_sources(Exchanged(source))
    assert [each.content for each in opened.rows()] == [
        {
            "prompt": "Hi",
            "rejected": "a",
            "chosen": "b",
            "rejected_weights": [2.0],
            "chosen_decisive": [[0, 1]],
        }
    ]
    assert opened.fingerprint != open_sources(source)[0].fingerprint and Exchanged(source).weight == 2.0


def test_a_run_from_before_exchanged_is_the_same_run(tmp_path):
    """Kills: a setting that was added to the sources and makes stages.json of older runs another run's."""
    config, _ = load_config(write_config(tmp_path, stages=["sft", "po"]))
    assert "exchanged" not in json.dumps(Marks(config).depends("po"))
    named, _ = load_config(
        tmp_path / "config.yaml", ["data.eval={a: [{kind: reviews}]}", "stages=[score]", "evaluation.main=a"]
    )
    assert "exchanged" not in json.dumps(Marks(named).depends("score"))
    changed, _ = load_config(tmp_path / "config.yaml", ["data.train.0.exchanged=true"])
    assert Marks(changed).depends("po") != Marks(config).depends("po")


# ---------------------------------------------------------------- recipes


@pytest.fixture
def weighed(monkeypatch):
    """benchmarks/weighed.py."""
    monkeypatch.syspath_prepend(str(CONFIGS.parent.parent / "benchmarks"))
    return importlib.import_module("weighed")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_of_a_recipe_hand_their_files_on(path, weighed, monkeypatch):
    """Scores of the first are what the second weighs, and its file is what the third trains on."""
    monkeypatch.chdir(CONFIGS.parent.parent)
    score, weigh, train = weighed.commands_of(path)
    if "--sweep" in score:
        at = score.index("--sweep")
        _, planned, _ = plan_sweep(score[1], score[2:at], parse_axes(score[at + 1 :]))
        scored = [run.config for run in planned]
        assert [config.data.train[0].exchanged for config in scored] == [False, True]
    else:
        scored = [load_config(score[1], score[2:])[0]]
    weighing, training = load_config(weigh[1], weigh[2:])[0], load_config(train[1], train[2:])[0]
    assert weighing.stages == ["weigh"] and set(weighing.weigh.runs) == {run.output_dir for run in scored}
    files = {source.path for source in [*training.data.train, *training.data.eval]}
    assert files == {f"{weighing.output_dir}/weighed.jsonl"}
    assert training.sft.taken_from == scored[0].output_dir
    assert Marks(training).depends("sft") == Marks(scored[0]).depends("sft")
    assert training.objective.mask.kind == "given" and weighing.weigh == training.weigh
    for config in scored:
        assert config.data.eval[0] == config.data.train[0].model_copy(update={"exchanged": False})


def test_every_kind_of_weights_has_its_recipe():
    kinds = {load_config(path)[0].weigh.kind for path in CONFIGS.glob("*.yaml")}
    assert kinds == members(Weigh).keys()


def test_the_table_trains_without_weights_what_a_recipe_trains_with_them(weighed):
    """From the same model, on the same pairs. Kills: another rate, other rows, a mask that stays."""
    for name in weighed.WITHOUT:
        commands = weighed.Chain(CONFIGS / f"{name}.yaml", 1, Path()).commands()
        with_them, without = (load_config(command[1], command[2:])[0] for command in commands[2:])
        assert with_them.seed == without.seed == 1 and without.objective.mask is None
        changed = {"output_dir", "objective"}
        with_them, without = (config.model_dump(exclude=changed) for config in (with_them, without))
        assert with_them == without


def response(*, policy, positive, negative):
    """As the three runs score it: two tokens and the one that ends it."""
    of_runs = [{"logp": logp, "ref_logp": [0.0] * 3} for logp in (policy, positive, negative)]
    return [{"token_ids": [5, 6, 0], "reward_mask": [1.0] * 3, "kl_mask": [1.0] * 3} | of for of in of_runs]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        # The positive run likes the first token in both. Weights: 1.3, 0.7 (chosen) and 0.7, 1.3 (rejected).
        ([1.0, -1.0, 9.0], [1.0, -1.0, 0.0], (1.0, 0.0)),  # agrees with them: 0.6 and -0.6
        ([1.0, 1.0, -9.0], [-1.0, -1.0, 0.0], (1.0, 1.0)),  # tells the answers apart: 2 and -2
    ],
)
def test_exchanged_weights_tell_who_only_agrees_with_them(tmp_path, weighed, chosen, rejected, expected):
    accuracies = importlib.import_module("exchanged_weights").accuracies
    config = load_config(CONFIGS / "tis.yaml")[0]
    likes = {"positive": [1.0, 0.0, 0.0], "negative": [0.0, 0.0, 0.0]}
    sides = zip(response(policy=chosen, **likes), response(policy=rejected, **likes), strict=True)
    for run, (of_chosen, of_rejected) in zip(("final", *config.weigh.runs), sides, strict=True):
        (tmp_path / run).mkdir(parents=True)
        record = json.dumps({"chosen": of_chosen, "rejected": of_rejected})
        earlier = "" if run == "final" else "{}\n"  # the pairs to train on
        (tmp_path / run / "scores.jsonl").write_text(f"{earlier}{record}\n")
    assert accuracies(config, tmp_path, tmp_path / "final") == expected
