"""Every knob of the section `data`, from the config to what it moves.

Kills: a knob that is read from the config and left behind on its way to the code that should use it.
"""

import contextlib
import io
import json
from pathlib import Path

import datasets
import jax
import numpy as np
import pytest

from helpers.chat import BAD, CHATML, GOOD, USER, chat_tokenizer
from helpers.configs import make_config
from helpers.tiny import GPT2
from sparsepo_jax.build.data import make_training_plan
from sparsepo_jax.config.schema.data import Data, FileSource, Holdout, Ranked, ReviewsSource
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.inspect import inspect

# knob -> (a value that is not the default, what it moves)
DATA = {
    "sft": ([{"kind": "reviews", "rows": 3}], "shown"),
    "train": ([{"path": "PLACE/few.jsonl"}], "training pairs"),
    "eval": ([{"path": "PLACE/few.jsonl"}], "evaluation pairs"),
    "prompts": ([{"path": "PLACE/few.jsonl"}], "shown"),
    "prompt_words": (2, "shown"),
    "holdout": ({"share": 0.5}, "training pairs"),
    "max_length": (40, "training pairs"),
    "max_prompt_length": (10, "training pairs"),
    "separator": (" ", "training pairs"),
    "template": ("paper", "training pairs"),
    "template_arguments": ({"loud": True}, "training pairs"),
    "template_date": ("2020-02-29", "training pairs"),
    "ranked": ({"rule": "all"}, "training pairs"),
    "train_on": ("assistant", "training pairs"),
    "add_bos": (False, "training pairs"),
    "add_eos": (False, "training pairs"),
    "on_bad_row": ("error", "error"),
    "cache_dir": ("PLACE/elsewhere", "kept elsewhere"),
    "buckets": (1, "shapes"),
    "strata": (1, "batches"),
    "inspect_rows": (1, "shown"),
}
FILE = {
    "path": ("PLACE/few.jsonl", "training pairs"),
    "split": ("train[:50%]", "training pairs"),
    "subset": ("second", "training pairs"),
    "columns": ({"chosen": "rejected", "rejected": "chosen"}, "training pairs"),
    "weight": (2.0, "batches"),
    "exchanged": (True, "training pairs"),
}
REVIEWS = {
    "rows": (9, "training pairs"),
    "seed": (1, "training pairs"),
    "weight": (2.0, "batches"),
    "exchanged": (True, "training pairs"),
}
RANKED = {"rule": "best_others", "margin": 2.0, "score": "votes"}
HOLDOUT = {
    "share": ({"share": 0.2}, "training pairs"),
    "prompts": ({"share": None, "prompts": 1}, "training pairs"),
    "seed": ({"seed": 1}, "training pairs"),
}


def test_every_knob_is_named_here():
    assert DATA.keys() == Data.model_fields.keys()
    assert FILE.keys() == FileSource.model_fields.keys() - {"kind"}
    assert REVIEWS.keys() == ReviewsSource.model_fields.keys() - {"kind"}
    assert HOLDOUT.keys() == Holdout.model_fields.keys()
    assert RANKED.keys() == Ranked.model_fields.keys()


