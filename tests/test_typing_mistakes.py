"""What people type: paths of the shell, names of other programs, values in the wrong place, closed pipes."""

import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from pydantic import WrapValidator

from helpers.program import write_config
from sparsepo_jax.config.kinds import entry_of, fields_of, sections_of, unwrapped
from sparsepo_jax.config.load import ConfigError, load_config, save_config
from sparsepo_jax.config.names import SETTINGS
from sparsepo_jax.config.paths import PathText, expand_path
from sparsepo_jax.config.schema.base import Section
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.main import PIPE_CLOSED, main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("stages: [report]\noutput_dir: runs/x\n")
    return lambda *overrides: load_config(file, overrides)[0]


@pytest.fixture
def mistakes(load):
    def lines(*overrides):
        with pytest.raises(ConfigError) as caught:
            load(*overrides)
        return caught.value.lines

    return lines


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/runs/x", "/home/ann/runs/x"),
        ("~", "/home/ann"),
        ("$HOME/x", "/home/ann/x"),
        ("${PLACE}/$HOME", "/scratch//home/ann"),
        ("a/~", "a/~"),
        ("a$$b", "a$b"),
        ("$5", "$5"),
        ("x$", "x$"),
        ("./~", "./~"),
    ],
)
def test_home_and_variables_are_put_in(text, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("PLACE", "/scratch")
    assert expand_path(text) == path


def sections(
    model: type[Section] = Config, above: str = ""
) -> typing.Iterator[tuple[str, typing.Any, type[Section]]]:
    """(dotted name, annotation, section) of every field of the schema."""
    for name, annotation in fields_of(model).items():
        yield f"{above}{name}", annotation, model
        for kind in dict.fromkeys(sections_of(entry_of(annotation) or annotation).values()):
            yield from sections(kind, f"{above}{name}.")


def is_path(annotation: typing.Any) -> bool:
    """Whether PathText is in it, whatever it is wrapped in."""
    mark = PathText.__metadata__[0]
    return mark in getattr(annotation, "__metadata__", ()) or any(map(is_path, typing.get_args(annotation)))


def test_every_setting_that_is_a_path_is_expanded():
    """A new one gets it by its type: by name, or by a description that begins as paths' do."""
    named = re.compile(r"(^|_)(path|dir|directory|file|adapter|cache|tasks|taken_from)$")
    unmarked = {
        name
        for name, annotation, model in sections()
        if str in {annotation, *typing.get_args(unwrapped(annotation)), *typing.get_args(annotation)}
        or is_path(annotation)
        if named.search(name)
        or re.match(
            r"(A|Where|Directory|directory|output_dir)\b.*(directory|file|kept|goes)|Directory of",
            model.model_fields[name.rpartition(".")[2]].description or "",
        )
        if not is_path(annotation)
    }
    assert not unmarked
    assert sum(is_path(annotation) for _, annotation, _ in sections()) >= 16


@pytest.mark.parametrize(
    "path",
    [
        "output_dir",
        "policy.path",
        "reference.path",
        "reference.cache_dir",
        "data.cache_dir",
        "export.path",
        "compute.compile_cache",
        "sft.taken_from",
        "harness.include_path",
        "data.train.0.path",
        "evaluation.lexicons.0.path",
        "harness.tasks.0",
    ],
)
def test_paths_of_the_command_line_are_expanded_and_kept_as_they_are(load, path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "a$HOME"))
    more = ["evaluation.lexicons.0.kind=opinion", "policy.path=x"] if "lexicons" in path else []
    value: typing.Any = load(*more, f"{path}=~/x")
    again = tmp_path / "saved.yaml"
    save_config(value, again)
    assert load_config(again)[0] == value
    for key in path.split("."):
        value = value[int(key)] if key.isdecimal() else getattr(value, key)
    assert value == str(tmp_path / "a$HOME/x")


