"""The decoder against transformers, in both directions, on tiny random models; float32 on CPU."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.parity import bfloat16_errors, load_ours, make_theirs, our_logits, our_states, their_outputs
from helpers.quick import DIFFERENT, named_slow_but, slow_but
from helpers.tiny import CONFIGS, GEMMA3, GPT2, GPT_OSS, GPTJ, LLAMA, LONGROPE, NEOX, QWEN3_MOE, YARN
from helpers.tolerances import BFLOAT16, PARITY_LOGITS
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import merge_module, split_module
from sparsepo_jax.models import field_kinds, field_tables
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.export import save_hf
from sparsepo_jax.models.families import FAMILIES
from sparsepo_jax.models.lora import hold_base
from sparsepo_jax.models.spec import fields_note, spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors, find_checkpoint
from sparsepo_jax.ops.attention import Given

GRANITE_HYBRID = CONFIGS["granite 4, dense"]
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
some_families = pytest.mark.parametrize("config", named_slow_but(DIFFERENT, CONFIGS))
few_families = pytest.mark.parametrize(
    "config", named_slow_but(("phi3", "gpt-oss", "gemma4, two shapes"), CONFIGS)
)


@every_config
def test_logits_and_states_of_every_layer_equal_transformers(config, tmp_path):
    model = make_theirs(config)
    model.save_pretrained(tmp_path)
    _, graph, weights = load_ours(tmp_path)
    rng = np.random.default_rng(0)
    ids_BS = rng.integers(0, 31, (4, 12))
    lengths = np.array([12, 7, 9, 3])
    right, left = np.arange(12) < lengths[:, None], np.arange(12)[::-1] < lengths[:, None]
    for valid_BS in (right, left):
        theirs = their_outputs(model, ids_BS, valid_BS)
        logits, kept = our_logits(graph, weights, ids_BS, valid_BS)
        np.testing.assert_allclose(
            np.asarray(logits)[valid_BS], theirs.logits.numpy()[valid_BS], atol=PARITY_LOGITS
        )
        for state, expected in zip(our_states(kept), theirs.hidden_states, strict=True):
            np.testing.assert_allclose(
                np.asarray(state)[valid_BS], expected.numpy()[valid_BS], atol=PARITY_LOGITS
            )


@few_families
def test_bfloat16_is_as_exact_as_transformers(config, tmp_path):
    ours, theirs = bfloat16_errors(config, tmp_path)
    assert 0 < ours <= BFLOAT16 * theirs


@some_families
def test_transformers_loads_what_we_export(config, tmp_path):
    from transformers import AutoModelForCausalLM

    spec = spec_from_hf(config)
    graph, weights = split_module(Decoder(spec, rngs=nnx.Rngs(3)))
    masks = {"common_mask.mixer.weight": np.ones((1, 2), np.float32)}
    save_hf(
        tmp_path / "out",
        spec,
        config,
        {path: np.asarray(x) for path, x in weights.items()},
        masks,
        "# A card",
    )
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids_BS, valid_BS = np.random.default_rng(1).integers(0, 31, (2, 9)), np.ones((2, 9), bool)
    expected = their_outputs(model.eval(), ids_BS, valid_BS).logits.numpy()
    np.testing.assert_allclose(our_logits(graph, weights, ids_BS, valid_BS)[0], expected, atol=PARITY_LOGITS)
    assert (tmp_path / "out" / "masks.safetensors").exists()
    assert (tmp_path / "out" / "README.md").read_text() == "# A card"
    again = load_ours(tmp_path / "out")[2]
    assert all(np.array_equal(again[path], weights[path]) for path in weights), (
        "our own export comes back bit for bit"
    )


def test_a_sharded_checkpoint_loads_like_one_file(tmp_path):
    model = make_theirs(GPT2)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    _, _, expected = load_ours(tmp_path / "one")
    _, _, weights = load_ours(tmp_path / "many")
    assert all(np.array_equal(weights[path], expected[path]) for path in expected)


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("config", "axes"), [(GPTJ, (8, 1, 1)), (GPTJ, (2, 2, 2)), (QWEN3_MOE, (1, 2, 4)), (GPT_OSS, (2, 2, 2))]
)
def test_weights_are_streamed_onto_a_mesh(config, axes, held, tmp_path):
    """As sharded as the rules say, the same numbers, in the type in which they will be held.

    Kills: an expert in another's place; norms or biases that are rounded, too.
    """
    from sparsepo_jax.build.loading import load_weights
    from sparsepo_jax.sharding.mesh import make_mesh
    from sparsepo_jax.sharding.rules import weight_shardings

    make_theirs(config).save_pretrained(tmp_path, max_shard_size="10KB")
    spec, _, expected = load_ours(tmp_path)
    expected = hold_base(expected, held)
    mesh = make_mesh(*axes)
    weights = load_weights(str(tmp_path), spec, mesh, held)
    shardings = weight_shardings({path: x.shape for path, x in expected.items()}, mesh)
    assert weights.keys() == expected.keys()
    is_sharded = any(not x.sharding.is_fully_replicated for x in weights.values())
    assert is_sharded == (axes != (8, 1, 1))
    for path, x in weights.items():
        assert x.sharding.is_equivalent_to(shardings[path], x.ndim) and x.dtype == expected[path].dtype
        np.testing.assert_array_equal(x, expected[path])


def test_a_bfloat16_checkpoint_loads_as_float32(tmp_path):
    model = make_theirs(GPT2).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = load_ours(tmp_path)[2]
    assert weights["embed.embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(
        weights["embed.embedding"], model.transformer.wte.weight.detach().float().numpy()
    )


def test_all_wrong_tensors_are_listed_at_once(tmp_path):
    from safetensors.numpy import load_file, save_file

    make_theirs(GPT2).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.ln_2.bias"]
    tensors["transformer.wpe.weight"] = np.zeros((7, 16), np.float32)
    tensors["transformer.h.0.adapter.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        load_ours(tmp_path)
    text = str(error.value)
    assert "transformer.h.1.ln_2.bias is missing (expected shape [16])" in text
    assert "transformer.wpe.weight has shape [7, 16], expected [32, 16]" in text
    assert "transformer.h.0.adapter.weight" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "bloom"},
            "unknown architecture 'bloom'; known: " + ", ".join(FAMILIES),
        ),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True is not supported"),
        ({"n_head": 3}, "no multiple of the 3 heads"),
        ({"activation_function": "mish"}, "unknown activation 'mish'"),
        ({"n_layer": 0}, "n_layer: expected a positive integer up to 16,384, got 0"),
        ({"n_layer": 2**40}, "n_layer: expected a positive integer up to 16,384, got 1099511627776"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, got 'false'"),
        (
            {"layer_norm_epsilon": float("nan")},
            "layer_norm_epsilon: expected a number above 0 and up to 1, got nan",
        ),
        (
            {"n_embd": "a\nb" * 99},
            "n_embd: expected a positive integer up to 16,777,216, got 'a.{1,3}nba.{1,3}nb.*\\.\\.\\.$",
        ),
    ],
)
def test_what_cannot_be_run_faithfully_is_refused_by_name(change, message):
    with pytest.raises(SpecError, match=message.replace("[", r"\[")):
        spec_from_hf(GPT2 | change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            NEOX | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type: 'linear'",
        ),
        (
            LLAMA | {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}},
            "rope_type: 'ntk' is not supported, only default, linear, llama3, yarn, longrope",
        ),
        (
            LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type: 'dynamic' is not supported, since .* up to 32 tokens rope_type 'default' is the same",
        ),
        (
            LLAMA | {"rope_parameters": YARN | {"rope_theta": 1.0}},
            "rope_theta: expected a number above 1 for yarn, got 1",
        ),
        (
            LLAMA | {"rope_parameters": LONGROPE | {"short_factor": [1.0]}},
            "short_factor: expected 2 numbers, one for each pair of the 4 rotated dims, got 1",
        ),
        (
            LLAMA | {"rope_parameters": LONGROPE | {"long_factor": [1.0, None]}},
            "long_factor: expected a list of numbers above 0 and up to 1e.06",
        ),
        (
            GEMMA3 | {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
            "rope_parameters.full_attention.truncate: False is not supported",
        ),
        (
            LLAMA | {"use_sliding_window": True},
            "use_sliding_window: True is not supported",
        ),
        (
            LLAMA | {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: sliding_attention needs a sliding_window that is in use",
        ),
        (LLAMA | {"rms_norm_eps": None}, "rms_norm_eps: missing"),
        (LLAMA | {"num_key_value_heads": 3}, "4 query heads are no multiple of the 3 key/value heads"),
        (LLAMA | {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor: missing"),
        (LLAMA | {"rope_parameters": {"type": "longrope"}}, "short_factor: missing"),
        (
            LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": "8"}},
            "rope_scaling.factor: expected a number above 0 and up to 1e.06, got '8'",
        ),
        (
            LLAMA | {"rope_parameters": CONFIGS["llama 3"]["rope_parameters"] | {"high_freq_factor": 1.0}},
            "low_freq_factor below high_freq_factor, got 1.0 and 1.0",
        ),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5 is not supported, only 1.0"),
        (
            GEMMA3 | {"rope_parameters": {"sliding_attention": [1]}},
            r"rope_parameters.sliding_attention: expected an object or null, got \[1\]",
        ),
        (NEOX | {"rotary_pct": 0.1}, "0 rotated dims do not fit heads of 8"),
        (LLAMA | {"model_type": "glm4", "head_dim": 6}, "3 rotated dims do not fit heads of 6"),
        (
            LLAMA | {"model_type": "olmo3", "rope_theta": 1e4},
            "olmo3: rope_theta: 10000 is not read by transf",
        ),
        (
            LLAMA | {"model_type": "smollm3", "no_rope_layers": [1]},
            "no_rope_layers: expected a 0 or 1 for each of 2 layers, got 1",
        ),
        (
            LLAMA | {"model_type": "exaone4", "sliding_window": 4},
            "layer_types: missing, though there is a sliding_window",
        ),
        (
            GRANITE_HYBRID | {"num_local_experts": 4},
            "num_local_experts: 4 is not supported, only 0 .a dense model.",
        ),
        (
            GRANITE_HYBRID | {"layer_types": ["attention", "mamba"]},
            "layer_types: only 'attention' for each of 2 layers is supported, no Mamba",
        ),
        (LLAMA | {"use_qk_norm": True}, "llama: use_qk_norm: True is not supported"),
        (
            LLAMA | {"model_type": "ministral3", "head_dim": 8, "rope_parameters": YARN},
            "llama_4_scaling_beta: missing",
        ),
    ],
)
def test_positions_windows_and_heads_that_cannot_be_run_are_refused(config, message):
    with pytest.raises(SpecError, match=message):
        spec_from_hf(config)


def test_phi3s_first_positions_are_those_of_its_class():
    """transformers takes its class's 4,096 before a value within rope_scaling. Kills: the long factors' model
    taken for one that was never stretched."""
    scaling = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 9.0]}
    phi3 = LLAMA | {"model_type": "phi3", "max_position_embeddings": 131072}
    for more in ({}, {"original_max_position_embeddings": 8192}):
        rotation = spec_from_hf(phi3 | {"rope_scaling": scaling | more}).kinds[0].rotation
        assert rotation.longest(131072) == 4096 and rotation.attention_factor == pytest.approx(1.19, abs=0.01)


def test_a_config_in_the_older_form_of_rope_scaling_means_the_same():
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert spec_from_hf(LLAMA | new) == spec_from_hf(LLAMA | old)


HOSTILE = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**40,
    2**70,
    10**5000,
    0.5,
    1e39,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "768",
    "a\nb\ud800",
    [],
    [1],
    [[]],
    ["full_attention"],
    {},
    {"a": []},
    {1: 2},
    {"rope_type": "linear"},
    {"rope_type": ["llama3"]},
    functools.reduce(lambda deep, _: [deep], range(5000), 0),
)
ROTARY = sorted(field_kinds.ROTARY_KINDS.keys() | field_kinds.LAYER_KINDS.keys())
SCALING = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def assert_each_is_a_spec_or_one_line(config, changes):
    specs, refused = 0, 0
    for change in changes:
        try:
            spec = spec_from_hf(config | change)
            assert (fields_note(config | change, "here") or "none").isprintable()
            assert spec.parameter_count() > 0 and all(
                kind.rotation is None or math.isfinite(kind.rotation.base) for kind in spec.kinds
            )
            blocks = [block for block, _ in spec.blocks()]
            rotations = [(block.kinds[0].rotation, block.head_dim) for block in blocks]
            assert all(rotation is None or rotation.dim <= head_dim for rotation, head_dim in rotations)
            specs += 1
        except SpecError as error:
            assert str(error).isprintable() and len(str(error)) < 600, str(error)
            refused += 1
    return specs, refused


@few_families
def test_a_config_with_any_value_anywhere_is_a_spec_or_one_line(config):
    """Kills: a field that is read without its kind being known.

    1,469 such mutations once gave 118 tracebacks, and two that never ended.
    """
    others = {"rotary", "auto_map", "architectures", "id2label", "unknown", *ROTARY}
    names = config.keys() | field_tables.READ[config["model_type"]] | field_tables.SWITCHES.keys() | others
    changes = [{name: value} for name in names for value in HOSTILE]
    specs, refused = assert_each_is_a_spec_or_one_line(config, changes)
    assert specs > 20 and refused > 500


@pytest.mark.parametrize("name", ["neox", "llama", "gemma3, local and global layers", "phi4 mini"])
def test_rotary_fields_with_any_value_are_a_spec_or_one_line(name):
    """Each field in a kind of rotation that reads it; in families that read them differently."""
    reader = {field: kind for kind, read in field_tables.ROPE_READ.items() for field in read}
    forms = [("rope_parameters", dict), ("rope_scaling", dict)]
    if name.startswith("gemma3"):
        forms.append(("rope_parameters", lambda rope: {"full_attention": rope}))
        forms.append(("rope_parameters", lambda rope: {"sliding_attention": rope}))
    changes = [
        {place: form({"rope_type": reader.get(field, "default"), **SCALING, field: value})}
        for field in ROTARY
        for value in HOSTILE
        for place, form in forms
    ]
    specs, refused = assert_each_is_a_spec_or_one_line(CONFIGS[name], changes)
    assert len(ROTARY) == 19 and specs and refused > 500


def test_gemmas_local_layers_follow_the_pattern_of_the_config():
    config = {name: value for name, value in GEMMA3.items() if name != "layer_types"}

    def windows(spec):
        return [spec.kinds[kind].window for kind in spec.kind_of_layer or (0, 0, 0)]

    assert windows(spec_from_hf(config | {"sliding_window_pattern": 2})) == [4, None, 4]
    assert windows(spec_from_hf(config)) == [4, 4, 4]


@every_config
def test_the_parameter_count_is_that_of_the_weights(config):
    spec = spec_from_hf(config)
    weights = split_module(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))))[1]
    assert spec.parameter_count() == sum(x.size for x in weights.values())


def test_a_profile_names_the_parts():
    """Kills: a part outside its scope, in the forward or the backward pass."""
    spec, ids = spec_from_hf(NEOX), jnp.arange(6)[None]
    attend = jnp.tril(jnp.ones((1, 6, 6), bool))
    graph, weights = split_module(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))))

    def logits(weights):
        model = merge_module(graph, weights)
        states_BSD, _ = model(ids, ids, Given(attend, ids, ids))
        return model.logits(states_BSD).sum()

    for function in (logits, jax.grad(logits)):
        text = jax.jit(function).lower(weights).as_text(debug_info=True)
        for part in ("embed", "attention", "mlp", "final_norm", "head"):
            assert re.search(rf'["/(]{part}[/)]', text), part


@pytest.mark.parametrize(
    "remat, unroll",
    slow_but(
        [("everything", False), ("nothing", True)],
        [("norms", False), ("all_but_products", False), ("everything", False), ("nothing", True)],
    ),
)
def test_remat_and_unrolling_change_no_gradient(remat, unroll):
    spec, ids = spec_from_hf(NEOX), jnp.arange(6)[None]
    attend = jnp.tril(jnp.ones((1, 6, 6), bool))
    weights = split_module(Decoder(spec, rngs=nnx.Rngs(0)))[1]

    def gradient(remat, unroll):
        graph = split_module(nnx.eval_shape(lambda: Decoder(spec, remat=remat, rngs=nnx.Rngs(0))))[0]

        def loss(weights):
            model = merge_module(graph, weights)
            return jnp.sum(model(ids, ids, Given(attend, ids, ids), unroll=unroll)[0] ** 2)

        return jax.jit(jax.grad(loss))(weights)

    plain, again = gradient("nothing", False), gradient(remat, unroll)
    for path in plain:
        np.testing.assert_allclose(plain[path], again[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_each_step_of_remat_keeps_less():
    spec, ids = spec_from_hf(NEOX), jnp.arange(6)[None]
    attend = jnp.tril(jnp.ones((1, 6, 6), bool))

    def kept_bytes(remat):
        graph, weights = split_module(Decoder(spec, remat=remat, rngs=nnx.Rngs(0)))
        _, pullback = jax.vjp(lambda w: merge_module(graph, w)(ids, ids, Given(attend, ids, ids))[0], weights)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pullback) if isinstance(leaf, jax.Array))

    kept = [kept_bytes(remat) for remat in ("nothing", "norms", "all_but_products", "everything")]
    assert kept == sorted(set(kept), reverse=True)


def test_a_directory_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        read_config(find_checkpoint(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    with pytest.raises(UserError, match="safetensors"):
        SafeTensors(tmp_path)
