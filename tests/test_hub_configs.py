"""config.json files as published: accepted where transformers computes what we do, else refused by name."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import hub_configs, recent_configs
from helpers.parity import IDS, VALID, load_ours, make_theirs, our_logits, their_outputs
from helpers.tiny import CONFIGS, GEMMA2, GEMMA3, GPT2, GPTJ, LLAMA, NEOX
from helpers.tolerances import PARITY_LOGITS
from sparsepo_jax.config.load import load_config
from sparsepo_jax.main import main
from sparsepo_jax.models import config_fields
from sparsepo_jax.models.config_fields import SpecError, check_fields
from sparsepo_jax.models.families import FAMILIES
from sparsepo_jax.models.field_tables import HARMLESS, HARMLESS_IN_FAMILY, OTHER_NAMES, READ, SWITCHES
from sparsepo_jax.models.installed_fields import ABSENT, fields_of_installed
from sparsepo_jax.models.spec import fields_note, spec_from_hf

PUBLISHED = hub_configs.CONFIGS | recent_configs.CONFIGS
IGNORED = hub_configs.IGNORED | recent_configs.IGNORED
SHARED = Path(__file__).parents[2] / "shared" / "hub_configs" / "configs.json"
# Families whose model asks the config for head_dim and does not work it out.
OWN_HEAD_DIM = {
    *("qwen3", "gpt_oss", "gemma", "gemma2", "gemma3_text", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"),
    *("ministral", "ministral3", "helium", "glm4"),
}
MISTRAL, QWEN2 = CONFIGS["mistral"], CONFIGS["qwen2"]


def ignored_by(config):
    return set(check_fields(config, config["model_type"]).ignored)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_accepted_and_what_it_has_beside_is_listed(name):
    config = PUBLISHED[name]
    spec = spec_from_hf(config)
    assert spec.num_layers == config.get("n_layer", config.get("num_hidden_layers"))
    assert spec.parameter_count() > 4e7
    assert ignored_by(config) == IGNORED.get(name, set())
    note = fields_note(config, name)
    assert (note is None) == (name not in IGNORED)
    assert note is None or (note.isprintable() and all(field in note for field in IGNORED[name]))


@pytest.mark.parametrize("name", recent_configs.BILLIONS)
def test_a_published_model_has_as_many_parameters_as_its_authors_say(name):
    spec = spec_from_hf(PUBLISHED[name])
    assert spec.parameter_count() / 1e9 == pytest.approx(recent_configs.BILLIONS[name], rel=0.005)


@pytest.mark.parametrize(
    ("name", "total", "active"), [("gpt-oss-20b", 20.91, 3.61), ("gpt-oss-120b", 116.83, 5.13)]
)
def test_the_sizes_of_gpt_oss_are_those_of_its_model_card(name, total, active):
    """arXiv 2508.10925, table 1, in billions. The embedding, of which a token reads a row, is not active."""
    spec = spec_from_hf(PUBLISHED[name])
    assert round(spec.parameter_count() / 1e9, 2) == total
    assert round((spec.active_parameter_count() - spec.vocab_size * spec.width) / 1e9, 2) == active


@pytest.mark.skipif(not SHARED.exists(), reason="the published files are not beside this checkout")
def test_the_published_files_themselves_are_accepted():
    configs = json.loads(SHARED.read_text())
    assert len(configs) >= 8 and all(
        spec_from_hf(config).parameter_count() > 1e8 for config in configs.values()
    )


PARITY = [
    *hub_configs.EIGHT,
    "gpt-neox-20b",
    "DeepSeek-R1-Distill-Qwen-7B",
    "Mistral-7B-v0.1",
    "Mistral-7B-v0.3",
    "OLMo-2-1124-7B",
    "gemma-3-1b-it",
    "a llama of GGUF",
    "Qwen3-30B-A3B",
    "Mixtral-8x7B-Instruct-v0.1",
    "OLMoE-1B-7B-0924",
    *recent_configs.CONFIGS,
]


def assert_same_logits(config, directory):
    """Compares transformers' model of a config.json, with random weights, and ours from its directory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    (directory / "config.json").write_text(json.dumps(config))
    # Gemma 2's other kernels leave out the softcap.
    kernels = {"attn_implementation": "eager"} if config["model_type"] == "gemma2" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(directory), dtype=torch.float32, **kernels
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    # As it was published, not as transformers writes it.
    (directory / "config.json").write_text(json.dumps(config))
    _, graph, weights = load_ours(directory)
    ids_BS, valid_BS = np.random.default_rng(0).integers(0, 31, (2, 40)), np.ones((2, 40), bool)
    ours, _ = our_logits(graph, weights, ids_BS, valid_BS)
    theirs = their_outputs(model, ids_BS, valid_BS).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=PARITY_LOGITS)


