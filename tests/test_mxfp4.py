"""Weights in MXFP4, against transformers' own reading of them."""

import json

import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from helpers.parity import IDS, VALID, load_ours, make_theirs, our_logits, their_outputs
from helpers.tiny import GPT_OSS, LLAMA
from helpers.tolerances import PARITY_LOGITS
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.export import save_hf
from sparsepo_jax.models.spec import fields_note, spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors

E, INPUTS, OUTPUTS = 3, 64, 6


def packed(seed=0):
    """Random bytes, with the scales at both ends of what stands for a number among them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (E, OUTPUTS, INPUTS // 32, 16), dtype=np.uint8)
    scales = rng.integers(0, 255, (E, OUTPUTS, INPUTS // 32), dtype=np.uint8)
    blocks[0] = np.arange(192, dtype=np.uint8).reshape(OUTPUTS, 2, 16)
    scales[0] = np.array([0, 1, 2, 119, 120, 126, 127, 128, 251, 252, 253, 254]).reshape(OUTPUTS, 2)
    return {"a.down_proj_blocks": blocks, "a.down_proj_scales": scales}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_byte_is_read_as_transformers_reads_it(tmp_path, dtype):
    """The scale that stands for nothing (255) aside, to the bit, infinite and negative zeros included.

    Kills: halves of a byte in the wrong order; an exponent that is off by one; [E, out, in] left as it is.
    """
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = packed()
    save_file(tensors, tmp_path / "model.safetensors")
    ((name, ours),) = SafeTensors(tmp_path).read({"a.down_proj"})
    theirs = convert_moe_packed_tensors(*map(torch.tensor, tensors.values()), dtype=dtype).float().numpy()
    assert name == "a.down_proj" and ours.shape == (E, INPUTS, OUTPUTS)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs)
    np.testing.assert_array_equal(np.signbit(ours.astype(np.float32)), np.signbit(theirs))


def test_two_files_may_share_a_tensor_and_its_shape_is_known_before(tmp_path):
    tensors = packed() | {"a.down_proj_bias": np.ones((E, OUTPUTS), np.float32)}
    files = {name: f"model-0000{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    stored = SafeTensors(tmp_path)
    assert stored.shapes() == {"a.down_proj": (E, INPUTS, OUTPUTS), "a.down_proj_bias": (E, OUTPUTS)}
    assert {name: x.shape for name, x in stored.read(stored.shapes())} == stored.shapes()


def test_a_scale_that_stands_for_no_number_is_refused_by_name(tmp_path):
    tensors = packed()
    tensors["a.down_proj_scales"][1, 2, 0] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="a.down_proj_scales: a scale of 255 stands for no number"):
        list(SafeTensors(tmp_path).read({"a.down_proj"}))


@pytest.mark.parametrize("change", ["dtype", "shape", "alone"])
def test_other_bytes_are_no_weights(tmp_path, change):
    tensors = packed()
    if change == "dtype":
        tensors["a.down_proj_scales"] = tensors["a.down_proj_scales"].astype(np.int32)
    elif change == "shape":
        tensors["a.down_proj_scales"] = tensors["a.down_proj_scales"][:2]
    else:
        del tensors["a.down_proj_scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    stored = SafeTensors(tmp_path)
    assert stored.shapes().keys() == tensors.keys()
    with pytest.raises(UserError, match="a.down_proj_blocks holds U8, not floating-point numbers"):
        list(stored.read({"a.down_proj_blocks"}))


def pack_experts(directory, seed=1):
    """Rewrites the experts of a checkpoint as random bytes in MXFP4, and its config.json to say so."""
    rng = np.random.default_rng(seed)
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
        tensors[f"{name}_scales"] = rng.integers(120, 126, shape, dtype=np.uint8)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(config))


def test_a_packed_checkpoint_is_the_model_that_transformers_makes_of_it(tmp_path):
    """And its export is that model in bfloat16, which says nothing of MXFP4 any more."""
    from transformers import AutoModelForCausalLM

    config = GPT_OSS | {"hidden_size": 32, "intermediate_size": 64}
    make_theirs(config).to(torch.bfloat16).save_pretrained(tmp_path)
    pack_experts(tmp_path)
    spec, graph, weights = load_ours(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = their_outputs(theirs, IDS, VALID).logits.numpy()
    np.testing.assert_allclose(our_logits(graph, weights, IDS, VALID)[0], expected, atol=PARITY_LOGITS)

    assert SafeTensors(tmp_path).dtype() == "bfloat16"
    out, read = tmp_path / "out", read_config(tmp_path)
    save_hf(out, spec, read, weights, {}, "", dtype="bfloat16")
    assert "quantization_config" not in read_config(out) and "quantization_config" in read
    again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    np.testing.assert_array_equal(their_outputs(again, IDS, VALID).logits.numpy(), expected)


@pytest.mark.parametrize(
    ("config", "method"), [(GPT_OSS, "mxfp4"), (GPT_OSS, "awq"), (GPT_OSS, None), (LLAMA, "mxfp4")]
)
def test_a_config_may_be_quantised_in_one_way_and_one_family_alone(config, method):
    config = config | {"quantization_config": {"quant_method": method}}
    if (config["model_type"], method) == ("gpt_oss", "mxfp4"):
        assert spec_from_hf(config) == spec_from_hf(GPT_OSS) and fields_note(config, "here") is None
    else:
        with pytest.raises(SpecError, match="quantization_config: .* take the unquantised checkpoint"):
            spec_from_hf(config)
