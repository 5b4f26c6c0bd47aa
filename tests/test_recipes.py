"""The official recipes: each has a plan without a network, and runs shrunk on rows like those of its data."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from helpers.program import lines_of
from helpers.tiny import CONFIGS
from sparsepo_jax.config.load import load_config
from sparsepo_jax.main import main
from sparsepo_jax.run.check import make_plan_text

RECIPES = Path(__file__).parent.parent / "configs" / "recipes"
TINY = {
    "gpt2": "{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 8, n_positions: 96}",
    "gpt_neox": "{model_type: gpt_neox, max_position_embeddings: 96, hidden_size: 8, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 16, rotary_pct: 0.5}",
    "gptj": "{model_type: gptj, n_positions: 96, n_embd: 8, n_layer: 1, n_head: 2, rotary_dim: 2}",
    "gpt_bigcode": "{model_type: gpt_bigcode, n_positions: 96, n_embd: 8, n_layer: 1, n_head: 2}",
    "qwen3": "{model_type: qwen3, max_position_embeddings: 96, hidden_size: 8, intermediate_size: 16, "
    "num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, rms_norm_eps: 1e-6, "
    "tie_word_embeddings: true}",
}
FAMILY = {"imdb": "gpt2", "hh": "gpt_neox", "tldr": "gptj", "mbpp": "gpt_bigcode", "ultrafeedback": "qwen3"}
# Recipes of today's models on conversations, with the tiny model that stands for each.
CHATS = {
    "kto": CONFIGS["qwen2"],
    "ultrafeedback": None,
    "qwen3_1_7b": CONFIGS["qwen3"],
    "qwen3_8b": CONFIGS["qwen3"],
    "gemma3_4b": CONFIGS["gemma3, local and global layers"],
    "smollm3_3b": CONFIGS["smollm3, no positions in every second layer"],
    "olmo3_7b": CONFIGS["olmo3, windows, yarn without them"],
    "qwen3_30b_a3b_lora": CONFIGS["qwen3 moe"],
    "gpt_oss_20b_lora": CONFIGS["gpt-oss"],
}


def tiny_model(task: str) -> str:
    """policy.config of the recipe's family, small, as YAML."""
    if CHATS.get(task) is None:
        return TINY[FAMILY[task.removesuffix("_sft")]]
    config = {name: value for name, value in CHATS[task].items() if name != "vocab_size"}
    return json.dumps(config | {"max_position_embeddings": 96})


