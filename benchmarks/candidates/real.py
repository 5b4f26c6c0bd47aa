"""Chunks of steps over a file of pairs: ours in packed batches, or plain PyTorch in random ones, padded on
the right. Both take the same pairs.

    python real.py ours|torch FILE TOKENIZER STEPS PAIRS CHUNK VOCAB WIDTH LAYERS

The pairs are those of the first STEPS batches of our plan over the whole file. TOKENIZER: a directory; tokens
are kept there, too.
"""

import json
import sys
from pathlib import Path

import numpy as np
from serve import serve

from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.load import load_table
from sparsepo_jax.data.packing import FILLER, sizes_of
from sparsepo_jax.data.sources import FileRows
from sparsepo_jax.data.table import TokenTable
from sparsepo_jax.data.tokenizers import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

LONGEST, BUCKETS = 2048, 8  # tokens of prompt + response, batch shapes


def load(file: str, tokenizer: str, vocab: int, pairs: int, steps: int) -> tuple[TokenTable, BatchPlan]:
    table = load_table(
        [FileRows(file)],
        kind="pairs",
        tokenizer=load_tokenizer(tokenizer),
        vocab_size=vocab,
        max_length=LONGEST,
        max_prompt_length=LONGEST // 2,
        separator="",
        template="none",
        template_arguments={},
        add_bos=None,
        add_eos=True,
        on_bad_row="skip",
        bad_rows_path=Path(tokenizer) / "bad_rows.jsonl",
        cache_dir=f"{tokenizer}/tokens",
    )
    sizes = sizes_of(table.prompt_lengths_N, table.response_lengths_NP, shared=True)
    return table, BatchPlan(
        sizes, None, batch_size=pairs, rows=1, strata=4, buckets=BUCKETS, seed=0, shuffle=True, steps=steps
    )


def ours(
    table: TokenTable, plan: BatchPlan, steps: int, chunk: int, vocab: int, width: int, layers: int
) -> None:
    from shapes import gpt2
    from work import OurStep

    from sparsepo_jax.data.pipeline import make_batches
    from sparsepo_jax.sharding.mesh import put_batch

    def batches(start: int, stop: int):
        return make_batches(
            table,
            plan,
            start=start,
            stop=stop,
            process_index=0,
            process_count=1,
            shared=True,
            with_weights=False,
        )

    planned = [plan.batch(n) for n in range(steps)]
    first_of = {batch.shape: n for n, batch in reversed(list(enumerate(planned)))}
    step, compiled = None, {}
    for shape, n in first_of.items():
        batch = next(batches(n, n + 1))
        if step is None:
            step = OurStep(gpt2(vocab, LONGEST, width=width, layers=layers), batch)
            compiled[shape], batch = step.compiled, step.batch
        else:
            batch = put_batch(batch, step.mesh)
            compiled[shape] = step.compile(batch)
        float(step.advance(compiled[shape], batch))  # once, before the clock starts
    starts = iter(range(0, steps, chunk))

    def run() -> float:
        """Starts Grain anew for each chunk, so that nothing is read ahead while another candidate has its
        turn."""
        start = next(starts)
        for n, batch in enumerate(batches(start, min(start + chunk, steps)), start):
            loss = step.advance(compiled[planned[n].shape], put_batch(batch, step.mesh))
        return float(loss)

    pairs = [int((batch.rows != FILLER).sum()) for batch in planned]
    serve(
        run,
        pairs=[sum(pairs[n : n + chunk]) for n in range(0, steps, chunk)],
        real_token_share=plan.real_token_share(),
        shapes=list(compiled),
        compile_s=step.compile_s,
        rows=len(table),
    )


def torch_steps(
    table: TokenTable, plan: BatchPlan, steps: int, chunk: int, vocab: int, width: int, layers: int
) -> None:
    import torch
    from on_torch import versions
    from plain_torch import Step, make_models
    from shapes import gpt2

    rows = np.concatenate([plan.batch(n).rows for n in range(steps)])
    planned = np.array_split(np.random.default_rng(0).permutation(rows[rows != FILLER]), steps)
    step = Step("sparsepo", *make_models(json.dumps(gpt2(vocab, LONGEST, width=width, layers=layers))))
    length_NP = table.prompt_lengths_N[:, None] + table.response_lengths_NP

    def collate(rows: np.ndarray) -> tuple:
        """(ids, attention mask, which tokens are the response's), chosen rows first."""
        sequences = [(table.prompt(row), table.response(row, p)) for p in (0, 1) for row in rows]
        ids, mask, response = (
            torch.zeros(len(sequences), int(length_NP[rows].max()), dtype=torch.long) for _ in range(3)
        )
        for n, (prompt, response) in enumerate(sequences):
            end = len(prompt) + len(response)
            ids[n, :end], mask[n, :end] = torch.from_numpy(np.concatenate([prompt, response])), 1
            response[n, len(prompt) : end] = 1
        return ids, mask, response.bool()

    step(
        *collate(max(planned, key=lambda rows: length_NP[rows].max()))
    )  # the longest, before the clock starts
    starts = iter(range(0, steps, chunk))

    def run() -> float:
        start = next(starts)
        return [step(*collate(rows)) for rows in planned[start : start + chunk]][-1]

    padded = sum(length_NP[rows].size * length_NP[rows].max() for rows in planned)
    serve(
        run,
        pairs=[sum(map(len, planned[n : n + chunk])) for n in range(0, steps, chunk)],
        real_token_share=float(sum(length_NP[rows].sum() for rows in planned) / padded),
        versions=versions(),
    )


def main() -> None:
    side, file, tokenizer, *numbers = sys.argv[1:]
    steps, pairs, chunk, vocab, width, layers = map(int, numbers)
    {"ours": ours, "torch": torch_steps}[side](
        *load(file, tokenizer, vocab, pairs, steps), steps, chunk, vocab, width, layers
    )


if __name__ == "__main__":
    main()
