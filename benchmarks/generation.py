"""Greedy generation against transformers on the same weights: tokens/s ours and theirs.

    python benchmarks/generation.py [ROWS ...]

Default: 1 8 32 rows; needs torch; about two minutes on 2 cores.

A GPT-2 shape of 6 layers, width 384 and 16,384 tokens, prompts of 48 to 64 tokens padded on the left, 64 new
tokens each, float32. Compilation and one full call are left out of both; best of three. Both must write the
same tokens, otherwise the program stops. The result is kept in results/generation-DEVICE.json.

Expected: about twice as fast for a single row, where every token costs one reading of the weights and
transformers adds Python's time; nearly equal at 32 rows, where matrix products dominate in both.
"""

import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from work import save_result

from sparsepo_jax.build.loading import load_weights
from sparsepo_jax.build.models import decoder_graph
from sparsepo_jax.core.types import PromptBatch
from sparsepo_jax.generate.sampler import Sampling, generate, make_sampler
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh

PROMPT, NEW, VOCAB = 64, 64, 16384
SETTINGS = {
    "do_sample": False,
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def prompts(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, VOCAB, (rows, PROMPT)).astype(np.int32), np.arange(PROMPT)[::-1] < rng.integers(
        48, PROMPT + 1, (rows, 1)
    )


def best_of_three(call) -> tuple[np.ndarray, float]:
    tokens, times_s = call(), []
    for _ in range(3):
        began_s = time.perf_counter()
        tokens = call()
        times_s.append(time.perf_counter() - began_s)
    return tokens, min(times_s)


def main() -> int:
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=PROMPT + NEW, n_embd=384, n_layer=6, n_head=6, initializer_range=0.1
        )
    ).eval()
    mesh = make_mesh(None, 1, 1)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        spec = spec_from_hf(read_config(Path(directory)))
        weights = load_weights(directory, spec, mesh)
    sampler = make_sampler(
        decoder_graph(spec, jnp.dtype(jnp.float32)),
        jnp.dtype(jnp.float32),
        mesh,
        Sampling(NEW, temperature=0.0),
    )
    print(f"{'rows':>5}{'transformers':>16}{'ours':>12}   tokens/s ({jax.default_backend()})")
    kept = []
    for rows in map(int, sys.argv[1:] or (1, 8, 32)):
        ids_BS, valid_BS = prompts(rows)
        inputs = dict(
            input_ids=torch.tensor(ids_BS, dtype=torch.long),
            attention_mask=torch.tensor(valid_BS.astype(np.int64)),
        )
        numbers, weight = np.arange(rows, dtype=np.int32), np.ones(rows, np.float32)
        batch = PromptBatch(ids_BS[None], valid_BS[None], numbers[None], weight[None])

        def write_theirs(inputs=inputs) -> np.ndarray:
            return theirs.generate(**inputs, **SETTINGS)[:, PROMPT:].numpy()

        def write_ours(batch=batch) -> np.ndarray:
            return np.stack([response.ids for response in generate(sampler, weights, [batch], None)])

        with torch.no_grad():
            expected, theirs_s = best_of_three(write_theirs)
        with jax.set_mesh(mesh):
            written, ours_s = best_of_three(write_ours)
        if not np.array_equal(expected, written):
            sys.exit(f"{rows} rows: the tokens differ, so the times say nothing")
        speeds = {"transformers": rows * NEW / theirs_s, "ours": rows * NEW / ours_s}
        kept.append({"rows": rows, "tokens_per_s": speeds, "ratio": theirs_s / ours_s})
        print(
            f"{rows:>5}{speeds['transformers']:>16.0f}{speeds['ours']:>12.0f}   ratio "
            f"{kept[-1]['ratio']:.2f}",
            flush=True,
        )
    print(save_result("generation", {"torch": torch.__version__, "rows": kept}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