@pytest.mark.parametrize("name", PARITY)
def test_logits_with_the_switches_of_a_published_config_equal_transformers(name, tmp_path):
    assert_same_logits(hub_configs.shrunk(PUBLISHED[name]), tmp_path)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (GPT2, {"reorder_and_upcast_attn": True, "n_positions": 64}),
        (
            {"model_type": "gpt2", "vocab_size": 31},
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "n_positions": 64},
        ),
        (
            LLAMA,
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "factor": 4.0},
                "sliding_window": 4,
            },
        ),
        (
            LLAMA,
            {
                "hidden_act": "swish",
                "final_logit_softcapping": 0.1,
                "rope_scaling": {"type": "linear", "factor": 4.0},
                "rope_theta": 50.0,
            },
        ),
        (NEOX, {"rotary_emb_base": 50, "rope_theta": 50, "partial_rotary_factor": 0.5}),
        (QWEN2, {"sliding_window": 3, "use_sliding_window": False, "max_window_layers": 0}),
        ({name: value for name, value in GEMMA2.items() if "softcap" not in name}, {}),
        (
            {name: value for name, value in GEMMA3.items() if name not in ("rope_parameters", "layer_types")},
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "sliding_window_pattern": 2},
        ),
        (GEMMA3, {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.7}),
    ],
    ids=[
        "reorder",
        "other names",
        "unread in rope",
        "old names",
        "neox, twice",
        "window off",
        "gemma2 softcaps",
        "gemma3 rope",
        "gemma3 softcaps",
    ],
)
def test_logits_where_a_field_could_be_taken_for_another_equal_transformers(config, change, tmp_path):
    assert_same_logits(config | change, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_interleaved": True},
        {"use_mrope": True},
        {"rotary": False},
        {"scale_attn_weights": False},
        {"is_causal": False},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization": {"bits": 4}},
        {"add_cross_attention": True},
        {"is_encoder_decoder": True},
        {"pruned_heads": {"0": [1]}},
        {"use_bidirectional_attention": True},
        {"use_mrope": "false"},
        {"per_layer_config": {"0": {"intermediate_size": 8}}},
        {"quantization_config": float("nan")},
    ],
)
@pytest.mark.parametrize(
    "config", [LLAMA, GPTJ, NEOX, QWEN2, MISTRAL], ids=lambda config: config["model_type"]
)
def test_a_switch_that_makes_another_model_is_refused_by_name(config, change):
    with pytest.raises(
        SpecError, match=rf"{config['model_type']}: {next(iter(change))}: .* is not supported, "
    ):
        spec_from_hf(config | change)


def test_norms_of_queries_and_keys_may_be_named_by_the_families_that_always_have_them():
    """As the files of Qwen3-Coder do."""
    for name in ("qwen3", "qwen3 moe"):
        config = CONFIGS[name]
        assert spec_from_hf(config | {"use_qk_norm": True}) == spec_from_hf(config)
        with pytest.raises(SpecError, match="use_qk_norm: False is not supported, only true"):
            spec_from_hf(config | {"use_qk_norm": False})
    with pytest.raises(SpecError, match="use_qk_norm: True is not supported, only false"):
        spec_from_hf(LLAMA | {"use_qk_norm": True})


