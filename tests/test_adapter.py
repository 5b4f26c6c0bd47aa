"""Runs that start from PEFT's adapters: read, merged or trained further, and what the reference then is."""

import json

import numpy as np
import pytest
import torch

from helpers.parity import IDS, VALID, load_ours, make_theirs, our_logits, their_outputs
from helpers.program import lines_of, merged, run, weights_of, write_config
from helpers.quick import slow_but
from helpers.tiny import CONFIGS, GPT2, LLAMA
from helpers.tolerances import PARITY_LOGITS, TOKEN
from sparsepo_jax.config.load import load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.adapter_config import read_adapter_config
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.train import first_step

# Names of modules to adapt, by family: fused projections among them.
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gptj": ["q_proj", "v_proj", "fc_in"],
    "gpt_bigcode": ["c_attn", "c_fc"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "cohere": ["q_proj", "v_proj"],
}


def make_adapted(config, directory, *, base=None, seed=1, **settings):
    """transformers' model with one of PEFT's adapters, with random A and B.

    Saved as directory/base and directory/adapter.
    """
    from peft import LoraConfig, get_peft_model

    model = make_theirs(config)
    model.save_pretrained(directory / "base")
    settings = {
        "r": 3,
        "lora_alpha": 12,
        "target_modules": TARGETS.get(config["model_type"]),
        "task_type": "CAUSAL_LM",
    } | settings
    adapted = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(directory / "adapter")
    return adapted.eval()


def merged_weights(directory):
    """base with the adapter in it, merged on a mesh of eight devices."""
    from sparsepo_jax.build.loading import load_weights
    from sparsepo_jax.build.weights import add_adapter

    mesh, spec = make_mesh(None, 2, 2, None), load_ours(directory / "base")[0]
    weights = load_weights(str(directory / "base"), spec, mesh)
    merged = add_adapter(weights, Adapter(str(directory / "adapter"), spec, "policy.adapter"), mesh)
    return {path: np.asarray(x) for path, x in merged.items()}


def merged_logits(directory):
    """Logits of base and adapter, and of the base alone."""
    _, graph, base = load_ours(directory / "base")
    return our_logits(graph, merged_weights(directory), IDS, VALID)[0], our_logits(graph, base, IDS, VALID)[0]


def lora_logits(directory):
    """Logits of our decoder with the adapter as its LoRA."""
    import jax.numpy as jnp

    from sparsepo_jax.build.lora import as_lora
    from sparsepo_jax.build.models import decoder_graph

    spec, _, base = load_ours(directory / "base")
    adapter = Adapter(str(directory / "adapter"), spec, "policy.adapter")
    graph = decoder_graph(spec, jnp.dtype(jnp.float32), lora=as_lora(adapter.lora))
    return our_logits(graph, base | adapter.weights(), IDS, VALID)[0]


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["gpt2", "phi4 mini"],
        [
            "gpt2",
            "gptj, part of the dims rotated",
            "neox",
            "llama",
            "bigcode, all heads",
            "bigcode, one key/value head",
            "phi4 mini",
            "cohere, norms of queries and keys",
        ],
    ),
)
def test_an_adapter_computes_what_peft_computes_merged_and_as_lora(name, tmp_path):
    theirs = their_outputs(make_adapted(CONFIGS[name], tmp_path), IDS, VALID).logits.numpy()
    ours, base = merged_logits(tmp_path)
    assert np.abs(theirs - base).max() > 0.01, "the adapter does something"
    np.testing.assert_allclose(ours, theirs, atol=PARITY_LOGITS)
    np.testing.assert_allclose(lora_logits(tmp_path), theirs, atol=PARITY_LOGITS)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
            "alpha_pattern": {"v_proj": 5, "layers.0.mlp.down_proj": 7},
        },
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
        {"target_modules": r".*\.(q|o)_proj", "bias": "all"},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"modules_to_save": ["lm_head", "norm"]},
    ],
    ids=[
        "rslora",
        "patterns",
        "all-linear",
        "one layer",
        "regular expression with biases",
        "embedding and head",
        "modules_to_save",
    ],
)
def test_whatever_plain_lora_can_be_is_merged(settings, tmp_path):
    config = CONFIGS["llama 3"] if settings.get("bias") else LLAMA
    theirs = their_outputs(make_adapted(config, tmp_path, **settings), IDS, VALID).logits.numpy()
    ours, base = merged_logits(tmp_path)
    assert np.abs(theirs - base).max() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=PARITY_LOGITS)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rank_pattern": {"q_proj": 2}}, "different ranks (2, 3)"),
        ({"alpha_pattern": {"v_proj": 5}}, "different scales"),
        ({"layers_to_transform": [1]}, "in 1 of 2 layers"),
        ({"modules_to_save": ["norm"]}, "it holds whole tensors (base_model.model.model."),
        (
            {"target_modules": ["lm_head", "q_proj"]},
            "it holds whole tensors (base_model.model.lm_head.base_layer.weight)",
        ),
    ],
)
def test_what_po_lora_cannot_be_is_said(settings, reason, tmp_path):
    make_adapted(LLAMA, tmp_path, **settings)
    spec = load_ours(tmp_path / "base")[0]
    with pytest.raises(UserError) as error:
        _ = Adapter(str(tmp_path / "adapter"), spec, "policy.adapter").lora
    assert reason in str(error.value) and "leave out po.lora" in str(error.value)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")  # PEFT sets them itself
