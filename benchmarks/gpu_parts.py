"""The parts of benchmarks/gpu.py: each job runs one process on the device and gives rows of figures."""

import functools
import json
import statistics
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_bench import REPOSITORY, Bench, Job, Row, Size
from work import Candidate, step_flop

from sparsepo_jax.build.data import make_training_plan
from sparsepo_jax.config.load import load_config
from sparsepo_jax.config.schema.compute import Compute
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.data.packing import FILLER
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.stages.context import Run

# Operations/s of dense bfloat16 products by the makers' data sheets, by what a card's name contains.
DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


# ---------------------------------------------------------------- steps on random pairs


def timed(bench: Bench, candidate: Candidate, name: str) -> Row:
    """Median, least and largest seconds of some steps, and the device's peak after them."""
    answers = [candidate.step(name) for _ in range(bench.size.warm + bench.size.steps)]
    seconds = [answer["seconds"] for answer in answers[bench.size.warm :]]
    row = {"step_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
    kept = {key: answers[-1][key] for key in ("loss", "device_peak_mb") if key in answers[-1]}
    return row | kept


def with_rates(bench: Bench, row: Row, model: str, pairs: int, **passes: int) -> Row:
    """The row with operations counted by hand, as shares of the measured rate and in open-instruct's
    terms."""
    spec, size = spec_from_hf(bench.shape(model)), bench.size
    flop = step_flop(spec, pairs, size.prompt, size.response, **passes)
    length = np.full(2 * pairs, size.prompt + size.response)
    figures = {
        "model": model,
        "pairs": pairs,
        "flop": flop,
        "matrix_rate": bench.ceilings["matrix_rate"],
        "mfu": flop / row["step_s"] / bench.ceilings["matrix_rate"],
        "mfu_open_instruct": open_instruct_mfu(bench, spec, length, row["step_s"]),
    }
    return figures | row


def open_instruct_mfu(bench: Bench, spec: DecoderSpec, lengths: np.ndarray, seconds: float) -> float | None:
    """Model flops utilisation as open-instruct counts it for DPO: three times a forward pass of each response
    with its prompt, all scores of attention, the head at every token, the reference not counted; over the
    rate of the data sheet. None: the card's is not known here.

    lengths: tokens of each sequence, its prompt included."""
    sheet = next((rate for name, rate in DATA_SHEET.items() if name in bench.ceilings["card"]), None)
    if sheet is None:
        return None
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    matrices = spec.width * (2 * queries + 2 * keys + spec.mlp_width * (3 if spec.gated_mlp else 2))
    a_token = 2 * (spec.num_layers * matrices + spec.width * spec.vocab_size)
    scores = 4 * spec.num_layers * queries
    forward = float((a_token * lengths + scores * lengths.astype(float) ** 2).sum())
    return 3 * forward / seconds / sheet


def our_process(
    bench: Bench, *, model: str, pairs: tuple[int, ...], settings: Row | None = None, **_: Any
) -> tuple[str | int, ...]:
    size, shape = bench.size, json.dumps(bench.shape(model))
    chosen = ("--settings", json.dumps(settings or {}))
    return "ours.py", "sparsepo", shape, size.prompt, size.response, *pairs, *chosen


def our_steps(
    bench: Bench,
    limit_s: float,
    *,
    model: str,
    pairs: tuple[int, ...],
    settings: Row | None = None,
    label: str = "ours",
    passes: Row | None = None,
) -> Iterator[Row]:
    """Our step as it comes, or with some settings; kernels by kind."""
    process = our_process(bench, model=model, pairs=pairs, settings=settings)
    with bench.candidate(limit_s, *process) as candidate:
        for count in pairs:
            about = candidate.step(f"about {count}")
            kept = ("compile_s", "choices", "argument_bytes", "temporary_bytes")
            row = {"name": f"{model} {count} {label}", **{key: about[key] for key in kept}}
            measured = timed(bench, candidate, str(count))
            yield with_rates(bench, row | measured, model, count, **(passes or {})) | {
                "kernels": candidate.step(f"trace {count}")["kernels"]
            }


def their_process(
    bench: Bench, *, script: str, model: str, pairs: tuple[int, ...], precision: str
) -> tuple[str | int, ...]:
    size, shape = bench.size, json.dumps(bench.shape(model))
    kind = ["sparsepo"] if script == "plain_torch.py" else []
    return script, *kind, shape, size.prompt, size.response, *pairs, "--precision", precision


def their_steps(
    bench: Bench, limit_s: float, *, script: str, model: str, pairs: tuple[int, ...], precision: str
) -> Iterator[Row]:
    """Steps of a peer in PyTorch: TRL's DPO or plain SparsePO."""
    label = "plain torch" if script == "plain_torch.py" else "trl"
    process = their_process(bench, script=script, model=model, pairs=pairs, precision=precision)
    with bench.candidate(limit_s, *process) as candidate:
        for count in pairs:
            row = {"name": f"{model} {count} {label} {precision}", "versions": candidate.about["versions"]}
            yield with_rates(bench, row | timed(bench, candidate, str(count)), model, count)


def choices_of(field: str) -> list[Any]:
    """What a setting of `compute` can be, beside auto and its default."""

    def flat(annotation: Any) -> list[Any]:
        if annotation is bool:
            return [False, True]
        parts = typing.get_args(annotation)
        if typing.get_origin(annotation) is typing.Literal:
            return list(parts)
        return [choice for part in parts for choice in flat(part)]

    declared = Compute.model_fields[field]
    return [choice for choice in flat(declared.annotation) if choice not in ("auto", declared.default)]


# ---------------------------------------------------------------- the other parts


def golden(bench: Bench, limit_s: float) -> Iterator[Row]:
    with bench.candidate(limit_s, "golden.py", str(bench.directory / "golden")) as candidate:
        answer = candidate.step()
    families = {name: value for name, value in answer.items() if isinstance(value, dict)}
    largest = max(max(figures.values()) for figures in families.values())
    yield {"name": "score stage", "largest": largest, "families": families}


def quickstart(bench: Bench, limit_s: float) -> Iterator[Row]:
    output = bench.directory / "quickstart"
    fewer = ["sft.steps=4", "po.steps=4", "data.sft.0.rows=64", "data.train.0.rows=64", "data.eval.0.rows=16"]
    overrides = [f"output_dir={output}", *(fewer if bench.is_tiny else [])]
    seconds = bench.command(limit_s, REPOSITORY / "configs/quickstart.yaml", *overrides)
    summary = json.loads((output / "summary.json").read_text())
    mask = {name: summary["mask"][name] for name in ("auroc_reward", "auroc_ceiling", "sparsity_end")}
    yield {"name": "quickstart", "seconds": seconds, **mask, **summary["after"]}


def lora_settings(size: Size) -> Row:
    """Adapters on a frozen base in bfloat16: a backward pass through the base costs one pass, not two."""
    return {
        "model": "llama-3-8b",
        "pairs": (size.lora_pairs,),
        "settings": {"po": {"lora": {"base": "bfloat16"}}},
        "label": "ours, LoRA",
        "passes": {"passes": 3, "head_products": 5},
    }


def data_config(bench: Bench) -> Path:
    """A run of one epoch on the pairs: a Pythia-410M shape from scratch, a BPE learned on the text."""
    config = {
        "stages": ["po"],
        "output_dir": str(bench.directory / "data"),
        "policy": {"config": bench.shape("pythia-410m")},
        "tokenizer": {"kind": "bpe", "vocab_size": 300 if bench.is_tiny else 32768},
        "data": {
            "train": [{"path": str(bench.data)}],
            "max_length": 128 if bench.is_tiny else 1024,
            "on_bad_row": "skip",
            "cache_dir": str(bench.directory / "tokens"),
        },
        "objective": {"kind": "sparsepo", "beta": 0.1, "mask": {"kind": "learned", "init": "ones"}},
        "po": {"batch_size": bench.size.data_pairs, "optimizer": {"kind": "adamw", "learning_rate": 1e-6}},
        "logging": {"every_steps": 1 if bench.is_tiny else 5, "trackers": []},
    }
    config["po"] |= {"steps": 4} if bench.is_tiny else {"epochs": 1}
    path = bench.directory / "data.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def data_process(bench: Bench) -> tuple[str, ...]:
    return "fill_cache.py", str(data_config(bench)), str(bench.compiled)


def on_data(bench: Bench, limit_s: float) -> Iterator[Row]:
    """A run through the command: rates of the windows of its log but the first, in which it still starts.
    Its programs are compiled before it starts."""
    bench.candidate(limit_s, *data_process(bench)).close()
    path = data_config(bench)
    seconds = bench.command(limit_s, path)
    lines = (bench.directory / "data" / "metrics.jsonl").read_text().splitlines()
    windows = [json.loads(line) for line in lines][1:]
    row = {
        "name": "pythia-410m on pairs",
        "seconds": seconds,
        **{
            key: statistics.median(window[key] for window in windows)
            for key in ("pairs_per_s", "tokens_per_s", "real_token_share")
        },
    }
    yield row | rates_on_data(bench, path, row["pairs_per_s"])


def rates_on_data(bench: Bench, path: Path, pairs_per_s: float) -> Row:
    """Operations and tokens a second of a run on pairs; sequences are counted with their prompt, twice a
    pair."""
    config, _ = load_config(str(path), [])
    run = Run(config, Stop())
    table = run.training_pairs
    plan = make_training_plan(config, "po", table, run.mesh)
    prompts, responses = table.prompt_lengths_N, table.response_lengths_NP
    batches = [plan.batch(number).rows.ravel() for number in range(plan.steps)]
    batches = [rows[rows != FILLER] for rows in batches]
    rows = np.concatenate(batches)
    lengths = prompts[:, None] + responses
    padded = np.concatenate([np.full(2 * len(batch), lengths[batch].max()) for batch in batches])
    by_pair = [step_flop(run.spec, 1, int(prompts[row]), float(responses[row].mean())) for row in rows]
    seconds = len(rows) / pairs_per_s
    return {
        "mfu": statistics.fmean(by_pair) * pairs_per_s / bench.ceilings["matrix_rate"],
        "sequence_tokens_per_s": {
            "padded": float(padded.sum() / seconds),
            "real": float(lengths[rows].sum() / seconds),
        },
        "mfu_open_instruct": {
            "padded": open_instruct_mfu(bench, run.spec, padded, seconds),
            "real": open_instruct_mfu(bench, run.spec, lengths[rows].ravel(), seconds),
        },
    }


def generation(bench: Bench, limit_s: float, *, side: str, model: str) -> Iterator[Row]:
    size, shape = bench.size, json.dumps(bench.shape(model))
    arguments = [side, shape, size.rows, size.prompt // 4, size.new_tokens]
    with bench.candidate(limit_s, "generating.py", *arguments) as candidate:
        first = candidate.step()
        answers = [candidate.step() for _ in range(2)]
    best = min(answers, key=lambda answer: answer["seconds"])
    yield {
        "name": f"{model} {side}",
        "rows": size.rows,
        "tokens_per_s": best["tokens"] / best["seconds"],
        "first_s": first["seconds"],
        **{key: best[key] for key in ("device_peak_mb",) if key in best},
    }


# ---------------------------------------------------------------- which there are


def measure_ceilings(bench: Bench, limit_s: float) -> None:
    """Fills bench.ceilings."""
    arguments = ("float32", "--size", 256) if bench.is_tiny else ("bfloat16",)
    with bench.candidate(limit_s, "ceilings.py", *arguments) as candidate:
        answer = candidate.step()
        about = candidate.about
    bench.ceilings.update({name: about[name] for name in ("card", "memory_bytes", "versions")})
    bench.ceilings.update({name: answer[name] for name in ("matrix_rate", "copy_rate")})


def all_jobs(size: Size, data: Path | None) -> list[Job]:
    """By importance: those at the end are left out first if time is short."""

    def job(part: str, name: str, expected_s: float, work: Callable, **settings: Any) -> Job:
        return Job(part, name, expected_s, functools.partial(work, **settings))

    few, both = size.pairs[:1], size.pairs

    def ours(part: str, name: str, **settings: Any) -> Job:
        """Compiles ahead."""
        ahead = functools.partial(our_process, **settings)
        return job(part, name, 25, our_steps, **settings)._replace(ahead=ahead, compiles=True)

    def theirs(part: str, name: str, **settings: Any) -> Job:
        """Imports ahead."""
        ahead = functools.partial(their_process, **settings)
        return job(part, name, 25, their_steps, **settings)._replace(ahead=ahead)

    trl = {"script": "trl_dpo.py"}
    plain = {"script": "plain_torch.py", "pairs": few, "precision": "autocast"}
    pythia, qwen = "pythia-1.4b", "qwen3-1.7b"
    on_pairs = job("data", "pythia-410m", 60, on_data)._replace(ahead=data_process, compiles=True)
    return [
        ours("steps", pythia, model=pythia, pairs=both),
        theirs("trl", f"{pythia} autocast", **trl, model=pythia, pairs=both, precision="autocast"),
        theirs("trl", f"{pythia} bfloat16", **trl, model=pythia, pairs=both, precision="bfloat16"),
        ours("steps", qwen, model=qwen, pairs=few),
        theirs("trl", f"{qwen} autocast", **trl, model=qwen, pairs=few, precision="autocast"),
        job("golden", "score stage", 30, golden)._replace(is_timed=False),
        ours("lora", "llama-3-8b", **lora_settings(size)),
        *([on_pairs] if data is not None else []),
        job("generation", f"{qwen} ours", 35, generation, side="ours", model=qwen),
        job("generation", f"{qwen} transformers", 45, generation, side="transformers", model=qwen),
        theirs("trl", f"{qwen} bfloat16", **trl, model=qwen, pairs=few, precision="bfloat16"),
        theirs("torch", pythia, **plain, model=pythia),
        job("quickstart", "quickstart", 65, quickstart),
        theirs("torch", qwen, **plain, model=qwen),
        job("steps", f"{qwen}, more pairs", 110, our_steps, model=qwen, pairs=both[1:]),
        *(
            job(
                "options",
                f"{pythia} {field}={choice}",
                110,
                our_steps,
                model=pythia,
                pairs=few,
                settings={"compute": {field: choice}},
                label=f"ours, {field} {choice}",
            )
            for field in ("attention", "remat", "unroll")
            for choice in choices_of(field)
        ),
    ]