def test_a_llama_of_2023_has_as_many_positions_as_transformers_says(tmp_path):
    """Files of the first conversions name them max_sequence_length, which transformers does not read."""
    config = {name: value for name, value in LLAMA.items() if name != "max_position_embeddings"}
    config |= {"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 4096}
    assert spec_from_hf(config).max_positions == 2048
    assert_same_logits(config, tmp_path)


def test_olmoe_has_one_epsilon_where_its_file_has_none():
    config = {name: value for name, value in CONFIGS["olmoe"].items() if name != "rms_norm_eps"}
    assert spec_from_hf(config).norm_eps == 1e-5


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gemma4_text", "cohere2", "gpt_oss"])
def test_a_window_of_null_is_refused_where_transformers_fails_with_it(family):
    config = next(config for config in CONFIGS.values() if config["model_type"] == family)
    config = config | {"sliding_window": None}
    with pytest.raises(SpecError, match=f"{family}: sliding_window: null is not supported"):
        spec_from_hf(config)
    with pytest.raises(
        Exception, match="cannot be interpreted as an integer|Field 'sliding_window' expected int"
    ):
        their_outputs(make_theirs(config), IDS, VALID)


@pytest.mark.parametrize("name", ["granite", "granite 4, dense"])
def test_a_multiplier_of_null_is_refused_since_it_is_no_1_to_transformers(name):
    for field in ("attention_multiplier", "residual_multiplier", "embedding_multiplier", "logits_scaling"):
        absent = {key: value for key, value in CONFIGS[name].items() if key != field}
        assert spec_from_hf(absent).num_layers == 2
        with pytest.raises(SpecError, match=f"{field}: expected a number above 0 .*, got None"):
            spec_from_hf(absent | {field: None})


def test_a_quantised_checkpoint_says_what_to_do():
    with pytest.raises(SpecError, match="take the unquantised checkpoint that it was made from"):
        spec_from_hf(LLAMA | {"quantization_config": {"quant_method": "awq", "bits": 4}})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_switches_that_are_off_are_no_news(config):
    off = {
        "rope_interleaved": False,
        "use_mrope": None,
        "quantization_config": {},
        "auto_map": None,
        "is_encoder_decoder": False,
        "pruned_heads": {},
        "scale_attn_weights": True,
        "add_cross_attention": False,
        "architectures": None,
        "is_decoder": True,
        "cross_attention_hidden_size": None,
        "tie_encoder_decoder": False,
        "chunk_size_feed_forward": 0,
        "torch_dtype": None,
        "rotary": config["model_type"] not in ("gpt2", "gpt_bigcode"),
    }
    assert spec_from_hf(config | off) == spec_from_hf(config) and fields_note(config | off, "here") is None


def test_what_transformers_class_does_not_know_is_ignored_whatever_it_holds():
    odd = {
        "unsloth_version": "2025.1",
        "n_inner": "x",
        "sliding_window": -1,
        "logit_softcap": 30,
        "auto_map": {"AutoConfig": "a.B"},
    }
    assert spec_from_hf(LLAMA | odd) == spec_from_hf(LLAMA) and ignored_by(LLAMA | odd) == odd.keys()


def test_the_note_is_one_line_and_asks_after_mistyped_names():
    note = fields_note(
        {"model_type": "gpt2", "n_layers": 3, "a\nb": 1, 7: 1} | {f"field_{n}": n for n in range(99)},
        "policy.config",
    )
    assert note.isprintable() and note.startswith("policy.config: config fields ignored") and len(note) < 2000
    assert "(was n_layer meant by n_layers?)" in note and "and 42 more" in note and r"a\nb" in note


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gemma4_text", "granitemoehybrid", "ministral"}))
def test_an_absent_field_is_what_transformers_takes_it_to_be(family, tmp_path):
    """Not for the three families whose class makes a model that we refuse."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    whole = CONFIG_MAPPING[family]().to_dict()
    names = [name for name in config_fields._MAY_BE_ABSENT if name in READ[family] and name in whole]
    assert names or family in ("gpt2", "gpt_bigcode", "gptj")
    for name in names:
        lacking = {key: value for key, value in whole.items() if key != name}
        (tmp_path / "config.json").write_text(json.dumps(lacking))
        completed = AutoConfig.from_pretrained(tmp_path).to_dict()
        assert spec_from_hf(lacking) == spec_from_hf(completed)


def test_the_note_says_what_was_absent_and_sizes_must_be_there():
    lacking = {name: value for name, value in LLAMA.items() if name != "rms_norm_eps"}
    expected = "here: config fields absent, taken as transformers' llama has them: rms_norm_eps 1e-06"
    assert fields_note(lacking, "here") == expected and spec_from_hf(lacking).norm_eps == 1e-6
    assert fields_note(LLAMA, "here") is None
    with pytest.raises(SpecError, match="hidden_size: missing"):
        spec_from_hf({name: value for name, value in LLAMA.items() if name != "hidden_size"})


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_null_head_dim_means_what_the_class_makes_of_it(family):
    """The width by the heads, where the class or the model works it out; else it is refused."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "head_dim" not in READ[family] or family in ("gemma4_text", "granitemoehybrid"):
        return
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
    ours = CONFIG_MAPPING[family](**sizes).to_dict() | {"head_dim": None}
    try:
        theirs = CONFIG_MAPPING[family](**sizes, head_dim=None).head_dim
    except Exception:  # the class takes no null
        theirs = None
    if theirs is None and family in OWN_HEAD_DIM:
        with pytest.raises(SpecError, match="head_dim: missing"):
            spec_from_hf(ours)
    else:
        assert spec_from_hf(ours).head_dim == (theirs or 64) == 64


@pytest.mark.parametrize(
    ("family", "typed", "meant"),
    [
        ("qwen3", {"head_dims": 16}, "head_dim"),
        ("qwen2", {"num_kv_heads": 2}, "num_key_value_heads"),
        ("mixtral", {"num_experts_per_token": 1}, "num_experts_per_tok"),
        ("llama", {"rms_norm_epsilon": 1e-5}, "rms_norm_eps"),
    ],
)
def test_a_mistyped_field_does_not_get_the_default_of_what_was_meant(family, typed, meant):
    config = {name: value for name, value in (CONFIGS[family] | typed).items() if name != meant}
    with pytest.raises(SpecError, match=f"{next(iter(typed))}: no such field; was {meant} meant"):
        spec_from_hf(config)


def test_what_follows_from_an_absent_field_says_so():
    config = {name: value for name, value in QWEN2.items() if name != "num_key_value_heads"}
    expected = (
        "4 query heads are no multiple of the 32 key/value heads .fields absent, taken as transformers' qwen2"
    )
    with pytest.raises(SpecError, match=expected):
        spec_from_hf(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type: 'dynamic' is not supported",
        ),
        (
            LLAMA | {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
            "rope_scaling: long_factor: missing",
        ),
        (
            LLAMA | {"rope_scaling": {"factor": 2.0}},
            "rope_scaling.rope_type: missing, though there is a factor of 2",
        ),
        (
            LLAMA | {"rope_scaling": {"rope_type": "default", "type": "yarn"}},
            "rope_type 'default' and type 'yarn' differ",
        ),
        (
            LLAMA
            | {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
            },
            "rope_scaling and rope_parameters are both there and differ",
        ),
        (
            LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            "all layers of this family rotate alike",
        ),
        (
            QWEN2 | {"rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]}},
            "mrope_section: .1, 1, 2. is not supported",
        ),
        (
            GEMMA3 | {"rope_parameters": {"rope_type": "default"}},
            "expected full_attention and sliding_attention",
        ),
        (
            GEMMA3 | {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_scaling.type: 'linear' is read under the name rope_type",
        ),
        (NEOX | {"rope_theta": 500}, "rope_theta: 500 differs from rotary_emb_base, which is 10000"),
        (
            GEMMA3 | {"rope_parameters": {"sliding_attention": {"rope_type": "ntk", "factor": 2.0}}},
            "sliding_attention.rope_type: 'ntk' is not supported, only default",
        ),
        (
            NEOX | {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "default"}},
            "gpt_neox: rope_scaling and rope_parameters are both there and differ",
        ),
        (NEOX | {"head_dim": 4}, "head_dim: 4 is not supported, only 8"),
        (
            LLAMA | {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: .* is not supported, only 'full_attention'",
        ),
        (
            QWEN2 | {"layer_types": ["full_attention"]},
            "layer_types: expected full_attention or sliding_attention for each of 2 layers",
        ),
        (GPT2 | {"hidden_size": 32}, "hidden_size 32 and n_embd 16 mean the same"),
        (
            LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
            "is a classifier or reward model; .* scorer.path",
        ),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, "architectures: expected a list of texts or null"),
        (GPT2 | {"rotary": True}, "rotary: True is not supported, only false"),
        (
            CONFIGS["bigcode, one key/value head"] | {"num_key_value_heads": 2},
            "num_key_value_heads: 2 is not supported, only 1",
        ),
    ],
)
def test_what_would_be_computed_otherwise_than_meant_is_refused(config, expected):
    with pytest.raises(SpecError, match=expected):
        spec_from_hf(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            "model_type: missing; architectures names a class of 'llama': if it is one, write that",
        ),
        (
            {"model_type": "quin", "architectures": ["GPT2LMHeadModel"]},
            "unknown architecture 'quin'; architectures names a class of 'gpt2'",
        ),
        (
            {"model_type": "minimind", "architectures": ["MiniMindLM"], "auto_map": {"AutoConfig": "a.B"}},
            "'minimind', which needs code of its own .auto_map.",
        ),
        ({"model_type": "bert", "architectures": [1]}, "unknown architecture 'bert'; known: gpt2, "),
        ({"architectures": None}, "unknown architecture None; known: gpt2, "),
        (LLAMA | {"model_type": "llava"}, "llava: text_config: .*take the one for transformers .*-hf"),
    ],
)
def test_a_model_that_is_not_known_says_what_to_do(config, expected):
    with pytest.raises(SpecError, match=expected):
        spec_from_hf(config)