@pytest.mark.parametrize("name", ["qwen3 moe", "mixtral"])
def test_routers_that_an_adapter_of_all_modules_adapts_are_merged(name, tmp_path):
    """PEFT's all-linear adapts them, too. Mixtral's are called otherwise in checkpoints than in the model."""
    adapted = make_adapted(CONFIGS[name], tmp_path, target_modules="all-linear")
    assert any("mlp.gate.lora_A" in parameter for parameter, _ in adapted.named_parameters())
    merged, base = merged_logits(tmp_path)
    expected = their_outputs(adapted, IDS, VALID).logits.numpy()
    np.testing.assert_allclose(merged, expected, atol=PARITY_LOGITS)
    assert not np.allclose(base, expected, atol=1e-2)
    adapter = Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "base")[0], "policy.adapter")
    assert any(".mlp.gate" in module.name for module in adapter.modules)
    with pytest.raises(UserError, match="which is no projection of a block, .*leave out po.lora"):
        _ = adapter.lora


def changed(directory, **settings):
    """The adapter's configuration with other settings."""
    path = directory / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora: True is not supported"),
        ({"peft_type": "IA3"}, "peft_type: 'IA3' is not supported, only LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base itself"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: [[0, 2]] is not supported"),
        ({"use_something_new": True}, "use_something_new: True is not supported"),
        ({"r": "eight"}, "expected a whole number r >= 1"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern: expected a mapping of patterns to numbers"),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(settings, reason, tmp_path):
    make_adapted(LLAMA, tmp_path)
    spec = load_ours(tmp_path / "base")[0]
    changed(
        tmp_path,
        made_with_version="2024.8",
        auto_mapping={"unsloth_fixed": True},
        runtime_config={"ephemeral_gpu_offload": False},
    )
    Adapter(str(tmp_path / "adapter"), spec, "policy.adapter")  # what changes nothing is no fault
    changed(tmp_path, **settings)
    with pytest.raises(UserError) as error:
        Adapter(str(tmp_path / "adapter"), spec, "policy.adapter")
    assert reason in str(error.value)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    make_adapted(LLAMA, tmp_path)
    make_theirs(LLAMA | {"hidden_size": 32}).save_pretrained(tmp_path / "wider")
    expected = (
        r"6 tensor\(s\) do not fit the model \(llama\): .*self_attn.q_proj: A \[3, 16\] and B \[16, 3\], "
        r"expected \[rank, 32\]"
    )
    with pytest.raises(UserError, match=expected):
        Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "wider")[0], "policy.adapter")
    make_theirs(GPT2).save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"12 tensor\(s\) .* \(gpt2\): .*q_proj.lora_A.weight is no part of this architecture"
    ):
        Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "other")[0], "policy.adapter")
    make_theirs(LLAMA | {"tie_word_embeddings": True}).save_pretrained(tmp_path / "tied")
    make_adapted(LLAMA, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(UserError, match="embedding and head are one in this model"):
        Adapter(str(tmp_path / "head" / "adapter"), load_ours(tmp_path / "tied")[0], "policy.adapter")


def test_an_embedding_with_more_tokens_is_found_at_the_check(tmp_path):
    """Kills: a run that stops when it merges the adapter, long after the check."""
    from peft import LoraConfig, get_peft_model

    model = make_theirs(LLAMA)
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(33)
    model.save_pretrained(tmp_path / "resized")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    get_peft_model(model, LoraConfig(r=2, **settings)).save_pretrained(tmp_path / "adapter")
    expected = r"lm_head.* has 33 rows and the model 31: .* resize_token_embeddings\(33\)"
    with pytest.raises(UserError, match=expected):
        Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "base")[0], "policy.adapter")
    adapter = Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "resized")[0], "policy.adapter")
    assert len(adapter.whole_tensors) == 2


