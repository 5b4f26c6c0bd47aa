"""Text models within models that see images: read, trained, and given back as what they were."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.chat import ONLY_PARTS
from helpers.hub_configs import WRAPPED as PUBLISHED
from helpers.parity import load_ours, make_theirs, our_logits, our_states
from helpers.program import lines_of, run, write_config
from helpers.quick import slow_but
from helpers.score_parity import ROWS, write_checkpoint
from helpers.tiny import LLAMA
from helpers.tolerances import PARITY_LOGITS
from helpers.wrapped import WRAPPED
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import load_tokenizer, make_byte_tokenizer
from sparsepo_jax.main import main
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.directory import end_tokens, read_config, with_end_token
from sparsepo_jax.models.export import save_hf
from sparsepo_jax.models.field_tables import READ
from sparsepo_jax.models.spec import fields_note, spec_from_hf
from sparsepo_jax.models.text_defaults import TEXT_DEFAULTS
from sparsepo_jax.models.wrappers import WRAPPERS, read_text_config, read_wrapping

GEMMA = WRAPPED["gemma3 around gemma3_text"]
QWEN = WRAPPED["qwen2_5_vl"]
# Those that differ most, and one of each way of naming tensors; the others run among the slow tests.
QUICK = (
    "gemma3 around gemma3_text",
    "mistral3 around ministral3",
    "qwen2_5_vl",
    "idefics3 around llama",
    "qwen3_vl_moe",
)
EXPORTED = (
    "gemma3 around gemma3_text",
    "qwen2_5_vl",
    "mistral3 around mistral",
    "qwen3_vl",
    "smolvlm around llama, tied",
)
TRAIN = {"steps": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01}}


def outputs(model, ids_BS, valid_BS, **positions):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids_BS),
            attention_mask=torch.tensor(valid_BS.astype(np.int64)),
            output_hidden_states=True,
            **positions,
        )


@pytest.mark.parametrize("name", slow_but(QUICK, WRAPPED))
def test_logits_and_states_equal_transformers(name, tmp_path):
    """The names on disk are those of older files (as transformers saves by default) and of its modules.

    Positions are left to transformers in Qwen's models: three kinds of them, which are the same for text. The
    others get ours, which start behind the padding: Ministral 3 scales its queries by them.
    """
    model = make_theirs(WRAPPED[name])
    ids_BS = np.random.default_rng(0).integers(0, 29, (2, 9))
    for old_names, valid_BS in ((True, np.ones((2, 9), bool)), (False, np.arange(9)[::-1] < [[9], [6]])):
        model.save_pretrained(tmp_path, save_original_format=old_names)
        _, graph, weights = load_ours(tmp_path)
        positions_BS = torch.tensor(np.maximum(np.cumsum(valid_BS, 1) - 1, 0))
        positions = {} if name.startswith("qwen") else {"position_ids": positions_BS}
        theirs = outputs(model, ids_BS, valid_BS, **positions)
        logits, kept = our_logits(graph, weights, ids_BS, valid_BS)
        np.testing.assert_allclose(
            np.asarray(logits)[valid_BS], theirs.logits.numpy()[valid_BS], atol=PARITY_LOGITS
        )
        for state, expected in zip(our_states(kept), theirs.hidden_states, strict=True):
            np.testing.assert_allclose(
                np.asarray(state)[valid_BS], expected.numpy()[valid_BS], atol=PARITY_LOGITS
            )


def test_mrope_of_text_is_the_plain_rotation():
    """The cosines that Qwen's text models use for three equal positions are those of one."""
    from transformers import AutoConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    config = AutoConfig.for_model(**WRAPPED["qwen3_vl"]).text_config
    positions_S = torch.arange(7)
    cosines, _ = Qwen3VLTextRotaryEmbedding(config)(torch.ones(1), positions_S.expand(3, 1, 7))
    [kind] = spec_from_hf(WRAPPED["qwen3_vl"]).kinds
    angles_SH = positions_S[:, None] * kind.rotation.base ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(cosines[0], torch.cos(torch.cat([angles_SH, angles_SH], -1)))


# ---------------------------------------------------------------- what comes out


