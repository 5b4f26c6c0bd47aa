"""Adapters: what they add, what they leave alone, and PEFT's reading of them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from helpers.parity import IDS, VALID, load_ours, make_theirs, our_logits, their_outputs
from helpers.program import lines_of, run, weights_of, write_config
from helpers.quick import DIFFERENT, slow_but
from helpers.tiny import CONFIGS, GPT2, LLAMA
from helpers.tolerances import PARITY_LOGITS, TOKEN
from sparsepo_jax.build.weights import adapter_shapes
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.main import main
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.decoder_spec import choose_projections
from sparsepo_jax.models.export import save_peft
from sparsepo_jax.models.lora import Lora, dequantized, hold_base, merge_adapters, split_adapters
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.sharding.rules import weight_shardings

ALL = tuple(spec_from_hf(LLAMA).projections())
EVERYWHERE = Lora(ALL, rank=3, alpha=12.0)


def adapters_of(spec, lora, *, std=0.1):
    """(graph, adapters with both matrices random)."""
    graph, weights = split_module(Decoder(spec, lora=lora, rngs=nnx.Rngs(1)))
    _, fresh = split_adapters(weights)
    return graph, {
        path: x + std * jax.random.normal(jax.random.key(n), x.shape)
        for n, (path, x) in enumerate(fresh.items())
    }


SOME = Lora(("attention.query", "attention.value", "down"), rank=2, alpha=3.0, rslora=True)
# Two of the three projections that one module holds, and others.
MEMORIES = Lora(
    ("attention.gate", "attention.out", "up", "delta.query", "delta.value", "delta.decay", "delta.out"),
    rank=2,
    alpha=3.0,
)
OF_FAMILY = {"qwen3.5": MEMORIES}
FUSED = ("bigcode, one key/value head", "bigcode, all heads", "neox", "llama")


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # PEFT's own
@pytest.mark.parametrize(
    ("name", "lora"),
    [
        *(
            pytest.param(name, OF_FAMILY.get(name, EVERYWHERE), marks=marks)
            for name, marks in ((name, () if name in DIFFERENT else pytest.mark.slow) for name in CONFIGS)
        ),
        *((name, SOME) for name in ("gpt2", "phi3")),
        *(pytest.param(name, SOME, marks=pytest.mark.slow) for name in FUSED),
    ],
)
def test_peft_loads_and_merges_to_the_same_logits(name, lora, tmp_path):
    """Fused modules hold several of our adapters: all of them, or (SOME) only those of queries and values."""
    from peft import PeftModel

    model = make_theirs(CONFIGS[name])
    model.save_pretrained(tmp_path / "base")
    spec, _, base = load_ours(tmp_path / "base")
    graph, adapters = adapters_of(spec, lora)
    save_peft(
        tmp_path / "adapter",
        spec,
        {path: np.asarray(x) for path, x in adapters.items()},
        lora,
        {},
        "# A card",
        None,
    )
    ours = our_logits(graph, {**base, **adapters}, IDS, VALID)[0]
    assert np.abs(ours - their_outputs(model, IDS, VALID).logits.numpy()).max() > 0.01, (
        "the adapters do something"
    )
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    np.testing.assert_allclose(their_outputs(adapted, IDS, VALID).logits.numpy(), ours, atol=PARITY_LOGITS)
    merged = adapted.merge_and_unload()
    np.testing.assert_allclose(their_outputs(merged, IDS, VALID).logits.numpy(), ours, atol=PARITY_LOGITS)


@pytest.mark.parametrize("name", ["llama", "qwen3.5", "qwen3.5 moe", "qwen3 moe, a layer without experts"])
def test_every_adapter_that_can_be_asked_for_is_cut(name):
    """By fsdp and tensor, but for those with an input or output that no two devices can share."""
    spec = spec_from_hf(CONFIGS[name])
    shapes = adapter_shapes(spec, Lora(spec.projection_names(), rank=2, alpha=4.0))
    mesh = make_mesh(4, 1, 2)
    assert len(shapes) >= 2 * len(spec.projection_names())
    for path, sharding in weight_shardings(shapes, mesh).items():
        whole = all(size % 2 for size in shapes[path][1:] if size != 2)
        assert sharding.is_fully_replicated == whole, (path, shapes[path])


def test_merged_weights_are_the_adapted_model():
    spec = spec_from_hf(LLAMA)
    plain, base = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    graph, adapters = adapters_of(spec, SOME)
    merged = merge_adapters(base, adapters, SOME.scale)
    np.testing.assert_allclose(
        our_logits(plain, merged, IDS, VALID)[0],
        our_logits(graph, {**base, **adapters}, IDS, VALID)[0],
        atol=TOKEN,
    )


def test_fresh_adapters_change_nothing():
    spec = spec_from_hf(LLAMA)
    plain, base = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    graph, fresh = split_module(Decoder(spec, lora=EVERYWHERE, rngs=nnx.Rngs(1)))
    _, adapters = split_adapters(fresh)
    assert len(adapters) == 14
    assert all((np.asarray(x) == 0).all() == path.endswith("lora_b") for path, x in adapters.items())
    np.testing.assert_array_equal(
        our_logits(graph, {**base, **adapters}, IDS, VALID)[0], our_logits(plain, base, IDS, VALID)[0]
    )


@pytest.mark.parametrize(("held", "share"), [("bfloat16", 0.005), ("int8", 0.01), ("nf4", 0.12)])
def test_a_base_in_fewer_bits_computes_as_its_numbers_do(held, share):
    """Logits from the held weights equal those from the numbers that they stand for.

    These are near the base's: share is the relative root mean square error allowed.
    """
    spec = spec_from_hf(GPT2 | {"n_embd": 64})
    graph, base = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    small = hold_base(base, held)
    numbers = {path: dequantized(x).astype(jnp.float32) for path, x in small.items()}
    np.testing.assert_allclose(
        our_logits(graph, small, IDS, VALID)[0], our_logits(graph, numbers, IDS, VALID)[0], atol=TOKEN
    )
    kernel = "blocks.up.kernel"
    error = float(jnp.sqrt(jnp.mean((numbers[kernel] - base[kernel]) ** 2) / jnp.mean(base[kernel] ** 2)))
    assert 0 < error < share
    assert all(small[path] is base[path] for path in base if path.endswith((".bias", ".scale")))
    assert (
        sum(x.nbytes for x in jax.tree.leaves(small[kernel]))
        < (0.6 if held == "bfloat16" else 0.35) * base[kernel].nbytes
    )


def test_patterns_choose_projections_and_one_that_fits_none_is_named():
    spec = spec_from_hf(GPT2)
    assert choose_projections(("query", "value"), spec) == ("attention.query", "attention.value")
    assert choose_projections((".",), spec) == tuple(name for name in ALL if name != "gate")
    with pytest.raises(SpecError, match=r"'q_proj' fits no projection; there are attention.query, .*down"):
        choose_projections(("q_proj",), spec)


ADAPTED = {
    "lora": {"targets": ["query", "value", "up"], "rank": 2, "alpha": 8.0, "dropout": 0.3},
    "steps": 6,
    "batch_size": 8,
    "optimizer": {"kind": "adamw", "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapted")
    return directory, run(
        directory,
        stages=["sft", "po", "eval", "generate", "export"],
        po=ADAPTED | {"eval_every_steps": 6},
        sft={"lora": {"rank": 4}, "steps": 3},
        generation={"max_prompts": 2},
    )


@pytest.mark.slow
def test_po_trains_adapters_and_masks_over_a_frozen_base(finished):
    _, output = finished
    kept, start = weights_of(output / "po"), "policy/blocks.attention.query.lora"
    assert {path.split("/")[1] for path in kept if path.startswith("policy/")} == {
        f"blocks.{name}.lora.lora_{x}" for name in ("attention.query", "attention.value", "up") for x in "ab"
    }
    assert np.abs(kept[f"{start}.lora_b"]).max() > 0 and any(path.startswith("masks/") for path in kept)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["before"]["kl"] == 0.0 == summary["before"]["generated_kl"] and summary["after"]["kl"] > 0
    assert summary["mask"]["auroc_untrained"] != summary["mask"]["auroc_reward"], "masks still train"
    assert len(lines_of(output / "generations.jsonl")) == 2


@pytest.mark.slow
def test_sft_merges_its_adapters(finished):
    """What sft leaves is a whole model, other than the random one that it began with."""
    kept = weights_of(finished[1] / "sft")
    assert not any(".lora." in path for path in kept) and kept["policy/blocks.up.kernel"].shape == (2, 16, 64)


@pytest.mark.slow
def test_the_export_is_the_policy_that_was_trained(finished, tmp_path):
    """Merged: scored as a policy of its own. Adapter: PEFT puts it onto the base that sft left."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    directory, output = finished
    run(
        directory,
        "stages=[score]",
        "data.eval.0.rows=4",
        po=ADAPTED | {"eval_every_steps": 6},
        sft={"lora": {"rank": 4}, "steps": 3},
    )
    scored = run(
        tmp_path / "merged",
        "objective={kind: dpo}",
        stages=["score"],
        policy={"config": None, "path": str(output / "export")},
        tokenizer={"kind": "auto"},
        data={"eval": [{"kind": "reviews", "rows": 4, "seed": 3}]},
        sft=None,
        po=None,
    )
    for ours, again in zip(lines_of(output / "scores.jsonl"), lines_of(scored / "scores.jsonl"), strict=True):
        np.testing.assert_allclose(again["chosen"]["logp"], ours["chosen"]["logp"], atol=TOKEN)
    merged = AutoModelForCausalLM.from_pretrained(output / "export")
    named = PeftConfig.from_pretrained(output / "export" / "adapter").base_model_name_or_path
    assert named == str(output / "export" / "base"), "what sft left is nowhere else"
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(named), output / "export" / "adapter"
    )
    with torch.no_grad():
        np.testing.assert_allclose(
            adapted(torch.tensor(IDS)).logits, merged(torch.tensor(IDS)).logits, atol=PARITY_LOGITS
        )
    assert (output / "export" / "adapter" / "masks.safetensors").exists()


