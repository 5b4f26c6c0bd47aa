"""Every family against transformers on a tiny random model: the table in docs/results/parity.md.

    python benchmarks/parity.py          needs the test extra; about two minutes on 2 cores

Largest absolute difference, in float32, of the states of all layers, of the logits of batches padded on the
right and on the left, and of a model that was exported and read back by transformers; whether 12 greedy
tokens are the same; and, in bfloat16, our error against float32 over transformers' own (root mean squares: 1
is as good). Exits with 1 if any is out of tolerance. The result is kept in results/parity-DEVICE.json.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import jax
import numpy as np
import torch
from flax import nnx
from work import save_result

import conftest  # noqa: F401  (sets the devices up before JAX starts)
from helpers.parity import bfloat16_errors, load_ours, make_theirs, our_logits, our_states, their_outputs
from helpers.prompts import prompts, run
from helpers.tiny import CONFIGS
from helpers.tolerances import BFLOAT16, PARITY_LOGITS
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.generate.sampler import Sampling
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.export import save_hf

IDS = np.random.default_rng(0).integers(0, 31, (4, 12))
LENGTHS = np.array([12, 7, 9, 3])


def largest(ours, theirs, valid_BS) -> float:
    return float(np.abs(np.asarray(ours)[valid_BS] - theirs.numpy()[valid_BS]).max())


def row(config: dict) -> tuple[float, float, float, float, bool, float]:
    with tempfile.TemporaryDirectory() as directory:
        model = make_theirs(config)
        model.save_pretrained(directory)
        spec, graph, weights = load_ours(Path(directory))
        states, logits = 0.0, []
        for valid_BS in (np.arange(12) < LENGTHS[:, None], np.arange(12)[::-1] < LENGTHS[:, None]):
            theirs = their_outputs(model, IDS, valid_BS)
            ours, kept = our_logits(graph, weights, IDS, valid_BS)
            logits.append(largest(ours, theirs.logits, valid_BS))
            states = max(
                states,
                *(
                    largest(a, b, valid_BS)
                    for a, b in zip(our_states(kept), theirs.hidden_states, strict=True)
                ),
            )
        fresh = split_module(Decoder(spec, rngs=nnx.Rngs(3)))[1]
        save_hf(
            Path(directory) / "out", spec, config, {path: np.asarray(x) for path, x in fresh.items()}, {}, ""
        )
        exported = type(model).from_pretrained(Path(directory) / "out").eval()
        everything = np.ones_like(IDS, bool)
        export = largest(
            our_logits(graph, fresh, IDS, everything)[0],
            their_outputs(exported, IDS, everything).logits,
            everything,
        )
        mesh = jax.make_mesh(
            (1, 1, 1),
            ("data", "fsdp", "tensor"),
            axis_types=(jax.sharding.AxisType.Auto,) * 3,
            devices=jax.devices()[:1],
        )
        batch = prompts()
        expected = model.generate(
            input_ids=torch.tensor(batch.prompt_BS[0], dtype=torch.long),
            attention_mask=torch.tensor(batch.valid_BS[0].astype(np.int64)),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )[:, 7:].numpy()
        same = np.array_equal(
            expected, np.stack([one.ids for one in run(graph, weights, mesh, Sampling(12, temperature=0.0))])
        )
        ours, theirs = bfloat16_errors(config, Path(directory) / "rounded")
    return states, *logits, export, same, ours / theirs


def main() -> int:
    names = ("states", "right_pad", "left_pad", "export", "greedy_same", "bfloat16_ratio")
    print("| " + " | ".join(("family", *names)) + " |\n" + "|---" * (len(names) + 1) + "|")
    kept = {}
    for name, config in CONFIGS.items():
        kept[name] = dict(zip(names, row(config), strict=True))
        *differences, same, ratio = kept[name].values()
        cells = [name, *(f"{x:.0e}" for x in differences), "same" if same else "DIFFERENT", f"{ratio:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    sound = all(
        max(figures[key] for key in names[:4]) <= PARITY_LOGITS
        and figures["greedy_same"]
        and figures["bfloat16_ratio"] <= BFLOAT16
        for figures in kept.values()
    )
    print("all within tolerance" if sound else "OUT OF TOLERANCE")
    if sound:
        print(
            save_result(
                "parity", {"torch": torch.__version__, "transformers": version("transformers"), "rows": kept}
            )
        )
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