def make_rows(count):
    """Pairs of text and of messages in turn, of many lengths, and a bad row at the end."""
    lengths = np.random.default_rng(0).integers(1, 60, (count, 3))
    rows = []
    for n, (prompt, chosen, rejected) in enumerate(lengths):
        if n % 2:
            rows.append(
                {"prompt": f"{n} is " + "p" * prompt, "chosen": "c" * chosen, "rejected": "r" * rejected}
            )
        else:
            answer = GOOD | {"content": f"Hello {n} " + "c" * chosen}
            more = [] if n % 8 else [USER, GOOD]
            rows.append({"prompt": [USER], "chosen": [answer, *more], "rejected": [BAD, *more]})
    ranked = {"prompt": "Which?", "responses": [" a", " b", " c"], "scores": [3, 2, 1], "votes": [1, 3, 2]}
    return [*rows, ranked, {"prompt": "no answers"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a tokenizer, files of pairs and a data set that has two subsets."""
    place = tmp_path_factory.mktemp("knobs")
    template = "{{ strftime_now('%Y') }}{% if loud %}!{% endif %}" + CHATML
    chat_tokenizer(template).save_pretrained(place / "tokenizer")
    rows = make_rows(64)
    write(place / "pairs.jsonl", rows)
    write(place / "few.jsonl", rows[3:7])
    (place / "set").mkdir()
    write(place / "set" / "first.jsonl", rows[1:9:2])
    write(place / "set" / "second.jsonl", rows[9:21:2])
    subsets = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("first", "second"))
    (place / "set" / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    return place


def run_with(place, output_dir, stages=("po",), **data) -> Run:
    pairs = [{"path": "PLACE/pairs.jsonl"}]
    defaults = {
        "train": pairs,
        "eval": [{"path": "PLACE/pairs.jsonl", "split": "train[:9]"}],
        "prompts": pairs,
        "template_date": "2026-01-01",
        "on_bad_row": "skip",
        "cache_dir": "PLACE/cache",
    }
    placed = json.loads(json.dumps(defaults | data).replace("PLACE", str(place)))
    config = make_config(
        stages=list(stages),
        output_dir=str(output_dir),
        policy={"config": GPT2 | {"vocab_size": 300, "n_positions": 256}},
        tokenizer={"kind": "pretrained", "path": str(place / "tokenizer")},
        po={"batch_size": 8, "steps": 3000},
        data=placed,
    )
    return Run(config, Stop())


def observe(place, **data) -> dict:
    """What a run makes of its data."""
    run = run_with(place, place / "run", **data)
    seen = {"error": None, "kept elsewhere": (place / "elsewhere").exists()}
    try:
        train, evaluated = run.training_pairs, run.evaluation_pairs
    except UserError as error:
        return seen | {"error": str(error)}
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    plan = make_training_plan(run.config, "po", train, mesh)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        inspect(run)
    return seen | {
        "training pairs": train.digest(),
        "evaluation pairs": evaluated.digest(),
        "batches": [plan.batch(n).rows.tolist() for n in range(20)],
        "shapes": plan.shapes,
        "shown": shown.getvalue(),
        "kept elsewhere": (place / "elsewhere").exists(),
    }


@pytest.fixture(scope="module")
def usual(place):
    return observe(place)


@pytest.mark.parametrize("knob", DATA)
def test_every_knob_of_data_moves_something(place, usual, knob):
    value, moved = DATA[knob]
    assert observe(place, **{knob: value})[moved] != usual[moved]


@pytest.mark.parametrize("knob", FILE)
def test_every_knob_of_a_file_moves_something(place, monkeypatch, knob):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(place / "datasets"))
    value, moved = FILE[knob]
    source = {"path": "PLACE/set", "subset": "first"} if knob == "subset" else {"path": "PLACE/pairs.jsonl"}
    before, after = (observe(place, train=[source | change]) for change in ({}, {knob: value}))
    assert after[moved] != before[moved] and after["error"] is None


@pytest.mark.parametrize("knob", REVIEWS)
def test_every_knob_of_the_reviews_moves_something(place, knob):
    value, moved = REVIEWS[knob]
    source = {"kind": "reviews", "rows": 20}
    before, after = (observe(place, train=[source | change]) for change in ({}, {knob: value}))
    assert after[moved] != before[moved]


@pytest.mark.parametrize("knob", RANKED)
def test_every_knob_of_ranked_answers_moves_something(place, usual, knob):
    assert observe(place, ranked={knob: RANKED[knob]})["training pairs"] != usual["training pairs"]


@pytest.mark.parametrize("knob", HOLDOUT)
def test_every_knob_of_the_holdout_moves_something(place, knob):
    changed, moved = HOLDOUT[knob]
    before, after = (observe(place, holdout={"share": 0.5} | change) for change in ({}, changed))
    assert after[moved] != before[moved]


def test_a_run_that_only_looks_counts_bad_rows_and_writes_no_list(place, tmp_path, capsys):
    inspect(run_with(place, tmp_path / "looks", ["inspect"], eval=[], prompts=[]))
    output = capsys.readouterr().out
    counted = "note: 1 of 66 rows are bad and left out"
    assert f"{counted}; the first is {place}/pairs.jsonl:66: no chosen, rejected" in output
    assert not (tmp_path / "looks").exists()
    inspect(run_with(place, tmp_path / "trains", ["inspect", "po"], eval=[], prompts=[]))
    listed = tmp_path / "trains" / "bad_rows_train.jsonl"
    assert listed.exists() and f"{counted}; they are listed in {listed}" in capsys.readouterr().out


def test_an_evaluation_needs_the_training_pairs_only_where_some_of_them_are_held_out(place):
    """Whoever trained elsewhere may not have them."""
    gone, few = [{"path": "PLACE/gone.jsonl"}], [{"path": "PLACE/few.jsonl"}]
    alone = run_with(place, place / "run", ["eval"], train=gone, eval=few)
    assert len(alone.evaluation_pairs) == 4
    assert not any("gone" in path for path in alone.marks.depends("eval")["files"])
    held_out = run_with(place, place / "run", ["eval"], train=gone, eval=few, holdout={"share": 0.5})
    assert any("gone" in path for path in held_out.marks.depends("eval")["files"])
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        _ = held_out.evaluation_pairs
