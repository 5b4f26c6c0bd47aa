"""Launch scripts, Python scripts and notebooks as people have them: read as configs, and nothing is run."""

import json
import warnings

import pytest

from helpers.foreign import AXOLOTL, FACTORY, HANDBOOK, OPEN_INSTRUCT, TRL, from_text, refused, translated

ROWS = "--model_name_or_path a/b --dataset_name c/d --per_device_train_batch_size 4"


def said(directory) -> str:
    """What the printed config has in its comments."""
    return (directory / "ours.yaml").read_text()


# ---------------------------------------------------------------- the shell


@pytest.mark.parametrize(
    ("before", "written", "rate"),
    [
        ("LR=5e-6", "$LR", 5e-6),
        ("LR=5e-6  # as in the paper", "${LR}", 5e-6),
        ("", "${LR:-5e-6}", 5e-6),
        ("LR=2e-6", "${LR:-5e-6}", 2e-6),
        ("lr=${1:-5e-6}", '"$lr"', 5e-6),
        ("export BASE=5\nLR=${BASE}e-6", "$LR", 5e-6),
        ("local LR='5e-6'", "${LR}", 5e-6),
    ],
)
def test_a_variable_is_what_the_script_says_it_is(tmp_path, before, written, rate):
    config, _ = from_text(tmp_path, "run.sh", f"{before}\ntrl dpo {ROWS} --learning_rate {written}\n")
    assert config.po.optimizer.learning_rate == rate


@pytest.mark.parametrize(
    "script",
    [
        "LR=1e-6\nif fast; then\n  LR=2e-6\nfi\n",
        "for LR in 1e-6 2e-6; do\n",
        "LR=1e-6\nfor LR in 2e-6; do\n",
        "LR=$1\n",
        "LR=$(cat rate.txt)\n",
        "LR='$OTHER'\n",
    ],
)
def test_a_variable_with_several_values_is_not_guessed(tmp_path, script, capsys):
    """Kills: the last value of the text."""
    assert from_text(tmp_path, "run.sh", f"{script}trl dpo {ROWS} --learning_rate $LR\n")[1] == 2
    line = capsys.readouterr().err.splitlines()[1]
    assert line == "TRL: learning_rate: expected a number, got '$LR': write out what the shell puts there"


@pytest.mark.parametrize(
    ("script", "written", "batch"),
    [
        ("ALL=128\nEACH=4\nGPUS=8\nSTEPS=$((ALL / (EACH * GPUS)))", "$STEPS", 128),
        ("ALL=128", "$((${ALL} / 4 / 8))", 128),
    ],
)
def test_sums_of_a_script_are_made(tmp_path, script, written, batch):
    command = f"{script}\ntorchrun --nproc_per_node 8 dpo.py {ROWS} --gradient_accumulation_steps {written}\n"
    assert from_text(tmp_path, "run.sh", command)[0].po.batch_size == batch


@pytest.mark.parametrize(
    "script",
    [
        f'ARGS="{ROWS}"\nARGS+=" --learning_rate 5e-6"\ntrl dpo $ARGS',
        f'ARGS="{ROWS}"\nARGS="$ARGS --learning_rate 5e-6"\ntrl dpo $ARGS',
        f'ARGS=({ROWS})\nARGS+=(--learning_rate 5e-6)\ntrl dpo "${{ARGS[@]}}"',
    ],
)
def test_settings_that_are_added_to_others_count(tmp_path, script):
    """Kills: those of the first line alone, or of the last."""
    config, _ = from_text(tmp_path, "run.sh", f"{script} --seed 3\n")
    assert (config.policy.path, config.po.optimizer.learning_rate, config.seed) == ("a/b", 5e-6, 3)


@pytest.mark.parametrize(
    "script",
    [
        f'ARGS="{ROWS}"\nif fast; then\n  ARGS+=" --learning_rate 5e-6"\nfi\ntrl dpo $ARGS',
        f'ARGS="{ROWS}"\nif fast; then\n  ARGS="$ARGS --bf16"\nfi\ntrl dpo $ARGS',
        f'ARGS=({ROWS})\nif fast; then\n  ARGS+=(--bf16)\nfi\ntrl dpo "${{ARGS[@]}}"',
    ],
)
def test_settings_that_may_not_be_there_are_not_passed_over(tmp_path, script, capsys):
    assert from_text(tmp_path, "run.sh", f"{script} --seed 3 --beta 0.1\n")[1] == 2
    assert "its command begins with $" in capsys.readouterr().err


