"""A state that another version wrote, with other arrays, is not called damaged: nobody should delete it."""

import jax.numpy as jnp
import pytest

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.train.checkpoint import Checkpoints, SavePolicy, load_once, save_once

BEFORE = {"policy": {"up.lora_a": jnp.ones(2)}, "optimizer": ({}, [jnp.zeros(2)])}
NOW = {"policy": {"down.lora_a": jnp.ones(2), **BEFORE["policy"]}, "optimizer": ({}, [jnp.zeros(2)] * 2)}


@pytest.mark.parametrize(
    ("wrote", "wants", "said"),
    [
        (BEFORE, NOW, "it lacks optimizer.1.1, policy.down.lora_a; go on with the version that wrote it"),
        (NOW, BEFORE, "it has optimizer.1.1, policy.down.lora_a; go on with the version that wrote it"),
    ],
)
def test_a_state_of_other_arrays_is_not_damaged(tmp_path, wrote, wants, said):
    """Kills: "is damaged, delete it", for a policy that was trained with adapters of fewer projections."""
    save_once(tmp_path / "final", wrote)
    with pytest.raises(UserError, match=f"final holds other weights .*{said}"):
        load_once(tmp_path / "final", wants)
    checkpoints = Checkpoints(tmp_path / "checkpoints", SavePolicy(every_steps=1), {})
    for step in (1, 2):
        checkpoints.save(wrote, step)
    checkpoints.wait()
    for read in (checkpoints.restore, lambda like: checkpoints.load(2, like)):
        with pytest.raises(UserError, match=f"checkpoints/2 holds other weights .*{said}"):
            read(wants)
    checkpoints.close()
    assert not (tmp_path / "damaged_2").exists()


def test_a_state_that_cannot_be_read_is_damaged(tmp_path):
    save_once(tmp_path / "final", NOW)
    for path in (tmp_path / "final").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="final is damaged"):
        load_once(tmp_path / "final", NOW)
