"""Under which names transformers finds the tensors of a decoder: we find them there, and nowhere else."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.parity import IDS, VALID, load_ours, make_theirs, our_logits, their_outputs
from helpers.program import write_config
from helpers.tiny import CONFIGS, GPT2, LLAMA, NEOX
from helpers.tolerances import PARITY_LOGITS
from helpers.wrapped import WRAPPED
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import make_byte_tokenizer
from sparsepo_jax.main import main
from sparsepo_jax.models.adapter import Adapter
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.export import save_hf
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.weights import check_tensors

WEIGHTS = "model.safetensors"
QWEN3_5 = CONFIGS["qwen3.5"]
WRAPPED_QWEN = next(config for config in WRAPPED.values() if config["model_type"] == "qwen3_5")
TWICE = "model.language_model.model."


def store(directory, config, rename=str, added=None, form="pt"):
    """transformers' model, saved with other names of tensors."""
    make_theirs(config).save_pretrained(directory)
    tensors = {rename(name): x for name, x in load_file(directory / WEIGHTS).items()} | (added or {})
    save_file(tensors, directory / WEIGHTS, {"format": form})


def theirs_of(directory, auto=None):
    """transformers' model of a directory; nothing of it may be drawn at random."""
    from transformers import AutoModelForCausalLM

    auto = auto or AutoModelForCausalLM
    model, report = auto.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    return model.eval()


def assert_same(directory, model):
    check_tensors(spec_from_hf(read_config(directory)), SafeTensors(directory), "here")
    _, graph, weights = load_ours(directory)
    ours, _ = our_logits(graph, weights, IDS, VALID)
    np.testing.assert_allclose(ours, their_outputs(model, IDS, VALID).logits, atol=PARITY_LOGITS)


@pytest.mark.parametrize(
    ("config", "pattern", "instead"),
    [
        (LLAMA, r"^", "model."),
        (LLAMA, r"^model\.", ""),
        (LLAMA, r"^model\.(?=embed|norm)", ""),
        (GPT2, r"^", "transformer."),
        (NEOX, r"^embed_out", "lm_head"),
        (QWEN3_5, r"^model\.", "model.language_model."),
    ],
    ids=["within a module", "trunk", "half", "gpt2 within", "neox's newer head", "qwen3.5, its wrapper's"],
)
def test_the_names_that_transformers_finds_are_read(config, pattern, instead, tmp_path):
    store(tmp_path, config, lambda name: re.sub(pattern, instead, name))
    assert_same(tmp_path, theirs_of(tmp_path))


@pytest.mark.parametrize(
    ("config", "prefix"),
    [(GPT2, "model."), (LLAMA, "base_model.model."), (LLAMA, "language_model."), (NEOX, "module.")],
)
def test_a_name_that_transformers_does_not_find_is_refused(config, prefix, tmp_path):
    store(tmp_path, config, lambda name: prefix + name)
    with pytest.raises(AssertionError):
        theirs_of(tmp_path)
    with pytest.raises(UserError, match=rf"tensors have names as {prefix}.*, which a wrapper around"):
        load_ours(tmp_path)


def test_a_fine_tuned_text_model_of_qwen3_5_is_read_as_transformers_saves_it(tmp_path):
    """AutoModelForCausalLM makes the text model of it, and saves it under the wrapper's names."""
    make_theirs(WRAPPED_QWEN).save_pretrained(tmp_path / "base")
    theirs_of(tmp_path / "base").save_pretrained(tmp_path / "tuned")
    assert read_config(tmp_path / "tuned")["model_type"] == "qwen3_5_text"
    names = load_file(tmp_path / "tuned" / WEIGHTS)
    assert "model.language_model.norm.weight" in names
    tower = {"model.visual.x": torch.ones(2), "mtp.x": torch.ones(2)}  # where somebody copied it in
    save_file(names | tower, tmp_path / "tuned" / WEIGHTS, {"format": "pt"})
    model = theirs_of(tmp_path / "tuned")
    assert_same(tmp_path / "tuned", model)
    spec, _, weights = load_ours(tmp_path / "tuned")
    save_hf(tmp_path / "out", spec, read_config(tmp_path / "tuned"), weights, {}, "")
    assert_same(tmp_path / "out", theirs_of(tmp_path / "out"))


