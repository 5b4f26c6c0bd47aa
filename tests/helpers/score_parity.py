"""The stage score, on a checkpoint as transformers writes it, against transformers' own log-probabilities."""

import json
from pathlib import Path

import numpy as np
import torch

from helpers.parity import make_theirs
from helpers.program import lines_of, run
from sparsepo_jax.data.tokenizers import END, make_byte_tokenizer
from sparsepo_jax.models.wrappers import with_text_fields

# In bytes: the tiny models have 32 positions, of which a prompt gets half.
ROWS = [
    {"prompt": "a film", "chosen": " so good", "rejected": " dull"},
    {"prompt": "it is", "chosen": " not too long, but good", "rejected": " so"},
    {"prompt": "short, and so", "chosen": " fun", "rejected": " dull, not good"},
]
VOCABULARY = 264  # a few rows more than the tokenizer has entries


def write_checkpoint(
    config: dict, directory: Path, dtype: torch.dtype = torch.float32, **saving
) -> torch.nn.Module:
    """A tiny random model of a config, saved by transformers with a tokenizer beside it; returns the model.

    saving: goes to save_pretrained.
    """
    model = make_theirs(with_text_fields(config, {"vocab_size": VOCABULARY})).to(dtype)
    model.generation_config.eos_token_id = 256
    model.save_pretrained(directory, **saving)
    make_byte_tokenizer().save_pretrained(directory)
    return model.float()


def scored(directory: Path, checkpoint: Path, *overrides: str) -> list[dict]:
    """The records of scores.jsonl of a run in `directory` that scores ROWS with a checkpoint as it lies."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    output = run(
        directory,
        "objective={kind: dpo}",
        *overrides,
        stages=["score"],
        sft=None,
        po=None,
        tokenizer=None,
        generation=None,
        policy={"config": None, "path": str(checkpoint)},
        data={"sft": [], "train": [], "eval": [{"path": str(rows)}]},
        compute={"dtype": "float32"},
    )
    return sorted(lines_of(output / "scores.jsonl"), key=lambda record: record["index"])


def largest_difference(model: torch.nn.Module, directory: Path, records: list[dict]) -> float:
    """Of all log-probabilities of response tokens, policy's and reference's, and transformers' own.

    The tokens are checked, too: begin, the bytes of prompt and response, end.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(records) == len(ROWS)
    worst = 0.0
    for row, record in zip(ROWS, records, strict=True):
        for name in ("chosen", "rejected"):
            text = f"{END}{row['prompt']}{row[name]}{END}"
            whole = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(whole) == 2 + len(row["prompt"]) + len(row[name])
            seam = 1 + len(row["prompt"])
            prompt, response = record["prompt_ids"], record[name]["token_ids"]
            # A model for few positions gets the prompt's end, after begin, and the response's beginning.
            assert prompt == [whole[0], *whole[:seam][1 - len(prompt) :]]
            assert response == whole[seam:][: len(response)] and len(response) > 3
            ids = torch.tensor(prompt + response)
            with torch.no_grad():
                logp_SV = torch.log_softmax(model(input_ids=ids[None]).logits[0], dim=-1)
            expected = logp_SV[torch.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]].numpy()
            for field in ("logp", "ref_logp"):
                worst = max(worst, float(np.abs(np.array(record[name][field]) - expected).max()))
    return worst