def test_an_unknown_variable_or_user_is_one_line(mistakes, capsys, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    (line,) = mistakes("output_dir=$NOWHERE/x")
    assert line.startswith(
        "output_dir: '$NOWHERE/x' names the environment variable NOWHERE, which is not set"
    )
    (line,) = mistakes("policy.path=~nobody-at-all/x")
    assert "a user who is not known here" in line
    for options in (
        ["--config", "$NOWHERE/c.yaml"],
        ["--compare", "$NOWHERE/run"],
        ["--compare", "a", "--output", "$NOWHERE/a.html"],
    ):
        assert main(options) == 2
        said = capsys.readouterr().err
        assert "NOWHERE" in said and said.count("\n") == 1


def test_config_and_compare_are_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLACE", str(tmp_path))
    write_config(tmp_path)
    assert main(["--config", "$PLACE/config.yaml", "--check"]) == 0
    assert main(["--compare", "${PLACE}/nothing"]) == 1
    assert f"{tmp_path}/nothing" in capsys.readouterr().err


# ---------------------------------------------------------------- names


def test_names_of_other_programs_lead_to_settings_that_exist():
    known = {name for name, _, _ in sections()}
    wrong = {ours for ours in SETTINGS.values() if re.sub(r"\.\d+", "", ours) not in known}
    assert not wrong


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("objective.kind=DPO", "dpo"),
        ("objective.kind=SimPO", "simpo"),
        ("objective.kind=T-DPO_2", "tdpo2"),
        ("objective.kind=sigmoid", "dpo"),
        ("objective.mask.kind=Learned", "learned"),
        ("po.optimizer.kind=adamw_torch", "adamw"),
        ("compute.dtype=bf16", "bfloat16"),
        ("tokenizer.kind=byte", "bytes"),
        ("po.schedule.kind=constant_with_warmup", "constant"),
        ("stages=[PO]", "po"),
        ("po.schedule.warmup_ratio=0.1", "warmup_share"),
        ("warmup_ratio=0.1", "po.schedule.warmup_share"),
        ("sft.warmup_ratio=0.1", "sft.schedule.warmup_share"),
        ("learning_rate=1", "po.optimizer.learning_rate"),
        ("po.lr=1", "po.optimizer.learning_rate"),
        ("sft.lr=1", "sft.optimizer.learning_rate"),
        ("per_device_train_batch_size=1", "po.batch_size (of all devices and micro-steps together)"),
        ("gradient_accumulation_steps=2", "po.accumulation"),
        ("num_train_epochs=1", "po.epochs"),
        ("max_steps=3", "po.steps"),
        ("bf16=true", "compute.dtype"),
        ("gradient_checkpointing=true", "compute.remat"),
        ("lr_scheduler_type=cosine", "po.schedule.kind"),
        ("loss_type=ipo", "objective.kind"),
        ("ref_model=a/b", "reference.path"),
        ("model_name_or_path=a/b", "policy.path"),
        ("peft_config={}", "po.lora"),
        ("lora_r=8", "po.lora.rank"),
        ("po.lora.lora_alpha=8", "alpha"),
        ("po.batch-size=8", "batch_size"),
        ("Seed=3", "seed"),
        ("objective=dpo", "objective.kind=dpo (in a file objective: {kind: dpo})"),
        ("objective=DPO", "objective.kind=dpo (in a file objective: {kind: dpo})"),
        ("tokenizer=bytes", "tokenizer.kind=bytes (in a file tokenizer: {kind: bytes})"),
        ("po.optimizer=lion", "po.optimizer.kind=lion (in a file optimizer: {kind: lion})"),
        ("objective.mask=learned", "objective.mask.kind=learned (in a file mask: {kind: learned})"),
        ("po.schedule=linear", "po.schedule.kind=linear (in a file schedule: {kind: linear})"),
        ("policy=gpt2", "policy.path=gpt2 (in a file policy: {path: gpt2})"),
        ("data.train=a.jsonl", "[{path: a.jsonl}]"),
        ("data.train=reviews", "[{kind: reviews}]"),
        ("data.train=[a.jsonl]", "data.train.0.path=a.jsonl (in a file {path: a.jsonl})"),
        ("stages=po", "[po]"),
        ("harness.tasks=arc_easy", "[arc_easy]"),
        ("stages=po,eval", "[po, eval]"),
        ("stages=po eval", "[po, eval]"),
        ("data.train[0].path=x", "data.train.0.path"),
        ("po[steps]=3", "po.steps"),
        ("objective.kind=dop", "dpo"),
        ("objective.kind=kto_pair", "kto"),
        ("objective.kind=apo", "apo_zero"),
        ("objective.kind=sigmoid-norm", "dpo_norm"),
    ],
)
def test_what_was_meant_is_said(mistakes, override, meant):
    (line,) = mistakes(override)
    assert line.endswith(f"; did you mean {meant}?")


