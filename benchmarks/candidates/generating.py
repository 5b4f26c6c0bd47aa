"""Greedy generation with random weights, ours or transformers': each line of stdin writes NEW tokens a row.

python generating.py ours|transformers SHAPE ROWS PROMPT NEW

bfloat16 on a GPU, float32 on CPU; nothing ends early.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from serve import serve

sys.path.insert(0, str(Path(__file__).parents[1]))


def ours(options: argparse.Namespace, ids_BS: np.ndarray) -> Callable[[], dict[str, Any]]:
    import jax
    from run_step import device_peak, run_config

    from sparsepo_jax.build.sampling import make_policy_sampler
    from sparsepo_jax.core.stop import Stop
    from sparsepo_jax.core.types import PromptBatch
    from sparsepo_jax.generate.sampler import Sampling, generate
    from sparsepo_jax.stages.context import Run
    from sparsepo_jax.stages.weights import starting_policy

    run = Run(run_config(json.loads(options.shape), "dpo", {}), Stop())
    sampling = Sampling(options.new, temperature=0.0)
    sampler = make_policy_sampler(run.problem, run.config, run.mesh, sampling)
    weights = starting_policy(run)
    rows = np.arange(options.rows, dtype=np.int32)
    batch = PromptBatch(
        ids_BS[None], np.ones_like(ids_BS, bool)[None], rows[None], np.ones((1, options.rows), np.float32)
    )

    def write() -> dict[str, Any]:
        with jax.set_mesh(run.mesh):
            responses = list(generate(sampler, weights, [batch], None))
        return {"tokens": sum(len(response.ids) for response in responses)} | device_peak()

    return write


def transformers(options: argparse.Namespace, ids_BS: np.ndarray) -> Callable[[], dict[str, Any]]:
    import torch
    from on_torch import DEVICE, device_peak, make_model

    model = make_model(options.shape, "float32" if DEVICE == "cpu" else "bfloat16").eval()
    prompts = torch.tensor(ids_BS, dtype=torch.long, device=DEVICE)

    def write() -> dict[str, Any]:
        with torch.no_grad():
            written = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=options.new,
                min_new_tokens=options.new,
                eos_token_id=None,
                pad_token_id=0,
            )
        return {"tokens": written[:, ids_BS.shape[1] :].cpu().numpy().size} | device_peak()

    return write


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "transformers"))
    parser.add_argument("shape")
    for name in ("rows", "prompt", "new"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    vocab = json.loads(options.shape)["vocab_size"]
    ids_BS = np.random.default_rng(0).integers(0, vocab, (options.rows, options.prompt)).astype(np.int32)
    serve({"ours": ours, "transformers": transformers}[options.side](options, ids_BS))


if __name__ == "__main__":
    main()