def checkpoint(directory, config, *, dtype=torch.float32):
    """With a tokenizer, a processor and a tower that is held in another type than the text model."""
    write_checkpoint(config, directory, dtype)
    tensors = load_file(directory / "model.safetensors")
    tower = next(name for name in sorted(tensors) if "vis" in name)
    save_file(tensors | {tower: tensors[tower].half()}, directory / "model.safetensors", {"format": "pt"})
    (directory / "preprocessor_config.json").write_text('{"image_processor_type": "any"}')
    (directory / "video_preprocessor_config.json").write_text('{"video_processor_type": "any"}')
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": ONLY_PARTS}))
    return directory


def trained(directory, model, **changes):
    directory.mkdir(exist_ok=True)
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in 4 * ROWS))
    return run(
        directory,
        "objective={kind: dpo, beta: 0.1}",
        **{
            "stages": ["po", "export"],
            "policy": {"config": None, "path": str(model)},
            "tokenizer": None,
            "sft": None,
            "data": {"sft": [], "train": [{"path": str(rows)}], "eval": []},
            "po": TRAIN,
        }
        | changes,
    )


def theirs_of(directory):
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def tensors_of(directory):
    return {name: x for path in directory.glob("model*.safetensors") for name, x in load_file(path).items()}


def without(config, *names):
    text = {name: value for name, value in config["text_config"].items() if name not in names}
    return {name: value for name, value in config.items() if name not in names} | {"text_config": text}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(QUICK[:1], EXPORTED))
def test_an_export_is_the_same_model_with_another_text_model(name, tmp_path):
    """Every tensor outside of the text model bit for bit in its own type; names, config and processor too."""
    dtype = torch.bfloat16 if name == "qwen3_vl" else torch.float32
    model = checkpoint(tmp_path / "model", WRAPPED[name], dtype=dtype)
    out = trained(tmp_path, model) / "export"
    before, after = tensors_of(model), tensors_of(out)
    assert before.keys() == after.keys() and {x.dtype for x in after.values()} == {torch.float16, dtype}
    assert all(x.dtype == before[name].dtype for name, x in after.items())
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    text = {
        name
        for name in before
        if re.search(r"language_model|text_model|^model\.(layers|embed|norm)|lm_head", name)
    }
    assert changed and changed <= text < before.keys()
    assert any("embed_tokens" in name for name in changed) and any("q_proj" in name for name in changed)
    written, read = read_config(out), read_config(model)
    assert without(written, "dtype", "eos_token_id") == without(read, "dtype", "eos_token_id")
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert (out / file).read_text() == (model / file).read_text()
    assert load_tokenizer(str(out)).chat_template == ONLY_PARTS == load_tokenizer(str(model)).chat_template
    theirs, ids_BS = theirs_of(out).float(), np.random.default_rng(1).integers(0, 29, (2, 9))
    _, graph, weights = load_ours(out)
    ours, _ = our_logits(graph, weights, ids_BS, np.ones((2, 9), bool))
    np.testing.assert_allclose(
        ours, outputs(theirs, ids_BS, np.ones((2, 9), bool)).logits, atol=PARITY_LOGITS
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(QUICK[:1], EXPORTED[:2]))
def test_an_adapter_fits_the_text_model_within(name, tmp_path):
    """PEFT puts it there, and on no module of the tower that is called the same; so do we, by both names."""
    from peft import PeftModel

    model = checkpoint(tmp_path / "model", WRAPPED[name])
    lora = {"rank": 2, "targets": ["query", "up"]}
    out = trained(tmp_path, model, po=TRAIN | {"lora": lora}) / "export"
    adapted = PeftModel.from_pretrained(theirs_of(model), out / "adapter")
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert names and all(".language_model.layers." in name for name in names)
    ids_BS, valid_BS = np.random.default_rng(1).integers(0, 29, (2, 9)), np.ones((2, 9), bool)
    expected = outputs(theirs_of(out), ids_BS, valid_BS).logits
    np.testing.assert_allclose(outputs(adapted, ids_BS, valid_BS).logits, expected, atol=PARITY_LOGITS)
    assert not np.allclose(outputs(theirs_of(model), ids_BS, valid_BS).logits, expected, atol=1e-3)
    old = {"gemma3": "language_model.model.", "qwen2_5_vl": "model."}[WRAPPED[name]["model_type"]]
    file = out / "adapter" / "adapter_model.safetensors"
    save_file({name.replace("model.language_model.", old): x for name, x in load_file(file).items()}, file)
    make_byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    again = trained(
        tmp_path / "again",
        model,
        stages=["export"],
        policy={"config": None, "path": str(model), "adapter": str(out / "adapter")},
        tokenizer={"kind": "pretrained", "path": str(tmp_path / "tokenizer")},
    )
    assert (again / "export" / "preprocessor_config.json").exists(), "though the tokenizer is from elsewhere"
    merged = outputs(theirs_of(again / "export"), ids_BS, valid_BS).logits
    np.testing.assert_allclose(merged, expected, atol=PARITY_LOGITS)


