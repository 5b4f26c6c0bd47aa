"""Gated delta nets among layers that attend: counts, shardings, memory, and configs that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from helpers.hub_configs import WRAPPED
from helpers.tiny import QWEN3_5, random_batch
from helpers.wrapped import WRAPPED as WRAPPERS_OF_TESTS
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.decoder_spec import choose_projections
from sparsepo_jax.models.directory import config_dtype
from sparsepo_jax.models.export import save_hf
from sparsepo_jax.models.lora import Lora, split_adapters
from sparsepo_jax.models.operations import Passes, Tokens, matrix_operations
from sparsepo_jax.models.safetensors_file import TensorFile
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.weights import tensor_places
from sparsepo_jax.ops.gated_delta import unit_lower_inverse
from sparsepo_jax.run.need import kept_features
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.sharding.rules import weight_shardings
from sparsepo_jax.train.forward import _inputs
from sparsepo_jax.train.optimizer import is_decayed
from sparsepo_jax.train.problem import Problem

SPEC = spec_from_hf(QWEN3_5)
DELTA, ATTENTION = (SPEC.of_layer(layer) for layer in (0, 1))


@functools.cache
def shapes(lora=None):
    return {
        path: x.shape
        for path, x in split_module(nnx.eval_shape(lambda: Decoder(SPEC, lora=lora, rngs=nnx.Rngs(0))))[
            1
        ].items()
    }


def test_weights_are_counted():
    sizes = {path: int(np.prod(shape)) for path, shape in shapes().items()}
    assert SPEC.parameter_count() == sum(sizes.values())
    matrices = (size for path, size in sizes.items() if path.endswith((".kernel", ".embedding")))
    assert SPEC.matrix_count() == sum(matrices)
    every = Lora(choose_projections((".",), SPEC), rank=2, alpha=1.0)
    assert "delta.decay" in every.targets and "attention.gate" in every.targets
    adapters = split_adapters(dict.fromkeys(shapes(every)))[1]
    count = sum(int(np.prod(shapes(every)[path])) for path in adapters)
    assert SPEC.adapter_parameter_count(every.targets, 2) == count


def test_heads_are_cut_and_nothing_large_is_replicated():
    lora = Lora(choose_projections((".",), SPEC), rank=2, alpha=1.0)
    shardings = weight_shardings(shapes(lora), make_mesh(2, 2, 2))
    cut = [path for path in shapes(lora) if not shardings[path].is_fully_replicated]
    for name in ("query", "key", "value", "gate", "rate", "decay", "out"):
        assert f"blocks.layers_0.delta.{name}.kernel" in cut
        assert f"blocks.layers_0.delta.{name}.lora.lora_a" in cut
    assert "blocks.layers_0.delta.value_filter" in cut and "blocks.layers_1.attention.gate.kernel" in cut


def test_weight_decay_leaves_out_what_makes_memories_decay():
    undecayed = {path.split("delta.")[1] for path in shapes() if "delta." in path and not is_decayed(path)}
    assert undecayed == {"log_speed", "decay_bias", "norm.scale"}


def test_each_remat_keeps_less_and_gates_count():
    for block in (DELTA, ATTENTION):
        kept = [
            kept_features(block, remat) for remat in ("nothing", "norms", "all_but_products", "everything")
        ]
        assert sorted(kept, reverse=True) == kept and len(set(kept)) == 4
    # Products [D, F] and the residual stream, twice; queries, keys [12]; values, gates [20]; rate, decay [4].
    assert kept_features(DELTA, "all_but_products") == 2 * 24 + 2 * 16 + 2 * 12 + 2 * 20 + 2 * 4


def test_memories_cost_the_same_however_many_tokens_are_seen():
    def operations(spec, seen):
        return matrix_operations(spec, Tokens(10, seen, 0), Passes(1, 0))

    assert operations(DELTA, 50) == operations(DELTA, 500) < operations(ATTENTION, 10**6)
    memories = operations(DELTA, 0) - 4 * 2 * DELTA.matrix_count_of_block() * 10
    assert memories == 4 * 10 * 6 * 4 * 6 * 5


@pytest.mark.parametrize("shared", [True, False])
def test_rows_branch_only_where_a_prompt_has_several_responses(shared):
    problem = Problem(None, None, None, None, 0, attention="xla")
    assert _inputs(problem, random_batch(shared=shared, rows=2))[2].branched == shared


def test_heads_of_the_module_of_queries_and_gates_alternate():
    """Kills: halves of the module taken for queries and gates."""
    rule, _ = tensor_places(SPEC)["model.layers.1.self_attn.q_proj.weight"]
    x = np.arange(4 * 2 * 8)[:, None] * np.ones((1, 16))
    query, gate = rule.split(x)
    np.testing.assert_array_equal(query[0].reshape(4, 8)[:, 0], [0, 16, 32, 48])
    np.testing.assert_array_equal(gate[0].reshape(4, 8)[:, 0], [8, 24, 40, 56])
    np.testing.assert_array_equal(rule.join(query, gate), x)
    biased = tensor_places(spec_from_hf(QWEN3_5 | {"attention_bias": True}))
    bias, _ = biased["model.layers.1.self_attn.q_proj.bias"]
    assert bias.ours == ("blocks.attention.query.bias", "blocks.attention.gate.bias")
    np.testing.assert_array_equal(bias.split(x[:, 0])[1], gate[0])
    np.testing.assert_array_equal(bias.join(*bias.split(x[:, 0])), x[:, 0])


def test_a_convolution_is_stored_oldest_token_first():
    rule, _ = tensor_places(SPEC)["model.layers.0.linear_attn.conv1d.weight"]
    x = np.random.default_rng(0).normal(size=(12 + 12 + 20, 1, 3))
    parts = rule.split(x)
    assert [part.shape for part in parts] == [(3, 12), (3, 12), (3, 20)]
    np.testing.assert_array_equal(parts[2][0], x[24:, 0, 2])
    np.testing.assert_array_equal(rule.join(*parts), x)


def test_an_export_keeps_the_types_of_published_files(tmp_path):
    """bfloat16, and float32 for what makes memories decay; config.json names the type in its text_config."""
    weights = {path: np.full(shape, 1 / 3, np.float32) for path, shape in shapes().items()}
    save_hf(tmp_path, SPEC, QWEN3_5, weights, {}, "", dtype="bfloat16")
    types = TensorFile(tmp_path / "model.safetensors").types
    assert {name.split("linear_attn.")[1] for name, kind in types.items() if kind == "F32"} == {
        "A_log",
        "norm.weight",
    }
    assert SafeTensors(tmp_path).dtype() == "bfloat16"
    assert config_dtype({"text_config": {"dtype": "bfloat16"}}) == "bfloat16"


def test_an_export_carries_over_what_predicts_later_tokens(tmp_path):
    """Beside the tower. Kills: `mtp.*` refused, lost or trained."""
    config = WRAPPERS_OF_TESTS["qwen3_5"]
    spec = spec_from_hf(config)
    weights = {path: np.zeros(shape, np.float32) for path, shape in shapes().items()}
    others = {
        name: np.full((2, 2), 1 / 3, np.float32) for name in ("mtp.fc.weight", "model.visual.merger.weight")
    }
    names = (name.replace("model.", "model.language_model.", 1) for name in tensor_places(SPEC))
    source = {name: np.zeros(1, np.float32) for name in names}
    (tmp_path / "source").mkdir()
    save_file(source | others, tmp_path / "source" / "model.safetensors")
    save_hf(tmp_path / "out", spec, config, weights, {}, "", source=tmp_path / "source")
    files = (tmp_path / "out").glob("model*.safetensors")
    exported = {name: x for file in files for name, x in load_file(file).items()}
    assert exported.keys() == source.keys() | others.keys()
    assert all(np.array_equal(exported[name], x) for name, x in others.items())


def test_the_layers_of_a_published_model_run_in_one_scan():
    spec = spec_from_hf(WRAPPED["Qwen3.5-27B"][0])
    [scan] = spec.scans()
    assert [stack.kind for stack in scan] == [0, 0, 0, 1] and {len(stack.layers) for stack in scan} == {16}
    assert spec.kinds[1].rotation.dim == 64 and spec.kinds[0].rotation is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QWEN3_5 | {"attn_output_gate": False}, "attn_output_gate: False is not supported, only true"),
        (QWEN3_5 | {"output_gate_type": "sigmoid"}, "output_gate_type: 'sigmoid' is not supported"),
        (QWEN3_5 | {"linear_num_value_heads": 3}, "3 value heads .* no multiple of the 2 key heads"),
        (
            QWEN3_5 | {"layer_types": ["mamba"] * 4},
            "layer_types: expected linear_attention or full_attention",
        ),
        (QWEN3_5 | {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim: expected a positive integer"),
    ],
)
def test_what_makes_another_model_is_refused_by_name(config, message):
    with pytest.raises(SpecError, match=message):
        spec_from_hf(config)


def test_the_inverse_has_the_gradient_of_the_inverse():
    rng = np.random.default_rng(0)
    x, pull = (jnp.asarray(rng.normal(size=(2, 8, 8)), jnp.float32) for _ in range(2))

    def plain(x):
        return (pull * jnp.linalg.inv(jnp.eye(8)[None] + jnp.tril(x, -1))).sum()

    gradient = jax.grad(lambda x: (pull * unit_lower_inverse(x)).sum())(x)
    expected = jax.grad(plain)(x)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