def test_lists_of_arguments_are_put_in(tmp_path):
    script = f"""
ARGS="--bf16 --beta 0.3"
MORE=(
    "--learning_rate=2e-6"   # as before
    --max_length 700
)
trl dpo {ROWS} $ARGS "${{MORE[@]}}" --seed 3
"""
    config, _ = from_text(tmp_path, "run.sh", script)
    assert (config.objective.beta, config.data.max_length, config.seed) == (0.3, 700, 3)
    assert config.po.optimizer.learning_rate == 2e-6


@pytest.mark.parametrize(
    "start",
    [
        'srun -n 4 bash -c "$CMD" 2>&1 | tee log',
        'eval "$CMD"',
        "$CMD",
        'sh -c "$CMD"',
        'nohup bash -c "$CMD" &',
    ],
)
def test_a_command_that_is_kept_in_a_variable(tmp_path, start):
    script = f"""
LAUNCHER="torchrun \\
    --nproc_per_node 4 \\
    "
export PROGRAM=" \\
    dpo.py {ROWS} \\
    --beta 0.3 \\
"
export CMD="$LAUNCHER $PROGRAM"
echo "CMD: ${{CMD}}"
{start}
"""
    config, _ = from_text(tmp_path, "run.slurm", script)
    assert (config.objective.beta, config.po.batch_size) == (0.3, 16)


def test_a_command_in_a_page(tmp_path):
    page = f"# How it was trained\n\nIt's trained so:\n\n```bash\ntrl dpo {ROWS} --beta 0.3\n```\n"
    assert from_text(tmp_path, "README.md", page)[0].objective.beta == 0.3


@pytest.mark.parametrize(
    ("launcher", "devices"),
    [
        ("CUDA_VISIBLE_DEVICES=2,3 accelerate launch --config_file zero3.yaml dpo.py", 2),
        ("export CUDA_VISIBLE_DEVICES=0,1,2,3\ndeepspeed dpo.py", 4),
        ("CUDA_VISIBLE_DEVICES=0,1 trl dpo", 2),
        ("CUDA_VISIBLE_DEVICES=0,1 torchrun dpo.py", 1),
        ("CUDA_VISIBLE_DEVICES=0,1 accelerate launch --num_processes 1 dpo.py", 1),
    ],
)
def test_a_launcher_without_a_number_takes_the_visible_devices(tmp_path, launcher, devices):
    config, _ = from_text(tmp_path, "run.sh", f"{launcher} {ROWS}\n")
    assert config.po.batch_size == 4 * devices
    assert ("CUDA_VISIBLE_DEVICES: " in said(tmp_path)) == (devices > 1)


def test_that_one_process_sees_several_devices_is_said(tmp_path):
    """transformers splits its batch over them, unless the model lies on all of them."""
    config, _ = from_text(tmp_path, "run.sh", f"CUDA_VISIBLE_DEVICES=0,1 python dpo.py {ROWS}\n")
    assert config.po.batch_size == 4 and "CUDA_VISIBLE_DEVICES: 0,1: counted as 1" in said(tmp_path)


def test_that_nobody_says_how_many_devices_it_ran_on_is_said(tmp_path):
    command = f"accelerate launch --config_file zero3.yaml dpo.py {ROWS}\n"
    line = "devices: how many it ran on is not in the text: counted as 1"
    assert from_text(tmp_path, "run.sh", command)[0].po.batch_size == 4 and line in said(tmp_path)
    assert from_text(tmp_path, "run.sh", command, "--devices", "8")[0].po.batch_size == 32
    assert line not in said(tmp_path)


def test_a_split_called_eval_is_no_command_of_the_shell(tmp_path):
    """Kills: a value that is taken away, so that its option is a switch."""
    command = f"trl dpo {ROWS} --eval_strategy steps --dataset_test_split eval --max_length 512\n"
    config, _ = from_text(tmp_path, "run.sh", command)
    assert config.data.eval[0].split == "eval" and config.data.max_length == 512