def test_a_text_where_a_section_goes_gets_its_keys(mistakes):
    assert mistakes("compute.mesh=auto") == [
        "compute.mesh: expected a mapping (key: value), got 'auto'; its keys are data, fsdp, tensor, slices"
    ]


@pytest.mark.parametrize(
    "setting", ["po.clip_norm", "reference.path", "data.train.0.subset", "po.lora", "data.holdout"]
)
def test_pythons_none_is_a_text(mistakes, setting):
    """Kills: a run from the data set, directory or Hub id of the name None."""
    lines = mistakes(f"{setting}=None", "data.train.0.path=a/b")
    assert lines == [f"{setting}: None is a text here: write null, or leave it out"]


def test_a_list_without_entries(mistakes):
    assert mistakes("stages=[]") == ["stages: expected at least 1 entry, got []"]


@pytest.mark.parametrize("value", ["0.1", "true", "8"])
def test_a_number_where_a_section_goes_gets_its_keys(mistakes, value):
    assert mistakes(f"data.holdout={value}")[0].endswith(f"got {value}; its keys are share, prompts, seed")


def test_a_mapping_where_a_list_goes(mistakes):
    (line,) = mistakes("data.train={path: a.jsonl}")
    assert line.endswith("; a list of one begins with '- ' in a file")


def test_backslashes_in_double_quotes_make_no_path(mistakes):
    r"""Kills: a directory called C:, a line end, uns."""
    (line,) = mistakes(r'output_dir="C:\runs\new"')
    assert line.startswith("output_dir: 'C:") and line.endswith("into single quotes")


@pytest.mark.parametrize("path", ["$(pwd)/x", "runs/`date`", "runs/$(date +%F)"])
def test_a_command_of_the_shell_is_no_path(mistakes, path):
    (line,) = mistakes(f"output_dir={path}")
    assert line == f"output_dir: {path!r} has a command of the shell, which is not run: write the path out"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed=3"], "settings of the config are written without dashes: seed=3;"),
        (["--po.steps", "3"], "settings of the config are written without dashes: po.steps=VALUE;"),
        (["--chek"], "did you mean --check?"),
        (["--dry-run"], "did you mean --check?"),
        (["-c", "x.yaml"], "did you mean --config?"),
        (["--from-trl", "x.yaml"], "--from-trl FILE prints a config and does no more"),
    ],
)
def test_options_that_are_none_or_do_not_go_together_are_one_line(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(write_config(tmp_path)), *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["my.yaml", "--check"], "did you mean --config my.yaml?"),
        (["--from-trl", "x.yaml", "seed=1"], "give settings and --check to that config"),
        (["--from-trl", "x.yaml", "--check"], "give settings and --check to that config"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config is there twice, with a.yaml and b.yaml"),
        (["--config", ""], "--config: expected FILE, got an empty text"),
        (["--aot", ""], "--aot: expected DEVICES, got an empty text"),
        (["--compare", "a", "--config", "b.yaml"], "--compare DIR ... reads runs as they are"),
        (["--compare", "a", "--sweep", "seed=1,2"], "--compare DIR ... reads runs as they are"),
    ],
)
def test_nothing_that_is_typed_is_passed_over(arguments, said, capsys):
    """Kills: settings behind --from-trl that change nothing, without a word."""
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_last_of_several_values_counts_and_the_others_are_told(load, tmp_path):
    config, notes = load_config(
        tmp_path / "config.yaml", ["seed=1", "po.steps=7", "seed=2", "seed=2", "po.steps =7", " seed =3"]
    )
    assert (config.seed, config.po.steps) == (3, 7)
    assert notes == ["seed=3 replaces 1, 2, 2, given before"]