def test_an_adapter_of_qwen3_5s_text_model_fits_the_wrapper(tmp_path):
    """TRL and PEFT load the wrapper's checkpoint as its text model."""
    from peft import LoraConfig, get_peft_model

    make_theirs(WRAPPED_QWEN).save_pretrained(tmp_path / "base")
    adapted = get_peft_model(theirs_of(tmp_path / "base"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    adapter = Adapter(str(tmp_path / "adapter"), load_ours(tmp_path / "base")[0], "policy.adapter")
    assert len(adapter.modules) == len(names) / 2


@pytest.mark.parametrize("name", ["gemma3 around gemma3_text", "qwen3_5"])
def test_names_with_a_part_twice_are_read_and_written(name, tmp_path):
    """As transformers 5.10 to 5.23 wrote some models, which it still reads."""
    from transformers import AutoModelForImageTextToText

    def rename(name):
        return re.sub(r"^(model\.language_model|language_model\.model)\.", TWICE, name)

    store(tmp_path / "model", WRAPPED[name], rename)
    model = theirs_of(tmp_path / "model", AutoModelForImageTextToText)
    spec, graph, weights = load_ours(tmp_path / "model")
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(VALID.astype(int))).logits
    np.testing.assert_allclose(our_logits(graph, weights, IDS, VALID)[0], theirs, atol=PARITY_LOGITS)
    save_hf(
        tmp_path / "out",
        spec,
        read_config(tmp_path / "model"),
        weights,
        {},
        "",
        source=tmp_path / "model",
    )
    assert SafeTensors(tmp_path / "out").files().keys() == SafeTensors(tmp_path / "model").files().keys()


# ---------------------------------------------------------------- tensors that are left out

VALUES = {"v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}


def test_a_head_for_values_is_left_out_and_said(tmp_path, capsys):
    """TRL's PPO saves it with the model. Kills: a refusal of what transformers takes."""
    shape = LLAMA | {"vocab_size": 264, "max_position_embeddings": 64, "eos_token_id": 256}
    store(tmp_path / "model", shape, added=VALUES | {"model.rotary_emb.original_inv_freq": torch.ones(4)})
    make_byte_tokenizer().save_pretrained(tmp_path / "model")
    assert_same(tmp_path / "model", theirs_of(tmp_path / "model"))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 8)
    path = write_config(
        tmp_path,
        stages=["po"],
        policy={"config": None, "path": str(tmp_path / "model")},
        tokenizer=None,
        data={"sft": [], "train": [{"path": str(tmp_path / "pairs.jsonl")}], "eval": []},
        objective={"kind": "dpo", "beta": 0.1, "mask": None},
        po={"steps": 1, "batch_size": 8},
    )
    expected = (
        f"note: {tmp_path}/model: tensors ignored, since transformers' llama does not read them either: "
        "v_head.summary.bias, v_head.summary.weight"
    )
    for arguments in (["--check"], []):
        assert main(["--config", str(path), *arguments]) == 0
        assert capsys.readouterr().out.count(expected) == 1


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.7.mlp.up_proj.weight", "lm_head.bias"]
)
def test_a_tensor_within_the_decoder_is_refused_though_transformers_leaves_it_out(name, tmp_path):
    store(tmp_path, LLAMA, added={name: torch.ones(16)})
    with pytest.raises(UserError, match=rf"{name} is not part of this architecture"):
        load_ours(tmp_path)


def test_a_model_without_its_head_says_what_to_do(tmp_path):
    store(tmp_path, LLAMA)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    expected = r"lm_head.weight is missing.*saved without its head .*, set tie_word_embeddings to true"
    with pytest.raises(UserError, match=expected):
        load_ours(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    load_ours(tmp_path)


def test_heads_that_predict_later_tokens_come_back_with_a_text_model_alone(tmp_path):
    """As those of Qwen3-Next. Kills: an export without them."""
    from sparsepo_jax.build.models import weight_shapes

    later = {"mtp.fc.weight": torch.full((2, 2), 1 / 3)}
    for name in ("qwen3 next", "llama"):
        store(tmp_path / name, CONFIGS[name], added=later)
        spec = spec_from_hf(read_config(tmp_path / name))
        check_tensors(spec, SafeTensors(tmp_path / name), "here")
        weights = {path: np.zeros(shape, np.float32) for path, shape in weight_shapes(spec).items()}
        source, out = tmp_path / name, tmp_path / f"{name}, exported"
        save_hf(out, spec, read_config(source), weights, {}, "", source=source)
        names = SafeTensors(out).files()
        assert ("mtp.fc.weight" in names) == (name == "qwen3 next")
        assert SafeTensors(source).files().keys() - names.keys() <= later.keys()


# ---------------------------------------------------------------- MLX


def test_mlx_weights_are_read_where_transformers_reads_them(tmp_path):
    store(tmp_path, LLAMA, form="mlx")
    assert_same(tmp_path, theirs_of(tmp_path))


@pytest.mark.parametrize(
    ("config", "pattern", "instead"),
    [
        (QWEN3_5, r"^model\.", "model."),  # filters of convolutions are turned, norms are shifted
        (QWEN3_5, r"^model\.", "language_model.model."),
        (CONFIGS["qwen3 moe"], r"mlp\.experts\.", "mlp.switch_mlp."),
        (WRAPPED["gemma3 around gemma3_text"], r"^", ""),  # the tower's filters are turned
    ],
    ids=["turned", "names", "experts", "tower"],
)
def test_mlx_weights_of_another_form_are_refused_at_the_check(config, pattern, instead, tmp_path):
    store(tmp_path, config, lambda name: re.sub(pattern, instead, name), form="mlx")
    spec = spec_from_hf(read_config(tmp_path))
    with pytest.raises(UserError, match="in MLX's form.*take the checkpoint that they were made from"):
        check_tensors(spec, SafeTensors(tmp_path), "here")
    with pytest.raises(UserError, match="in MLX's form"):
        load_ours(tmp_path)


# ---------------------------------------------------------------- quantised, whatever config.json says


@pytest.mark.parametrize("end", ["qweight", "weight_packed", "weight_scale_inv", "weight.absmax"])
def test_packed_weights_are_one_line_though_config_json_does_not_name_them(end, tmp_path):
    """As GPTQ's checkpoints of 2023, whose settings stand in quantize_config.json."""
    store(tmp_path, LLAMA, lambda name: re.sub(r"(?<=_proj\.)weight$", end, name))
    with pytest.raises(UserError, match=rf"quantised, as model.layers.*\.{end} shows: take the unquantised"):
        load_ours(tmp_path)


def test_an_adapter_of_the_tower_says_what_to_do(tmp_path):
    """Unsloth's adapters for models that see images have such by default."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    make_theirs(WRAPPED_QWEN).save_pretrained(tmp_path / "base")
    model = theirs_of(tmp_path / "base", AutoModelForImageTextToText)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "qkv"])).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=r"visual\.blocks.* adapts what sees images.*merge the adapter into"):
        Adapter(str(tmp_path / "a"), load_ours(tmp_path / "base")[0], "policy.adapter")
