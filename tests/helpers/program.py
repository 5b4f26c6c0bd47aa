"""The real program on a run small enough for a test."""

import json
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from sparsepo_jax.main import main

SMALL = {
    "stages": ["sft", "po", "eval", "report"],
    "policy": {"config": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64}},
    "tokenizer": {"kind": "reviews"},
    "data": {
        "sft": [{"kind": "reviews", "rows": 40, "seed": 1}],
        "train": [{"kind": "reviews", "rows": 30, "seed": 2}],
        "eval": [{"kind": "reviews", "rows": 9, "seed": 3}],
        "buckets": 1,
    },
    "objective": {
        "kind": "sparsepo",
        "beta": 0.8,
        "mask": {"kind": "learned", "init": "ones", "learning_rate": 0.01},
    },
    "sft": {"steps": 4, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.003}},
    "po": {"steps": 6, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.001}},
    "evaluation": {"batch_size": 8, "sampled_prompts": 5},
    "generation": {"max_new_tokens": 24, "batch_size": 8},
    "logging": {"every_steps": 2, "trackers": []},
}


def merged(config: dict, changes: dict) -> dict:
    """Changes by section, one level deep; None removes the section."""
    result = dict(config)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = result[name] | value
        else:
            result[name] = value
    return {name: value for name, value in result.items() if value is not None}


def write_config(directory: Path, **changes) -> Path:
    """config.yaml of SMALL with changes; runs in directory/run, caches in directory/cache."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"output_dir": str(directory / "run")} | merged(SMALL, changes)
    if "data" in config:
        config["data"] = {"cache_dir": str(directory / "cache")} | config["data"]
    path = directory / "config.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(config, file)
    return path


def run(directory: Path, *overrides: str, **changes) -> Path:
    """Runs the program, expects success, returns the output directory."""
    assert main(["--config", str(write_config(directory, **changes)), *overrides]) == 0
    return directory / "run"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights_of(directory: Path) -> dict[str, np.ndarray]:
    """What a stage left: policy and masks by path, whatever devices wrote them."""
    import jax
    from orbax.checkpoint import v1 as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        ocp.metadata(directory / "final").metadata,
    )
    return {
        f"{group}/{path}": np.asarray(x)
        for group, weights in ocp.load(directory / "final", like).items()
        for path, x in weights.items()
    }
