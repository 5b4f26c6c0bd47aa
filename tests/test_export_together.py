"""An export of several processes whose first one cannot write: simulated, one process after the other."""

import errno

import jax
import numpy as np
import pytest
from flax import nnx

from helpers.tiny import QWEN3_MOE
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.export import fetch_as_written, save_hf
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.stages import export


@pytest.mark.parametrize("written", [0, 3, 8])
def test_the_others_fetch_what_they_would_and_hear_of_a_full_disk(written, tmp_path, monkeypatch):
    """Kills: processes that wait for a fetch which the first one no longer takes part in."""
    spec = spec_from_hf(QWEN3_MOE)
    weights = split_module(Decoder(spec, rngs=nnx.Rngs(0)))[1]
    fetches: list[float] = []

    def to_host(x):
        fetches.append(float(np.asarray(x).sum()))
        return np.asarray(x)

    def full(tensors, path, metadata):
        if len(list(tmp_path.glob("**/unfinished-*"))) >= written:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    monkeypatch.setattr(export, "to_host", to_host)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    told = []

    def run_process(write):
        fetched = export._Fetched()

        def on_host():
            return {path: export._OnHost(x, fetched) for path, x in weights.items()}

        fetches.clear()
        with export._failing_together(lambda: fetch_as_written(spec, on_host(), "float32"), fetched):
            write(on_host())

    def as_the_first(x):  # the first process comes first here
        told.append(bool(x))
        return np.array(told[0])

    monkeypatch.setattr(export, "as_the_first", as_the_first)
    with pytest.raises(OSError, match="No space left"):
        run_process(lambda x: save_hf(tmp_path / "out", spec, QWEN3_MOE, x, {}, "", shard_bytes=2000))
    of_the_first = list(fetches)
    with pytest.raises(UserError, match="the first process could not write the model"):
        run_process(lambda x: fetch_as_written(spec, x, "float32"))
    assert of_the_first == fetches and len(fetches) > 20 and told == [True, False]