@pytest.mark.parametrize(
    "other",
    ["python prepare.py rows.json", "python -m json.tool zero3.json", f"echo trl dpo {ROWS} --beta 0.5"],
)
def test_other_lines_of_a_script_are_no_second_command(tmp_path, other):
    config, _ = from_text(tmp_path, "run.sh", f"{other}\ntrl dpo {ROWS}\n")
    assert config.policy.path == "a/b"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("swift rlhf --rlhf_type dpo --model a/b\n", "a config of ms-swift, which is not translated"),
        ("deepspeed t.py --pretrain a/b --micro_train_batch_size 1\n", "a config of OpenRLHF, which is not"),
        ("llamafactory-cli train dpo.yaml\n", "its command reads dpo.yaml: give that file"),
        ("accelerate launch -m axolotl.cli.train dpo.yml\n", "its command reads dpo.yml: give that file"),
        ("axolotl train dpo.yml --learning-rate 1e-5\n", "its command reads dpo.yml: give that file"),
        ("python a.py --x 1 --y 2\ntrl dpo --x 1 --y 2\n", "it has several commands (a.py, dpo): leave one"),
    ],
)
def test_commands_that_hold_no_config_say_what_they_are(tmp_path, text, line, capsys):
    assert from_text(tmp_path, "run.sh", text)[1] == 2
    assert line in capsys.readouterr().err.splitlines()[1]


# ---------------------------------------------------------------- Python


UNSLOTH = """
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="org/model", max_seq_length=2048, dtype=None, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model, r=64, lora_alpha=32, bias="none", use_gradient_checkpointing="unsloth", random_state=3407
)
trainer = DPOTrainer(model, ref_model=None, args=TrainingArguments(output_dir="out"), beta=0.2)
"""


def test_adapters_of_unsloth_are_trained(tmp_path):
    """Kills: all weights trained in the place of adapters, without a word."""
    lora = from_text(tmp_path, "train.py", UNSLOTH)[0].po.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.base, len(lora.targets)) == (64, 32.0, 0.0, "nf4", 7)
    text = UNSLOTH.replace("r=64", "r=64, use_rslora=True, target_modules=['q_proj']")
    lora = from_text(tmp_path, "train.py", text)[0].po.lora
    assert lora.rslora and lora.targets == ["attention.query"]


def test_how_a_model_is_loaded_counts(tmp_path):
    script = "model = AutoModelForCausalLM.from_pretrained('a/b', torch_dtype=torch.bfloat16)\nDPOConfig()"
    assert from_text(tmp_path, "a.py", script)[0].compute.weights == "bfloat16"
    script = "DPOConfig(model_init_kwargs=dict(dtype='bfloat16', device_map='auto'), beta=0.1)"
    assert from_text(tmp_path, "a.py", script)[0].compute.weights == "bfloat16"
    said_of = {"model_init_kwargs": {"rope_scaling": {"type": "linear"}}}
    assert "model_init_kwargs: rope_scaling: {'type': 'linear'}: not" in refused(tmp_path, TRL | said_of)


def test_settings_that_are_unpacked_count(tmp_path):
    """Kills: the defaults in the place of all that a script keeps in a mapping."""
    script = """
ROOT = "runs"
size = 2 * 512
common = dict(output_dir=f"{ROOT}/first", learning_rate=5e-6)
more = {**common, "beta": 0.3, "max_length": size // 2}
DPOConfig(num_train_epochs=2, **more)
"""
    config, _ = from_text(tmp_path, "a.py", script)
    assert (config.output_dir, config.objective.beta, config.po.epochs) == ("runs/first", 0.3, 2.0)
    assert (config.po.optimizer.learning_rate, config.data.max_length) == (5e-6, 512)


@pytest.mark.parametrize(
    "value",
    ["size", "size + 'a'", "1 / 0", "f'{size:.2f}'", "{**size}", "2 ** 9 ** 9 ** 9", "'a' * 9", "-args.x"],
)
def test_values_that_are_computed_otherwise_are_said(tmp_path, value):
    script = f"size = size\nDPOConfig(beta={value}, loss_type='sigmoid')"
    assert from_text(tmp_path, "a.py", script)[1] == 0
    assert "in the script: its value is not known: set it" in said(tmp_path)


