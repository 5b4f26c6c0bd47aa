"""Files at output_dir that are the user's, and those that a run has left there."""

import pytest

from helpers.configs import make_config
from helpers.interrupt import Interrupted
from helpers.program import write_config
from sparsepo_jax.config.load import load_config, save_config
from sparsepo_jax.main import main
from sparsepo_jax.run.places import place_mistakes
from sparsepo_jax.stages.context import Run


def test_a_run_writes_over_no_file_of_its_user(tmp_path, capsys):
    """The config itself, with its comments, or data that are named as a run's files are."""
    output = tmp_path / "run"
    output.mkdir()
    config = write_config(tmp_path, stages=["sft"]).rename(output / "config.yaml")
    config.write_text(f"# beta as in the paper\n{config.read_text()}")
    for more in ([], ["--check"]):
        assert main(["--config", str(config), *more]) != 0
        assert "holds no run, but config.yaml: a run would write" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["config.yaml"]
    settings, _ = load_config(config)
    save_config(settings, config)
    assert not list(place_mistakes(settings)), "what a run wrote itself"
    config.unlink()
    (output / "pairs.jsonl").write_text("{}")
    assert "pairs.jsonl" in "".join(place_mistakes(settings))
    assert not list(place_mistakes(settings.model_copy(update={"stages": ["report"]}))), "it only looks"
    (output / "stages.json").write_text("{}")
    assert not list(place_mistakes(settings)), "a run's own"


def test_plain_yaml_is_no_record_of_a_run(tmp_path):
    """Kills: a config by hand, laid out as a run writes it, that gives up itself and the data beside it."""
    (tmp_path / "config.yaml").write_text("stages:\n- po\ndata:\n  train:\n  - path: pairs.jsonl\n")
    (tmp_path / "pairs.jsonl").write_text("{}")
    config = make_config(output_dir=str(tmp_path), stages=["inspect", "po"])
    assert "holds no run, but config.yaml, pairs.jsonl:" in "".join(place_mistakes(config))


def test_answers_may_be_brought_to_be_measured(tmp_path):
    (tmp_path / "generations.jsonl").write_text("{}")
    asked = {"output_dir": str(tmp_path), "measure": {"text": {}}, "tokenizer": {"kind": "reviews"}}
    assert not list(place_mistakes(make_config(**asked, stages=["measure"])))
    pairs = {"eval": [{"kind": "reviews", "rows": 9}]}
    writing = make_config(**asked, stages=["generate", "measure"], data=pairs)
    assert "generations.jsonl" in "".join(place_mistakes(writing))


def test_a_run_that_was_refused_by_its_rows_finds_its_own_day(tmp_path):
    """The day that a chat template was told is kept before rows are read, and is read again."""
    (tmp_path / "template_date.json").write_text('{"template_date": "2020-02-29"}')
    assert not list(place_mistakes(make_config(output_dir=str(tmp_path), stages=["po"])))


def test_what_a_stage_wrote_before_it_died_is_no_file_of_its_user(tmp_path, monkeypatch):
    """Kills: answers without config.yaml beside them, which the same command then refuses to write over."""

    def die(*_):
        raise Interrupted

    config = str(write_config(tmp_path, stages=["generate"], objective={"kind": "dpo"}))
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Run, "mark", die)
        main(["--config", config])
    assert (tmp_path / "run/generations.jsonl").exists() and not (tmp_path / "run/stages.json").exists()
    assert not list(place_mistakes(load_config(config)[0]))