SAVED = (
    "gemma3 around gemma3_text",
    "smolvlm around llama, tied",
    "qwen2_vl, tied",
    "mistral3, tied",
    "qwen3_vl_moe",
)


@pytest.mark.parametrize("name", slow_but((*SAVED[:2], "qwen3_vl_moe"), SAVED))
@pytest.mark.parametrize("part", ["model", "model without its head"])
@pytest.mark.parametrize("old_names", [True, False])
def test_an_export_has_the_names_of_the_checkpoint_and_nothing_twice(part, old_names, name, tmp_path):
    """However transformers saved it. Kills: text tensors carried over as if they were the tower's."""
    model = make_theirs(WRAPPED[name] | {"tie_word_embeddings": True})
    saved = model if part == "model" else model.model
    saved.save_pretrained(tmp_path / "model", save_original_format=old_names)
    spec, _, weights = load_ours(tmp_path / "model")
    config = read_config(tmp_path / "model")
    fresh = {path: np.asarray(x) + 1 for path, x in weights.items()}
    save_hf(tmp_path / "out", spec, config, fresh, {}, "", source=tmp_path / "model")
    before, after = tensors_of(tmp_path / "model"), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    kept = {name for name, x in after.items() if torch.equal(x, before[name])}
    of_tower = {name for name in before if re.search(r"vis|projector|connector", name)}
    assert kept == of_tower
    theirs_of(tmp_path / "out")


def test_a_model_without_its_head_needs_a_tied_one(tmp_path):
    make_theirs(QWEN).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"1 tensor\(s\) do not fit config.json: lm_head.weight is missing"):
        load_ours(tmp_path)


def test_a_tensor_of_the_text_model_that_does_not_fit_is_no_part_of_the_tower(tmp_path):
    make_theirs(GEMMA).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language_model.model.layers.0.self_attn.sinks"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.sinks is not part of this architecture"):
        load_ours(tmp_path)