def rows(task: str, n: int) -> dict:
    """Row n as the task's data has it."""
    task = "ultrafeedback" if task in CHATS and task != "kto" else task
    text = {"prompt": f"Film {n} was", "chosen": f" good {n}.", "rejected": f" dull {n}."}
    hh = f"\n\nHuman: Is {n} even?\n\nAssistant:"

    def say(answer: str) -> list[dict]:
        return [{"role": "user", "content": f"Add {n}"}, {"role": "assistant", "content": answer}]

    return {
        "imdb_sft": {"text": f"Film {n} was good.", "label": 1},
        "imdb": text,
        "mbpp": text | {"prompt": f"def f{n}(x):\n"},
        "hh_sft": {"chosen": hh + " Yes.", "rejected": hh + " No."},
        "hh": {"chosen": hh + " Yes.", "rejected": hh + " No."},
        "kto": {"prompt": say("")[:1], "completion": say(f"{n + 1}")[1:], "label": n % 3 == 0},
        "tldr_sft": {"prompt": f"POST: {n} cats\n\nTL;DR:", "completion": " Cats."},
        "tldr": text | {"prompt": f"POST: {n} cats\n\nTL;DR:"},
        "ultrafeedback": {
            "chosen": say("fine"),
            "rejected": say("no"),
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
    }[task]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_has_a_plan_without_a_network(path):
    plan = make_plan_text(load_config(str(path), [])[0])
    assert re.search(r"parameters(, [\d,]+ active)? \(", plan)
    assert "unknown parameters" not in plan and "bytes per device: weights" in plan


def others(path: Path) -> list[list[str]]:
    """The overrides that a header names behind "Others:", several kinds in a clause each by itself."""
    header = re.sub(r"\n#\s*", " ", path.read_text().split("\nstages:")[0])
    found = re.search(r"Others: (.*?)(?:\. [A-Zo]|\.?$)", header)
    overrides = []
    for clause in found[1].split(";") if found else ():
        kinds = re.search(r"objective\.kind=(\w+(?:, \w+(?![.\w=]))*)", clause)[1]
        settings = [x for x in re.findall(r"[a-z_.]+=[\w.-]*\w", clause) if "objective.kind=" not in x]
        overrides += [[f"objective.kind={kind}", *settings] for kind in kinds.split(", ")]
    return overrides


OTHERS = [(path, x) for path in sorted(RECIPES.glob("*.yaml")) for x in others(path)]


@pytest.mark.parametrize(("path", "overrides"), OTHERS, ids=lambda x: getattr(x, "stem", None))
def test_the_overrides_in_a_header_give_the_objective_that_they_name(path, overrides):
    """Kills: MaPO on the learned mask of the recipe; L1, or a mask, that DPO keeps."""
    assert len(OTHERS) > 30
    config, _ = load_config(str(path), overrides)
    objective, kind = config.objective, overrides[0].partition("=")[2]
    assert objective.kind == kind
    assert (objective.mask and objective.mask.kind) == ("activation" if kind == "mapo" else None)
    for name, value in (override.split("=") for override in overrides[1:]):
        node = config
        for part in name.split("."):
            node = getattr(node, part)
        assert node == float(value)


QUICK = {"imdb"}  # the others run shrunk among the slow tests


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in sorted(RECIPES.glob("*.yaml"))
    ],
)
def test_a_recipe_runs_shrunk(path, tmp_path):
    """Every setting but model, data and sizes is the recipe's own."""
    task, sft = path.stem, path.stem.endswith("_sft")
    stage, train = ("sft", "sft") if sft else ("po", "train")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(rows(task, n)) + "\n" for n in range(20))
    config, _ = load_config(str(path), [])
    overrides = [
        f"output_dir={tmp_path / 'run'}",
        "policy.path=null",
        f"policy.config={tiny_model(task)}",
        "tokenizer={kind: bytes}",
        f"data.{train}.0.path={tmp_path / 'rows.jsonl.gz'}",
        f"data.cache_dir={tmp_path}",
        "data.buckets=1",
        f"{stage}.epochs=null",
        f"{stage}.steps=2",
        f"{stage}.batch_size=16",
        f"{stage}.accumulation=2",
        "logging.trackers=[]",
    ]
    if config.data.eval:
        overrides += [
            f"data.eval.0.path={tmp_path / 'rows.jsonl.gz'}",
            "data.eval.0.split=train",
        ]  # a file is one split
    if not sft:
        overrides += [
            "generation.max_new_tokens=4",
            "generation.batch_size=8",
            "evaluation.sampled_prompts=8",
            "objective.mask.init=ones",
        ]
    if task in CHATS:  # bytes have no chat template
        overrides += ["data.template=paper", "data.template_arguments={}"]
    if config.data.max_length is not None:
        overrides.append("data.max_length=null")
    if config.data.holdout is not None:
        overrides.append("data.holdout.share=0.3")
    assert main(["--config", str(path), *overrides]) == 0
    export = tmp_path / "run" / "export"
    expected = "model.safetensors" if config.export.merged else "adapter/adapter_config.json"
    assert (export / expected).exists()
    assert lines_of(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2
    assert sft or (tmp_path / "run" / "report.html").exists()


def test_a_hub_id_without_a_network_is_one_line(tmp_path, capsys):
    assert main(["--config", str(RECIPES / "mbpp.yaml"), f"output_dir={tmp_path}", "po.accumulation=1"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        "error: bigcode/starcoderbase-1b: neither a local directory nor reachable on the Hugging Face Hub"
    )
    assert f"looked for from {os.getcwd()};" in line and "HF_TOKEN" in line


def test_a_checkpoint_of_another_shape_than_the_recipe_says_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gpt_bigcode", "n_layer": 3}))
    overrides = [f"output_dir={tmp_path}", f"policy.path={tmp_path / 'model'}", "po.accumulation=1"]
    assert main(["--config", str(RECIPES / "mbpp.yaml"), *overrides]) == 1
    expected = "has another shape than policy.config: vocab_size 50257 (policy.config: 49152)"
    assert expected in capsys.readouterr().err