def test_the_one_embedding_that_peft_saves_along_is_taken_where_the_head_is_tied(tmp_path):
    """PEFT stores it under both names, where tokens were added; copies of their own would not be one."""
    from peft import LoraConfig, get_peft_model

    config = LLAMA | {"tie_word_embeddings": True}
    model = make_theirs(config)
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    merged, base = merged_logits(tmp_path)
    expected = their_outputs(adapted, IDS, VALID).logits.numpy()
    np.testing.assert_allclose(merged, expected, atol=PARITY_LOGITS)
    assert not np.allclose(base, expected, atol=1e-2)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(UserError, match="embedding and head are one in this model"):
        Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "base")[0], "policy.adapter")


# ---------------------------------------------------------------- runs

SHAPE = GPT2 | {"n_positions": 64, "vocab_size": 67}
LORA = {"rank": 3, "alpha": 12.0, "targets": ["query", "key", "value", "out", "up", "down"]}
TRAIN = {"steps": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base for the built-in reviews, two adapters, and a directory to copy neither from."""
    from sparsepo_jax.data.reviews import reviews_vocabulary

    directory = tmp_path_factory.mktemp("adapters")
    shape = SHAPE | {"vocab_size": len(reviews_vocabulary()) + 4}
    make_adapted(shape, directory)
    make_adapted(shape, directory / "second", seed=2, r=2, target_modules=["c_fc"])
    return directory


def settings_of(made, **changes):
    return merged(
        {
            "stages": ["po", "eval", "export"],
            "policy": {"config": None, "path": str(made / "base"), "adapter": str(made / "adapter")},
            "sft": None,
            "po": TRAIN,
            "evaluation": {"sampled_prompts": None},
        },
        changes,
    )


def config_of(directory, made, **changes):
    return str(write_config(directory, **settings_of(made, **changes)))


def summary_of(output):
    return json.loads((output / "summary.json").read_text())


def test_a_merged_adapter_is_the_policy_and_its_own_reference(made, tmp_path, capfd):
    output = run(tmp_path, **settings_of(made))
    printed = capfd.readouterr().out
    reference = summary_of(output)["reference"]
    began = f"the policy as po began ({made / 'base'} + adapter {made / 'adapter'})"
    assert f"po: reference: {began}, float32, digest {reference['digest']}" in printed
    assert "po: step 1: loss " in printed and "is that of policy = reference" in printed
    assert reference == json.loads((output / "po" / "reference.json").read_text())
    assert reference["adapter"] == str(made / "adapter")
    summary = summary_of(output)
    assert summary["before"]["kl"] == 0 < summary["after"]["kl"]
    merged_base = merged_weights(made)
    np.testing.assert_allclose(
        start_of(output)["blocks.up.kernel"], merged_base["blocks.up.kernel"], atol=TOKEN
    )
    assert (output / "export" / "config.json").exists() and not (output / "export" / "adapter").exists()


def start_of(output):
    """The policy as po began, by path."""
    import jax
    from orbax.checkpoint import v1 as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        ocp.metadata(output / "po" / "start").metadata,
    )
    return {path: np.asarray(x) for path, x in ocp.load(output / "po" / "start", like)["policy"].items()}


@pytest.mark.slow
def test_an_adapter_is_trained_further_over_its_own_base(made, tmp_path, capfd):
    """The reference is base + adapter, and export/adapter the trained adapter on the base that it came with.

    PEFT agrees with the merged export.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = run(tmp_path, **settings_of(made, po=TRAIN | {"lora": {}}))
    assert "is that of policy = reference" in capfd.readouterr().out
    summary = summary_of(output)
    # Zero but for rounding: the two models are compiled apart, and tests compile with few optimisations.
    assert summary["before"]["kl"] < 1e-6 < summary["after"]["kl"]
    start, kept = start_of(output), weights_of(output / "po")
    path = "blocks.attention.query.lora.lora_b"
    assert np.abs(start[path]).max() > 0 and 0 < np.abs(kept[f"policy/{path}"] - start[path]).max() < 0.1
    assert load_config(output / "config.yaml", [])[0].po.lora.rank == 3, "taken from the adapter"
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(made / "base"), output / "export" / "adapter"
    )
    merged_export = AutoModelForCausalLM.from_pretrained(output / "export")
    with torch.no_grad():
        np.testing.assert_allclose(
            adapted(torch.tensor(IDS)).logits, merged_export(torch.tensor(IDS)).logits, atol=PARITY_LOGITS
        )
    again = run(
        tmp_path / "again",
        **settings_of(
            made,
            stages=["po"],
            po=TRAIN | {"lora": {}},
            policy={
                "config": None,
                "path": str(made / "base"),
                "adapter": str(output / "export" / "adapter"),
            },
        ),
    )
    begun = start_of(again)
    np.testing.assert_array_equal(begun[path], kept[f"policy/{path}"], "our own export begins where it ended")
    assert main(["--config", str(tmp_path / "config.yaml")]) == 0, "nothing is trained twice"
    assert "po: finished before" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "words"),
    [
        pytest.param({"adapter": "second"}, "second/adapter", id="another adapter"),
        pytest.param({"path": "base"}, "base,", id="the bare base", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "lora",
    [pytest.param(None, id="merged", marks=pytest.mark.slow), pytest.param({}, id="trained further")],
)
def test_the_reference_may_be_the_base_or_another_adapter(reference, words, lora, made, tmp_path, capfd):
    """Its log-probs are those of transformers' model of it, whichever way it is held."""
    named = (
        {"path": str(made / "base")} if "path" in reference else {"adapter": str(made / "second" / "adapter")}
    )
    settings = settings_of(made, stages=["po", "score"], po=TRAIN | {"lora": lora}, reference=named)
    output = run(tmp_path, "objective={kind: dpo}", **settings)
    printed = capfd.readouterr().out
    assert words in printed.split("po: reference: ")[1].split("\n")[0]
    assert "the reference is one of your choice" in printed
    record = lines_of(output / "scores.jsonl")[0]
    plain = run(
        tmp_path / "plain",
        "objective={kind: dpo}",
        stages=["score"],
        sft=None,
        po=None,
        policy={
            "config": None,
            "path": str(made / "base"),
            **({"adapter": named["adapter"]} if "adapter" in named else {}),
        },
    )
    expected = lines_of(plain / "scores.jsonl")[0]
    np.testing.assert_allclose(record["chosen"]["ref_logp"], expected["chosen"]["logp"], atol=TOKEN)


@pytest.mark.slow
def test_a_reference_that_is_not_the_policy_stops_the_first_step(made, tmp_path, capsys, monkeypatch):
    from sparsepo_jax.stages import po

    reference_weights = po.reference_weights
    monkeypatch.setattr(
        po,
        "reference_weights",
        lambda run, start=None: {path: 1.5 * x for path, x in reference_weights(run, start).items()},
    )
    config = config_of(tmp_path, made, stages=["po"])
    assert main(["--config", config, "checkpoint.every_steps=1", "objective={kind: dpo}"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: po: step 1: expected policy = reference") and "policy.adapter" in error
    assert not list((tmp_path / "run" / "po" / "checkpoints").glob("1")), "nothing of it is kept"
    monkeypatch.undo()
    assert main(["--config", config, "objective={kind: dpo}"]) == 1
    assert "other weights than when po began" in capsys.readouterr().err


@pytest.mark.parametrize(
    "metrics",
    [
        {"margin_unmasked": 0.4},
        {"kl/chosen": 0.2, "kl/rejected": 0.1},
        {"log_ratio/chosen": -0.3, "log_ratio/rejected": -0.3},
    ],
)
def test_the_first_step_is_held_against_the_tolerance(metrics):
    """Kills: log-ratios that are the same on both sides, and so leave no margin."""
    metrics = {"margin_unmasked": 0.0, "log_ratio/chosen": 0.0, "log_ratio/rejected": 0.0} | metrics
    check = {"tokens_a_pair": 20.0, "beta": 0.1, "dtype": "float32"}
    with pytest.raises(UserError, match="expected policy = reference"):
        first_step.check_first_step(metrics | {"loss": 0.7}, **check)
    assert first_step.check_first_step(dict.fromkeys(metrics, 0.0) | {"loss": 0.7}, **check) == 0.0


def test_the_digest_of_weights_changes_with_any_of_them_and_not_with_the_mesh():
    import jax
    import jax.numpy as jnp

    from sparsepo_jax.train.checksums import weights_digest

    weights = {
        "blocks.up.kernel": jnp.arange(24.0).reshape(2, 3, 4),
        "head.embedding": jnp.ones((4, 4), jnp.bfloat16),
    }
    digests = {weights_digest(weights)}
    for path, x in weights.items():
        digests.add(weights_digest(weights | {path: x.at[(0,) * x.ndim].add(0.25)}))
    digests.add(weights_digest(weights | {"head.embedding": weights["head.embedding"].astype(jnp.float32)}))
    digests.add(weights_digest(weights | {"blocks.up.kernel": weights["blocks.up.kernel"][:, ::-1]}))
    assert len(digests) == 5
    spread = jax.device_put(
        weights, jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec("x"))
    )
    assert weights_digest(spread) in digests and weights_digest(spread) == weights_digest(weights)


# ---------------------------------------------------------------- what is said before a run


def test_check_says_adapters_without_jax(made, tmp_path):
    import subprocess
    import sys

    config = config_of(tmp_path, made)
    code = (
        "import sys; from sparsepo_jax.main import main; main(['--config', *sys.argv[1:], '--check']); "
        "print(sorted({'jax', 'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )

    def check(*overrides):
        return subprocess.run(
            [sys.executable, "-c", code, config, *overrides], capture_output=True, text=True, check=True
        ).stdout

    printed = check()
    assert printed.endswith("[]\n") and f" + adapter {made / 'adapter'} (LoRA rank 3, merged)" in printed
    printed = check("po.lora={}", f"reference.adapter={made / 'second' / 'adapter'}")
    assert f" + adapter {made / 'adapter'} (LoRA rank 3, trained further by po)" in printed
    assert f" + adapter {made / 'second' / 'adapter'} (LoRA rank 2, on the policy's base)" in printed


def test_another_base_is_a_note(made, tmp_path, capsys):
    import shutil

    shutil.copytree(made / "adapter", tmp_path / "adapter")
    changed(tmp_path, base_model_name_or_path="someone/else")
    config = config_of(
        tmp_path,
        made,
        policy={"config": None, "path": str(made / "base"), "adapter": str(tmp_path / "adapter")},
    )
    assert main(["--config", config, "--check"]) == 0
    assert f"was trained on someone/else; it is put onto {made / 'base'}" in capsys.readouterr().out


def test_mistakes_about_adapters_are_one_line_each(made, tmp_path, capsys):
    config = config_of(tmp_path, made)

    def check(*overrides, status=2):
        assert main(["--config", config, *overrides, "--check"]) == status
        return capsys.readouterr().err

    assert "policy.adapter: no such file or directory: ./nowhere" in check("policy.adapter=./nowhere")
    assert "it holds a whole model: set policy.path to it" in check(f"policy.adapter={made / 'base'}")
    message = check("po.lora={rank: 8, alpha: 12, targets: [query]}")
    assert "po.lora: rank 8, targets ['query'], but policy.adapter, which po trains further, " in message
    assert "has rank 3, targets attention.query, " in message
    assert "leave out po.lora.rank and po.lora.targets" in message and message.count("\n") == 2
    assert "policy.adapter: it is put onto a model: set policy.path" in check(
        "policy.path=null", f"policy.config={json.dumps(SHAPE)}"
    )
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "adapter_config.json").write_text(
        (made / "adapter" / "adapter_config.json").read_text()
    )
    (tmp_path / "pickle" / "adapter_model.bin").write_bytes(b"")
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "adapter_config.json").write_text('{"fine_tune_type": "lora"}')
    (tmp_path / "mlx" / "adapters.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="its adapters.safetensors is MLX's: fuse it there into unquantised"):
        read_adapter_config(str(tmp_path / "mlx"), "policy.adapter")
    assert "adapter_model.bin is a pickle, which is not opened" in check(
        f"policy.adapter={tmp_path / 'pickle'}"
    )
    assert "po.lora: after sft the reference is what sft leaves" in check(
        "stages=[sft, po]",
        "data.sft=[{kind: reviews}]",
        "po.lora={}",
        f"reference.adapter={made / 'adapter'}",
    )


def test_a_changed_adapter_makes_what_was_read_of_it_old(made, tmp_path):
    from sparsepo_jax.run.resume import Marks

    marks = Marks(load_config(config_of(tmp_path, made), [])[0])
    assert str(made / "adapter") in marks.depends("score")["files"]
    assert marks.depends("po")["policy"]["adapter"] == str(made / "adapter")