def test_what_python_warns_of_in_a_script_is_not_shown(tmp_path):
    """An escape that there is not, in a text without an r."""
    script = "name = '\\d'\nDPOConfig(beta=0.2, loss_type='sigmoid')"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SyntaxError):
            compile(script, "a.py", "exec")
        assert from_text(tmp_path, "a.py", script)[0].objective.beta == 0.2


def test_the_class_of_the_trainer_tells_which_it_is(tmp_path, capsys):
    script = "KTOTrainer(model='org/model', args=TrainingArguments('out'), beta=given.beta)"
    config, _ = from_text(tmp_path, "a.py", script)
    assert (config.objective.kind, config.policy.path, config.output_dir) == ("kto", "org/model", "out")
    assert "beta: given.beta in the script" in said(tmp_path)
    config, _ = from_text(tmp_path, "a.py", "MyDPOTrainer(model, args=DPOConfig(beta=0.2))")
    assert "MyDPOTrainer: a class of its own: what it changes is not known" in said(tmp_path)
    assert from_text(tmp_path, "a.py", "SFTTrainer(m)\nDPOTrainer(m, args=DPOConfig())")[1] == 2
    assert "it makes DPOConfig and SFTTrainer: leave one" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["OnlineDPO", "IterativeSFT"])
def test_trainers_of_other_methods_are_not_taken_for_these(tmp_path, name, capsys):
    script = f"{name}Trainer('a/b', args={name}Config(output_dir='out'), beta=0.2, learning_rate=1e-6)"
    assert from_text(tmp_path, "a.py", script)[1] == 2
    assert "it makes none of DPOConfig" in capsys.readouterr().err


def test_arguments_of_older_trainers_count(tmp_path):
    """Kills: those that are none of five names passed over."""
    script = "DPOTrainer(model, args=TrainingArguments('out'), beta=0.1, {})"
    config, _ = from_text(tmp_path, "a.py", script.format("precompute_ref_log_probs=True, rpo_alpha=0.5"))
    assert config.reference.cached and config.objective.nll_weight == 0.5
    assert from_text(tmp_path, "a.py", script.format("optimizers=(mine, None)"))[1] == 0
    assert "optimizers: (mine, None) in the script" in said(tmp_path)


def test_what_a_script_does_to_its_rows_is_said(tmp_path):
    script = """
rows = load_dataset("json", data_files={"train": "a.jsonl", "test": "b.jsonl"})["train"]
rows = rows.map(shorten).filter(is_good)
parts = rows.train_test_split(test_size=0.1, seed=1)
DPOConfig(beta=0.1)
"""
    config, _ = from_text(tmp_path, "a.py", script)
    assert config.data.train[0].path == "a.jsonl" and config.data.holdout.share == 0.1
    assert "rows.map(shorten) in the script: rows are trained on as they are in the file" in said(tmp_path)
    assert "rows.map(shorten).filter(is_good) in the script: rows are" in said(tmp_path)


def test_the_rows_that_a_script_evaluates_on(tmp_path):
    """Kills: a split called test, which no line of the script names."""
    script = """
rows = load_dataset("a/b", split="train_prefs")
others = load_dataset("{}", split="test_prefs")
DPOConfig(beta=0.1, eval_strategy="steps", eval_steps=50)
"""
    data = from_text(tmp_path, "a.py", script.format("a/b"))[0].data
    assert (data.train[0].split, data.eval[0].split) == ("train_prefs", "test_prefs")
    config, _ = from_text(tmp_path, "a.py", script.format("a/c"))
    assert config.data.eval == [] and config.po.eval_every_steps is None
    assert "eval_strategy: which rows it is of is not known" in said(tmp_path)