def test_a_place_in_a_list_that_is_no_index_is_shown_as_one(mistakes):
    (line,) = mistakes("data.train=[{path: a}]", "data.train.-1.path=x")
    assert line.endswith("give an index, as in data.train.0.path")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "tokenizer.path=x",
            "unknown key for kind auto; kind pretrained has it: set tokenizer.kind=pretrained",
        ),
        ("objective.label_smoothing=0.1", "unknown key for kind sparsepo; cdpo, robust, exo,"),
    ],
)
def test_a_key_of_another_kind_names_the_kind(mistakes, override, said):
    (line,) = mistakes("objective.kind=sparsepo", override)
    assert line.startswith(f"{override.partition('=')[0]}: {said}")


def test_a_function_without_its_module_is_shown_how_it_is_written(mistakes):
    (line,) = mistakes("scorer.kind=function", "scorer.function=score")
    assert line.startswith("scorer.function: expected module:function, as in rewards:score for")
    assert line.endswith("got 'score'")


def test_runs_that_a_comparison_leaves_out_are_told(tmp_path, capsys):
    """Kills: a run that was mistyped, or named before a second --compare, and is just not there."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text('{"after": {"accuracy": 0.5}}')
    a, b, mistyped = (str(tmp_path / name) for name in ("a", "b", "c"))
    output = tmp_path / "out.html"
    assert main(["--compare", a, mistyped, "--compare", b, "--output", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"note: left out: {mistyped}: no run") and said[1:] == [f"comparison: {output}"]
    assert len(json.loads(output.with_suffix(".json").read_text())["groups"]) == 2


def test_a_file_that_cannot_be_written_is_called_by_its_own_name(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"after": {"accuracy": 0.5}}')
    (tmp_path / "out.html").mkdir()
    assert main(["--compare", str(tmp_path / "run"), "--output", str(tmp_path / "out.html")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/out.html: Is a directory\n"


TRL = """model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
learning_rate: 5.0e-6
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: true
loss_type: [sigmoid]
beta: 0.1
bf16: true
logging_steps: 25
eval_strategy: steps
eval_steps: 50
output_dir: Qwen2-0.5B-DPO
seed: 42
"""
AXOLOTL = (
    "base_model: a/b\nrl: dpo\ndatasets: [{path: c/d, type: chatml.intel}]\nsequence_len: "
    "2048\nmicro_batch_size: 2\nnum_epochs: 1\nlearning_rate: 1e-6\noutput_dir: out\n"
)
FACTORY = (
    "model_name_or_path: a/b\nstage: dpo\nfinetuning_type: lora\nlora_target: all\npref_beta: "
    "0.1\ncutoff_len: 2048\ndataset: x\noutput_dir: out\nlearning_rate: 1e-6\n"
)


@pytest.mark.parametrize(
    ("text", "program"), [(TRL, "TRL"), (AXOLOTL, "Axolotl"), (FACTORY, "LLaMA-Factory")]
)
def test_a_config_of_another_program_is_one_line(tmp_path, text, program):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    (line,) = caught.value.lines
    assert line.startswith(f"this is a config of {program}: --from-trl in place of --config prints it")
    assert "# Coming from TRL" in (ROOT / "docs" / "guides" / "trl.md").read_text()


def test_our_config_with_other_names_keeps_a_line_for_each(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "stages: [report]\noutput_dir: runs/x\nlearning_rate: 1\nnum_train_epochs: 1\nbf16: true\n"
        "loss_type: ipo"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert len(caught.value.lines) == 4


# ---------------------------------------------------------------- no Hub ids


@pytest.mark.parametrize(
    ("path", "mistyped"),
    [
        ("runs/missing", True),
        ("models/llama", True),
        ("here/llama", True),
        ("./a/b", True),
        ("../b", True),
        ("/a/b", True),
        ("a/b/c", True),
        ("a\\b", True),
        ("owner/", True),
        ("EleutherAI/pythia-410m", False),
        ("gpt2", False),
        ("Qwen/Qwen3-0.6B", False),
        ("kept/model", False),
    ],
)
def test_a_path_that_is_not_there_is_no_hub_id(path, mistyped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("here", "kept", "cache/models--kept--model"):
        Path(name).mkdir(parents=True)
    assert is_mistyped_path(path) == mistyped


@pytest.mark.parametrize("setting", ["policy.path", "reference.path", "tokenizer.path", "data.train.0.path"])
@pytest.mark.parametrize("path", ["runs/missing", "models/llama", "here/llama"])
def test_check_refuses_a_path_that_is_not_there(setting, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    config = write_config(tmp_path)
    kind = {"tokenizer.path": "tokenizer.kind=pretrained", "data.train.0.path": "data.train.0.kind=file"}.get(
        setting, "seed=0"
    )
    other = [] if setting == "policy.path" else ["policy.path=gpt2"]
    assert (
        main(["--config", str(config), "--check", kind, "policy.config=null", *other, f"{setting}={path}"])
        == 2
    )
    assert f"{setting}: no such file or directory: {path}" in capsys.readouterr().err


# ---------------------------------------------------------------- pipes


def piped(arguments: list[str], *, reads: int) -> tuple[int, str]:
    """Exit status and stderr of the program, whose stdout is read for so many bytes and then closed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsepo_jax.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    process.stdout.read(reads)
    process.stdout.close()
    error = process.stderr.read().decode()
    return process.wait(), error


