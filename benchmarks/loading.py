"""Peak host memory while a checkpoint is loaded, against 1.3 times its largest file plus the model in
float32.

    python benchmarks/loading.py [GB]

Default: 2; writes that much to a temporary directory; about a minute.

A Llama shape of random numbers, in files of 256 MB. The stages' own loader reads it in a process of its own;
the growth of that process's peak (VmHWM) over its value before counts. Exits with 1 if the growth is over the
limit. The result is kept in results/loading-DEVICE.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from work import save_result

FILE_BYTES = 256 * 10**6
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LOAD = """
import re, sys, time
from pathlib import Path
from sparsepo_jax.build.loading import load_weights
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.directory import read_config
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
import jax.numpy as jnp
jnp.zeros(1).block_until_ready()
spec, mesh = spec_from_hf(read_config(Path(sys.argv[1]))), make_mesh(None, 1, 1)
before, began = peak(), time.perf_counter()
weights = load_weights(sys.argv[1], spec, mesh)
print(peak() - before, sum(x.nbytes for x in weights.values()), time.perf_counter() - began)
"""


def write_checkpoint(directory: Path, size: int) -> None:
    """Writes a model of about `size` bytes, file after file, under Hugging Face's tensor names."""
    from sparsepo_jax.build.models import weight_shapes
    from sparsepo_jax.models.spec import spec_from_hf
    from sparsepo_jax.models.weights import to_hf

    parameters = [spec_from_hf(CONFIG | {"num_hidden_layers": n}).parameter_count() for n in (1, 2)]
    layer_bytes = 4 * (parameters[1] - parameters[0])
    other_bytes = 4 * parameters[0] - layer_bytes
    config = CONFIG | {"num_hidden_layers": max(1, round((size - other_bytes) / layer_bytes))}
    spec = spec_from_hf(config)
    (directory / "config.json").write_text(json.dumps(config))
    draws = np.random.default_rng(0)
    tree = {
        path: np.broadcast_to(
            draws.random(shape[1:] if path.startswith("blocks.") else shape, np.float32), shape
        )
        for path, shape in weight_shapes(spec).items()
    }
    files: list[list[str]] = []
    waiting: dict[str, np.ndarray] = {}

    def write() -> None:
        save_file(waiting, directory / f"model-{len(files):05d}.safetensors")
        files.append(list(waiting))
        waiting.clear()

    for name, tensor in to_hf(spec, tree):
        if waiting and sum(x.nbytes for x in waiting.values()) + tensor.nbytes > FILE_BYTES:
            write()
        waiting[name] = np.ascontiguousarray(tensor)
    write()
    index = {
        "weight_map": {name: f"model-{n:05d}.safetensors" for n, names in enumerate(files) for name in names}
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> int:
    size = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), int(size * 1e9))
        largest = max(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
        printed = subprocess.run(
            [sys.executable, "-c", LOAD, directory], capture_output=True, text=True, check=True
        ).stdout
    grown, model, seconds = map(float, printed.split())
    limit = 1.3 * largest + model
    print(f"model {model / 1e9:.2f} GB, largest file {largest / 1e9:.2f} GB, loaded in {seconds:.1f} s")
    print(
        f"peak {grown / 1e9:.2f} GB over the start, limit {limit / 1e9:.2f} GB (1.3 x largest file + model): "
        f"ratio {grown / limit:.2f} {'within' if grown <= limit else 'OVER'}"
    )
    sizes = {"model_gb": model / 1e9, "largest_file_gb": largest / 1e9, "peak_gb": grown / 1e9}
    print(
        save_result("loading", sizes | {"limit_gb": limit / 1e9, "ratio": grown / limit, "seconds": seconds})
    )
    return 0 if grown <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