@pytest.mark.parametrize("family", READ)
def test_there_is_an_opinion_on_every_field_that_transformers_knows(family):
    """Fails when a new transformers has a field that our tables do not."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[family]
    known = READ[family] | HARMLESS | SWITCHES.keys() | HARMLESS_IN_FAMILY.get(family, set())
    assert {field.name for field in dataclasses.fields(theirs)} <= known
    assert fields_of_installed(family).keys() <= known | OTHER_NAMES.get(family, {}).keys()
    assert theirs.attribute_map == OTHER_NAMES.get(family, {})
    declared = {field.name: field.default for field in dataclasses.fields(theirs)}
    texts = {name: value for name, value in fields_of_installed(family).items() if value is not ABSENT}
    assert len(texts) > 15 and all(declared[name] == value for name, value in texts.items())


def test_a_field_that_only_a_newer_transformers_knows_must_be_at_its_default(monkeypatch):
    monkeypatch.setattr(
        config_fields,
        "fields_of_installed",
        lambda family: {"new_scale": 1.0, "new_read": ABSENT},
    )
    assert spec_from_hf(LLAMA | {"new_scale": 1.0, "new_read": None}) == spec_from_hf(LLAMA)
    for name in ("new_scale", "new_read"):
        with pytest.raises(
            SpecError, match=f"{name}: 2.0 is not supported: the installed transformers reads this field"
        ):
            spec_from_hf(LLAMA | {name: 2.0})


def write_config(directory, name, **settings):
    """A config file of a run that starts from a published checkpoint, of which there is only config.json."""
    directory.mkdir(exist_ok=True)
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text(json.dumps(PUBLISHED[name]))
    (directory / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    run = {
        "stages": ["po"],
        "output_dir": str(directory / "run"),
        "policy": {"path": str(directory / "model")},
        "data": {"train": [{"path": str(directory / "rows.jsonl")}]},
        "objective": {"kind": "dpo"},
        "po": {"steps": 1, "batch_size": 8},
    } | settings
    (directory / "run.yaml").write_text(json.dumps(run))
    return directory / "run.yaml"


def test_check_lists_ignored_fields_in_one_line_for_each_model(tmp_path, capsys):
    other = write_config(tmp_path / "other", "unsloth/Llama-3.2-1B-Instruct").parent / "model"
    path = write_config(tmp_path / "first", "SmolLM2-135M-Instruct", reference={"path": str(other)})
    (other / "config.json").write_text(
        json.dumps(PUBLISHED["SmolLM2-135M-Instruct"] | {"unsloth_fixed": True})
    )
    assert main(["--config", str(path), "--check"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "config fields ignored" in line]
    assert len(notes) == 2 and all("is_llama_config, transformers.js_config" in note for note in notes)
    assert str(path.parent / "model") in notes[0] and str(other) in notes[1] and "unsloth_fixed" in notes[1]
    inline = {"path": None, "config": LLAMA | {"unsloth_fixed": True, "vocab_size": 257}}
    overrides = ["reference.path=null", "tokenizer.kind=bytes", f"policy={json.dumps(inline)}"]
    assert main(["--config", str(path), "--check", *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("note: ")).startswith("note: policy.config: ")


def test_check_of_a_published_config_takes_no_second_and_no_heavy_package(tmp_path):
    path = write_config(tmp_path / "here", "SmolLM2-135M-Instruct")
    code = (
        "import sys; from sparsepo_jax.main import main; "
        "status = main(['--config', sys.argv[1], '--check']); "
        "print(status, sorted({'jax', 'flax', 'transformers', 'torch', 'datasets'} & set(sys.modules)))"
    )
    took_s = []
    for _ in range(3):
        began_s = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        took_s.append(time.perf_counter() - began_s)
        assert ended.stdout.splitlines()[-1] == "0 []" and "is_llama_config" in ended.stdout
    assert min(took_s) < 3, "a second on an idle machine; a heavy package alone would take longer than this"


RECIPES = {
    "imdb": "gpt2-large",
    "imdb_sft": "gpt2-large",
    "tldr": "gpt-j-6b",
    "tldr_sft": "gpt-j-6b",
    "mbpp": "starcoderbase-1b",
    "ultrafeedback": "Qwen3-0.6B",
    "qwen3_1_7b": "Qwen3-1.7B",
    "qwen3_8b": "Qwen3-8B",
    "gemma3_4b": "gemma-3-4b-it",
    "smollm3_3b": "SmolLM3-3B",
    "olmo3_7b": "Olmo-3-7B-Instruct",
    "qwen3_30b_a3b_lora": "Qwen3-30B-A3B",
    "gpt_oss_20b_lora": "gpt-oss-20b",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_passes_the_check_with_the_published_config_in_place(recipe, tmp_path, capsys):
    """And the shape that the recipe gives, for checks without the checkpoint, is the published one."""
    path = Path(__file__).parents[1] / "configs" / "recipes" / f"{recipe}.yaml"
    name = RECIPES[recipe]
    published = PUBLISHED[name] if name in PUBLISHED else hub_configs.WRAPPED[name][0]
    (tmp_path / "config.json").write_text(json.dumps(published))
    policy, spec = load_config(str(path), [])[0].policy, spec_from_hf(published)
    assert policy.path
    assert main(["--config", str(path), "--check", f"policy.path={tmp_path}"]) == 0
    assert f"policy      {tmp_path}: {spec.family}, " in capsys.readouterr().out
    if policy.config is not None:
        around = {"wrapping": spec.wrapping, "init_std": spec.init_std}
        assert dataclasses.replace(spec_from_hf(policy.config), **around) == spec


def test_a_run_says_at_its_start_which_fields_are_ignored(tmp_path, capsys):
    path = write_config(
        tmp_path / "here",
        "SmolLM2-135M-Instruct",
        stages=["inspect"],
        tokenizer={"kind": "bytes"},
        policy={"config": LLAMA | {"vocab_size": 257, "unsloth_fixed": True}},
    )
    assert main(["--config", str(path)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith("note: policy.config: ") and notes[0].endswith(": unsloth_fixed")


def test_as_many_key_and_value_heads_as_heads_may_be_written_as_null():
    for family in ("llama", "mistral", "qwen2", "olmo2"):
        assert spec_from_hf(LLAMA | {"model_type": family, "num_key_value_heads": None}).num_kv_heads == 4