@pytest.mark.parametrize(
    "arguments", [["--schema"], ["--check"], ["stages=[inspect]", "data.inspect_rows=40"]]
)
def test_a_reader_that_goes_ends_the_program_quietly(arguments, tmp_path):
    config = [] if arguments == ["--schema"] else ["--config", str(write_config(tmp_path))]
    status, error = piped([*config, *arguments], reads=0)
    assert status == PIPE_CLOSED and "Broken" not in error and "Traceback" not in error


@pytest.mark.slow
def test_a_run_goes_on_without_its_reader(tmp_path):
    config = write_config(tmp_path, stages=["sft"], sft={"steps": 2})
    status, error = piped(["--config", str(config)], reads=0)
    assert status == 0 and "Broken" not in error and (tmp_path / "run" / "sft" / "final").exists()


@pytest.mark.slow
def test_a_run_needs_no_stdout_and_no_stderr(tmp_path):
    config = write_config(tmp_path, stages=["sft"], sft={"steps": 2})
    command = f"exec {sys.executable} -m sparsepo_jax.main --config {config} >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT).returncode == 0
    assert (tmp_path / "run" / "sft" / "final").exists()


@pytest.mark.parametrize("path", ["po.optimizer", "sft.optimizer", "objective.mask"])
def test_a_rate_without_its_minus_sign_is_refused(path):
    with pytest.raises(
        ConfigError, match=rf"^{path}.learning_rate: expected less than or equal to 10, got 5"
    ):
        load_config("configs/quickstart.yaml", [f"{path}.learning_rate=5e7"])


# ---------------------------------------------------------------- words that stand beside true and false


@pytest.mark.parametrize(
    ("setting", "word"),
    [("compute.unroll={}", "auto"), ("objective={{kind: dpo, policy_weight: {}}}", "aligned")],
)
def test_a_misspelt_word_beside_true_and_false_is_one_line(mistakes, setting, word):
    [line] = mistakes(setting.format(word[:-1]))
    assert line.endswith(f": expected one of false, true, {word}; got '{word[:-1]}'; did you mean {word}?")


def sections_below(section):
    return {section}.union(*map(sections_below, section.__subclasses__()))


def test_words_stand_beside_no_other_type_that_says_its_own_mistake():
    """Of a union of words and another type pydantic says two mistakes, and neither has all that can stand
    there: Literal[False, True, "auto"] or a validator of the whole says it in one."""
    for section in sections_below(Section):
        for name, annotation in fields_of(section).items():
            parts = [part for part in typing.get_args(unwrapped(annotation)) if part is not type(None)]
            words = [part for part in parts if typing.get_origin(part) is typing.Literal]
            says_all = any(isinstance(x, WrapValidator) for x in getattr(annotation, "__metadata__", ()))
            assert not words or len(parts) == 1 or says_all, f"{section.__name__}.{name}"