@pytest.mark.parametrize("merged", slow_but([False], [True, False]))
def test_an_adapter_names_the_checkpoint_that_it_was_trained_on(tmp_path, monkeypatch, merged):
    """By its absolute path, so that it is found from any directory.

    A model from scratch would be lost: it is exported as the base.
    """
    from peft import AutoPeftModelForCausalLM

    scratch = run(tmp_path / "scratch", stages=["export"]) / "export"
    monkeypatch.chdir(tmp_path)
    settings = {"stages": ["po", "export"], "po": ADAPTED | {"steps": 1}, "export": {"merged": merged}}
    output = run(tmp_path / "tuned", **settings, policy={"config": None, "path": "scratch/run/export"})
    monkeypatch.chdir("/")
    adapter = output / "export" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        scratch
    )
    assert (
        not (output / "export" / "base").exists() and (output / "export" / "config.json").exists() == merged
    )
    with torch.no_grad():
        assert AutoPeftModelForCausalLM.from_pretrained(adapter)(torch.tensor(IDS)).logits.shape[-1] > 31
    fresh = run(tmp_path / "fresh", **settings) / "export"
    base = json.loads((fresh / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(fresh / "base")
    of_base, of_adapter = ((fresh / part / "README.md").read_text() for part in ("base", "adapter"))
    assert "po (objective" in of_adapter and "objective" not in of_base.split("## Configuration")[0]
    assert AutoPeftModelForCausalLM.from_pretrained(fresh / "adapter").get_base_model() is not None


@pytest.mark.slow
def test_accumulation_and_layout_do_not_change_an_update_without_dropout(tmp_path):
    plain = ADAPTED | {"lora": ADAPTED["lora"] | {"dropout": 0.0}, "steps": 2, "batch_size": 16}
    in_two = {"po": plain | {"accumulation": 2}, "compute": {"layout": "plain"}}
    expected = weights_of(run(tmp_path / "one", stages=["po"], po=plain) / "po")
    weights = weights_of(run(tmp_path / "two", stages=["po"], **in_two) / "po")
    for path in expected:
        # AdamW's first steps have the size of the rate: 0.01.
        np.testing.assert_allclose(weights[path], expected[path], atol=2e-4, err_msg=path)


@pytest.mark.slow
def test_dropout_is_drawn_by_seed_step_and_row(tmp_path):
    """The same with two micro-steps, another with another seed."""
    settings = ADAPTED | {"steps": 1, "batch_size": 16}
    runs = {
        name: weights_of(run(tmp_path / name, stages=["po"], po=settings | changes) / "po")
        for name, changes in {
            "one": {},
            "two": {"accumulation": 2},
            "none": {"lora": ADAPTED["lora"] | {"dropout": 0.0}},
        }.items()
    }
    path = "policy/blocks.up.lora.lora_b"
    np.testing.assert_allclose(runs["one"][path], runs["two"][path], atol=2e-4)
    assert np.abs(runs["one"][path] - runs["none"][path]).max() > 1e-3


def test_an_adapted_run_continues_bit_for_bit(tmp_path, monkeypatch):
    from helpers.interrupt import Interrupted, stop_before

    changes = {
        "stages": ["po"],
        "checkpoint": {"every_steps": 2},
        "po": ADAPTED | {"lora": ADAPTED["lora"] | {"base": "int8"}},
    }
    uninterrupted = run(tmp_path / "uninterrupted", **changes)
    config = write_config(tmp_path / "parts", **changes)
    with monkeypatch.context() as patched:
        stop_before(patched, 3)
        with pytest.raises(Interrupted):
            main(["--config", str(config)])
    assert main(["--config", str(config)]) == 0
    expected, weights = weights_of(uninterrupted / "po"), weights_of(tmp_path / "parts" / "run" / "po")
    for path in expected:
        np.testing.assert_array_equal(weights[path], expected[path], err_msg=path)


def test_wrong_settings_are_named(tmp_path, capsys):
    config = str(write_config(tmp_path, stages=["po"]))
    assert main(["--config", config, "po.lora.targets=[q_proj]"]) == 1
    assert (
        "po.lora.targets: 'q_proj' fits no projection; there are attention.query" in capsys.readouterr().err
    )
    assert main(["--config", config, "po.lora.targets=['(']"]) == 2
    assert "no regular expression: '('" in capsys.readouterr().err
    assert main(["--config", config, "po.lora={}", "reference.path=x/y"]) == 2
    assert "po.lora: the reference is the policy without its adapters" in capsys.readouterr().err