@pytest.mark.parametrize(
    ("loaded", "given", "splits"),
    [
        ('"a/b"', 'data["train"], eval_dataset=data["test"]', ("train", "test")),
        ('"a/b"', 'data["train_prefs"], eval_dataset=held_out', ("train_prefs", "dev")),
        ('"a/b"', 'data["train"], eval_dataset=other["test"]', ("train", None)),
        ('"a/b", split="all"', 'data["train"], eval_dataset=data["test"]', ("all", None)),
        (
            '"json", data_files={"train": "a.jsonl", "test": "b.jsonl"}',
            'data["train"], eval_dataset=data["test"]',
            ("train", None),
        ),
    ],
)
def test_the_splits_that_a_trainer_is_given(tmp_path, loaded, given, splits):
    """Kills: evaluations that a script names, left out; another split trained on than the script's."""
    script = f"""
data = load_dataset({loaded})
held_out = data["dev"]
args = DPOConfig(beta=0.1, eval_strategy="steps", eval_steps=50)
model = PeftModel.from_pretrained(base, "sft-adapter")
DPOTrainer(model, args=args, train_dataset={given}, model_adapter_name="new", ref_adapter_name="old")
"""
    config, _ = from_text(tmp_path, "a.py", script)
    evaluated = [source.split for source in config.data.eval]
    assert (config.data.train[0].split, *(evaluated or [None])) == splits
    assert (config.po.eval_every_steps == 50) == bool(evaluated)
    assert "ref_adapter_name: 'old': one of PEFT's names; see reference.adapter" in said(tmp_path)
    assert "'sft-adapter') in the script: it is not loaded: set policy.adapter" in said(tmp_path)


@pytest.mark.parametrize("first", ['load_from_disk("rows")', 'load_dataset("rows", split="train")'])
def test_rows_on_disk_that_come_second_are_not_trained_on(tmp_path, first):
    """Kills: training on the rows that are there to evaluate."""
    script = f"rows = {first}\nothers = load_from_disk('held_out')\nDPOConfig(beta=0.1)\n"
    config, _ = from_text(tmp_path, "a.py", script)
    assert config.data.train[0].path == "rows"
    assert "load_from_disk('held_out') in the script: only the first" in said(tmp_path)


def test_a_script_that_stops_early(tmp_path):
    script = """
parts = load_dataset("a/b").train_test_split(0.1)
args = DPOConfig(beta=0.1, eval_strategy="steps", eval_steps=50, load_best_model_at_end=True)
DPOTrainer(model, args=args, callbacks=[EarlyStoppingCallback(3, 0.01)])
"""
    stopping = from_text(tmp_path, "a.py", script)[0].po.early_stopping
    assert (stopping.patience, stopping.min_delta) == (3, 0.01)
    script = script.replace("3, 0.01", "early_stopping_patience=2")
    stopping = from_text(tmp_path, "a.py", script)[0].po.early_stopping
    assert (stopping.patience, stopping.min_delta) == (2, 0.0)


def test_a_script_whose_settings_come_from_a_command_line_says_so(tmp_path, capsys):
    script = "a = TrlParser((ScriptArguments, DPOConfig)).parse_args_and_config()\nDPOTrainer(m, args=a)"
    assert from_text(tmp_path, "a.py", script)[1] == 2
    assert "from a command line (TrlParser): give that command in a .sh file" in capsys.readouterr().err


def test_a_notebook(tmp_path, capsys):
    cells = [
        ("markdown", ["# DPOConfig(beta=9)"]),
        ("code", "%%bash\nls\n"),
        ("code", ["%%capture\n", "!pip install trl \\\n", "  peft\n", "if True:\n", "    %cd x\n"]),
        ("code", ["from trl import DPOConfig\n", "args = DPOConfig(\n", "    beta = 0.2,\n", ")\n"]),
        ("code", "what is that thing"),
    ]
    content = {"cells": [{"cell_type": kind, "source": source} for kind, source in cells], "nbformat": 4}
    config, _ = from_text(tmp_path, "train.ipynb", json.dumps(content))
    assert config.objective.beta == 0.2 and "cell 5 is no Python, and is not read" in said(tmp_path)
    assert from_text(tmp_path, "train.ipynb", "{}")[1] == 2
    assert "no notebook: it has no cells" in capsys.readouterr().err


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("content", "devices"),
    [
        (OPEN_INSTRUCT | {"tensor_parallel_degree": 2}, 4),
        (OPEN_INSTRUCT | {"tensor_parallel_degree": 2, "context_parallel_degree": 4}, 1),
        (AXOLOTL | {"context_parallel_size": 4}, 2),
        (AXOLOTL | {"sequence_parallel_degree": 1}, 8),
        (FACTORY | {"sequence_parallel_size": 8}, 1),
    ],
)
def test_devices_that_share_their_rows_count_once(content, devices, tmp_path):
    """Kills: a batch that is larger by the degree of parallelism."""
    rows = content.get("per_device_train_batch_size", content.get("micro_batch_size"))
    config, _ = translated(tmp_path, content, devices=8)
    assert config.po.batch_size == devices * rows * content["gradient_accumulation_steps"]