def test_a_tied_head_of_another_name_is_read_and_another_head_is_refused(tmp_path):
    make_theirs(GEMMA).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    save_file(tensors | {head: tensors[embedding].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    load_ours(tmp_path)
    save_file(tensors | {head: 1 - tensors[embedding]}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match="language_model.lm_head.weight is not language_model.model.embed_tok"
    ):
        load_ours(tmp_path)


def test_stacks_of_experts_as_the_hub_has_them_are_read_and_written(tmp_path):
    """[E, in, out], the other way round than in transformers' modules; it reads both and so do we."""
    config = WRAPPED["qwen3_vl_moe"]
    make_theirs(config).save_pretrained(tmp_path / "model")
    spec, _, weights = load_ours(tmp_path / "model")
    save_hf(tmp_path / "out", spec, config, weights, {}, "", source=tmp_path / "model")
    stacks = {name: x for name, x in tensors_of(tmp_path / "model").items() if ".mlp.experts." in name}
    written = tensors_of(tmp_path / "out")
    assert stacks and all(torch.equal(written[name], x.mT) for name, x in stacks.items())
    again = load_ours(tmp_path / "out")[2]
    assert all(np.array_equal(again[path], weights[path]) for path in weights)


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize("kind", TEXT_DEFAULTS)
def test_defaults_are_those_of_transformers_class(kind):
    """Every field that is read has the default of the class, and none is left out that has one."""
    import dataclasses

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[kind]
    config = {"model_type": "llava", "text_config": {"model_type": kind}}
    family = read_text_config(config, read_wrapping(config))["model_type"]
    declared = {field.name: field.default for field in dataclasses.fields(theirs)} | {
        "rope_theta": getattr(theirs, "default_theta", None)
    }
    ours = TEXT_DEFAULTS[kind]
    assert all(declared[name] == value for name, value in ours.items())
    off = (None, False, 10000.0, dataclasses.MISSING)  # what our readers take absent fields for
    left_out = READ[family] & declared.keys() - ours.keys()
    assert all(declared[name] in off or isinstance(declared[name], dict) for name in left_out)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_config_that_says_little_is_the_model_that_transformers_makes_of_it(name):
    """Its class' own config, written out in full, gives the same decoder."""
    from transformers import AutoConfig

    little = {"text_config": {"model_type": WRAPPERS[name].text, "num_hidden_layers": 3}}
    if name == "gemma4":  # its class' own config has embeddings for each layer, which are refused
        little["text_config"]["hidden_size_per_layer_input"] = 0
    theirs = AutoConfig.for_model(name, **json.loads(json.dumps(little))).to_dict()
    if name in ("mistral3", "internvl"):  # these tie the head; published files leave that out and have two
        little["tie_word_embeddings"] = True
    assert spec_from_hf({"model_type": name} | little) == spec_from_hf(
        json.loads(json.dumps(theirs, default=str))
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    config, parameters = PUBLISHED[name]
    spec = spec_from_hf(config)
    assert spec.wrapping.model_type == config["model_type"]
    assert round(spec.parameter_count() / 1e9, 2) == parameters
    note = fields_note(config, "here")
    assert note is None or ("image" not in note and "vision" not in note)


def test_a_flat_config_is_the_nested_one():
    text = QWEN["text_config"]
    flat = {name: value for name, value in QWEN.items() if name != "text_config"} | text
    rope = flat.pop("rope_parameters")
    flat |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}}
    assert spec_from_hf(flat) == spec_from_hf(QWEN)
    assert fields_note(flat, "here") is None
    assert spec_from_hf(flat | {"tie_word_embeddings": True}).tied_head


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [
        (True, False, True),
        (False, True, False),
        (None, True, True),
        (None, False, False),
        (None, None, False),
    ],
)
def test_which_config_ties_the_head(outer, inner, tied):
    """The outer one if it says anything, as in transformers; either in LLaVA's kin; the outer in Qwen3-VL."""
    for name, expected in (("mistral3", tied), ("llava", bool(outer or inner)), ("qwen3_vl", bool(outer))):
        config = {"model_type": name, "text_config": LLAMA | {"model_type": "llama"}}
        if outer is not None:
            config["tie_word_embeddings"] = outer
        if inner is not None:
            config["text_config"]["tie_word_embeddings"] = inner
        assert spec_from_hf(config).tied_head == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mllama"}, "model_type: mllama is not supported: .*cross-attention"),
        ({"model_type": "paligemma"}, "model_type: paligemma is not supported: .* both directions"),
        ({"model_type": "gemma3"}, "gemma3: text_config: expected an object, got None"),
        (
            GEMMA | {"text_config": {"model_type": "mamba"}},
            "text_config.model_type: 'mamba' is not supported",
        ),
        (GEMMA | {"quantization_config": {"bits": 4}}, "gemma3: quantization_config: .* is not supported"),
        (GEMMA | {"architectures": ["Gemma3ForSequenceClassification"]}, "is a classifier or reward model"),
        (GEMMA | {"image_token_index": "x"}, "gemma3: image_token_index: expected a token id, got 'x'"),
        (GEMMA | {"tie_word_embeddings": "no"}, "gemma3: tie_word_embeddings: expected true or false"),
        (
            {"model_type": "llava", "text_config": LLAMA | {"rope_scaling": {"mrope_section": [1, 1]}}},
            "mrope_section",
        ),
        ({"model_type": "what_vl", "text_config": LLAMA}, "unknown architecture 'what_vl'; known: .*gemma3"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(config, message):
    with pytest.raises(SpecError, match=message):
        spec_from_hf(config)


def test_end_tokens_of_a_text_config_count_where_the_config_has_none():
    config = {"model_type": "mistral3", "text_config": {"eos_token_id": 2}}
    assert end_tokens(config, None) == [2] and end_tokens(config | {"eos_token_id": 5}, None) == [5]
    assert with_end_token(config, 7)["text_config"] == {"eos_token_id": [2, 7]}
    assert with_end_token(config | {"eos_token_id": 5}, 7)["eos_token_id"] == [5, 7]


def test_a_wrapper_from_scratch_is_refused_at_the_check_and_in_the_run(tmp_path, capsys):
    path = str(write_config(tmp_path, stages=["export"], policy={"config": GEMMA}))
    for arguments, status in ((["--check"], 2), ([], 1)):
        assert main(["--config", path, *arguments]) == status
        message = capsys.readouterr().err
        assert "policy.config: gemma3 is a text model and what sees images" in message
        assert "set policy.path" in message


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": [{"bytes": "x"}]}, "the row has a column 'images', and only text is trained on"),
        ({"image": "a.png"}, "the row has a column 'image'"),
        ({"videos": ["a.mp4"]}, "the row has a column 'videos'"),
        (
            {"prompt": [{"role": "user", "content": "film", "images": ["a.png"]}]},
            "prompt: a message of 'user' has a column 'images'",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
            "a content has a part of type 'image_url'",
        ),
        ({"prompt": "the <image> film"}, r"token id \d+ \('<image>'\) stands for an image, video or sound"),
    ],
)
def test_rows_with_images_are_refused_with_what_to_do(row, message, tmp_path, capsys):
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model, image = tmp_path / "model", tokenizer.convert_tokens_to_ids("<image>")
    write_checkpoint(GEMMA | {"image_token_index": image}, model)
    tokenizer.save_pretrained(model)
    capsys.readouterr()
    rows = tmp_path / "rows.jsonl"
    good = ROWS[0] | {"images": [], "image": None}
    rows.write_text("".join(json.dumps(line) + "\n" for line in (good, ROWS[0] | row)))
    config = write_config(
        tmp_path,
        stages=["inspect"],
        policy={"config": None, "path": str(model)},
        tokenizer=None,
        data={"sft": [], "train": [{"path": str(rows)}], "eval": []},
    )
    assert main(["--config", str(config)]) == 1
    printed = capsys.readouterr().err
    assert re.search(rf"rows\.jsonl:2: .*{message}", printed) and "data.on_bad_row=skip" in printed
    assert printed.count("\n") == 1
    assert main(["--config", str(config), "data.on_bad_row=skip"]) == 0


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json", "chat_template.jinja"])
def test_the_chat_template_of_a_processor_is_found(file, tmp_path):
    make_byte_tokenizer().save_pretrained(tmp_path)
    text = ONLY_PARTS if file.endswith("jinja") else json.dumps({"chat_template": ONLY_PARTS})
    (tmp_path / file).write_text(text)
    assert load_tokenizer(str(tmp_path)).chat_template == ONLY_PARTS
    if file.endswith("json"):
        (tmp_path / file).write_text("[")
        with pytest.raises(UserError, match="expected a JSON object with chat_template"):
            load_tokenizer(str(tmp_path))
        (tmp_path / file).unlink()
        assert load_tokenizer(str(tmp_path)).chat_template is None


def test_a_wrapped_reference_holds_a_plain_policy(tmp_path):
    """The same text model in both: log-ratios are zero."""
    model = write_checkpoint(GEMMA, tmp_path / "wrapped")
    plain = tmp_path / "plain"
    shutil.copytree(tmp_path / "wrapped", plain)
    tensors = load_file(plain / "model.safetensors")
    text = {
        name.removeprefix("language_model."): x
        for name, x in tensors.items()
        if name.startswith("language_model.")
    }
    save_file(text, plain / "model.safetensors", {"format": "pt"})
    (plain / "config.json").write_text(json.dumps(read_config(plain)["text_config"]))
    assert model is not None
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    output = run(
        tmp_path,
        "objective={kind: dpo}",
        stages=["score"],
        policy={"config": None, "path": str(plain)},
        reference={"path": str(tmp_path / "wrapped")},
        tokenizer=None,
        sft=None,
        po=None,
        data={"sft": [], "train": [], "eval": [{"path": str(rows)}]},
    )
    for record in lines_of(output / "scores.jsonl"):
        assert record["chosen"]["logp"] == record["chosen"]["ref_logp"]