def test_trls_own_configs_of_accelerate_are_for_eight_processes(tmp_path):
    config, text = translated(tmp_path, TRL | {"accelerate_config": "zero3"})
    assert config.po.batch_size == 8 * 16 and "TRL's own, of 8 processes" in text
    assert translated(tmp_path, TRL | {"accelerate_config": "zero3"}, devices=2)[0].po.batch_size == 2 * 16
    for settings in ({"num_processes": 4, "accelerate_config": "zero3"}, {"accelerate_config": "mine.yaml"}):
        text = translated(tmp_path, TRL | settings)[1]
        assert f"batch_size: {settings.get('num_processes', 1) * 16}\n" in text
        assert "TRL's own, of 8 processes" not in text
    config, _ = from_text(tmp_path, "run.sh", f"trl dpo --accelerate_config zero3 {ROWS}\n")
    assert config.po.batch_size == 8 * 4 and "counted as 1" not in said(tmp_path)


def test_settings_that_a_null_switches_off(tmp_path):
    """Kills: the defaults in their place."""
    assert translated(tmp_path, TRL | {"max_grad_norm": None})[0].po.clip_norm is None
    assert translated(tmp_path, AXOLOTL | {"max_grad_norm": None})[0].po.clip_norm == 1.0
    assert "max_length: null: no row is cut there" in refused(tmp_path, TRL | {"max_length": None})


def test_a_cosine_with_restarts_has_none_without_arguments(tmp_path):
    schedule = {"lr_scheduler_type": "cosine_with_restarts"}
    assert translated(tmp_path, TRL | schedule)[0].po.schedule.kind == "cosine"
    cycles = {"lr_scheduler_kwargs": {"num_cycles": 3}}
    assert "cosine_with_restarts" in refused(tmp_path, TRL | schedule | cycles)


def test_label_smoothing_of_versions_whose_sigmoid_read_it_is_said(tmp_path):
    """Kills: DPO for conservative DPO, with the word that it is the same."""
    text = translated(tmp_path, TRL | {"label_smoothing": 0.1})[1]
    assert "set objective.kind to cdpo" in text.split("Without a meaning here")[0]


@pytest.mark.parametrize(
    ("content", "trainer"),
    [
        (HANDBOOK | {"beta": 0.1, "loss_type": None}, "orpo"),
        (HANDBOOK | {"cpo_alpha": 0.5, "loss_type": "simpo"}, None),
        (AXOLOTL | {"rl": "orpo"}, None),
        (AXOLOTL | {"rl": "simpo"}, None),
        (AXOLOTL | {"rpo_alpha": 0.5}, None),
    ],
)
def test_that_trl_averages_likelihood_otherwise_is_said(content, trainer, tmp_path):
    text = translated(tmp_path, content, trainer=trainer)[1]
    assert "over all tokens" in text.split("Without a meaning")[0]


def test_the_base_of_adapters_has_one_type(tmp_path):
    bits = {"load_in_4bit": True, "torch_dtype": "bfloat16"}
    config, _ = translated(tmp_path, TRL | bits)
    assert (config.po.lora.base, config.compute.weights) == ("nf4", "float32")
    bits = {"load_in_8bit": None, "load_in_4bit": None}
    config, text = translated(tmp_path, AXOLOTL | bits | {"adapter": "qlora"})
    assert config.po.lora.base == "nf4" and "held in 4 bits" in text


def test_lengths_of_encoders_do_not_count(tmp_path):
    lengths = {"max_completion_length": 100, "max_target_length": 100}
    text = translated(tmp_path, HANDBOOK | lengths | {"cpo_alpha": 0.0})[1]
    assert "max_completion_length: 100: only decoders" in text and "max_target_length: 100: only" in text
    assert "max_completion_length: 100: the longest response" in refused(tmp_path, TRL | lengths)
