"""What `auto` chooses in the section `compute`, by device, memory and model, and that it says why."""

import json
import re

import pytest

from helpers.configs import make_config
from helpers.hub_configs import CONFIGS
from helpers.program import run
from helpers.tiny import GEMMA2, GPT2
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.run.choices import (
    LONG,
    StepDevice,
    choose,
    choose_attention,
    choose_head,
    choose_remat,
    choose_unroll,
    cudnn_problem,
    longest_load,
)
from sparsepo_jax.run.need import Load, Setting, block_bytes, head_bytes, held_by, kept_features, needed_by

GB = 10**9
PYTHIA = spec_from_hf(
    CONFIGS["pythia-410m"] | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
)
LLAMA_1B = spec_from_hf(CONFIGS["unsloth/Llama-3.2-1B-Instruct"])
QWEN3 = spec_from_hf(
    CONFIGS["Qwen3-0.6B"] | {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16}
)
MEASURED = Load(positions=8 * (512 + 2 * 255), tokens=8 * 2 * 256, longest=512 + 2 * 255)  # 8 pairs, 512+256


def setting_of(
    spec=PYTHIA, stage="po", itemsize=2, reference=True, reference_dtype="auto", **changes
) -> Setting:
    config = make_config(objective={"kind": "dpo"}, reference={"dtype": reference_dtype}, **changes)
    return Setting(config, stage, spec, spec if reference else None, itemsize)


def gpu(gigabytes, capability=(9, 0)) -> StepDevice:
    return StepDevice("gpu", gigabytes * GB, capability)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(
    "changes, device, dtype, kernel, reason",
    [
        ({}, gpu(80), "auto", "triton", "bfloat16 on GPU, leaves out blocks that nothing sees"),
        ({}, gpu(80, None), "auto", "triton", "bfloat16 on GPU"),
        ({}, gpu(80), "float32", "xla", "slow in float32"),
        (GEMMA2, gpu(80), "auto", "triton", "bfloat16 on GPU"),
        ({"head_dim": 256}, gpu(80, (8, 0)), "auto", "triton", "bfloat16 on GPU"),
        ({"head_dim": 512}, gpu(80), "auto", "xla", "heads of 512 dims"),
        ({}, gpu(16, (7, 5)), "auto", "xla", "capability 7.5"),
        ({}, StepDevice("cpu"), "auto", "blocks", "CPU"),
        ({}, StepDevice("tpu", 16 * GB), "auto", "splash", "TPU"),
    ],
)
def test_attention_suits_the_device(changes, device, dtype, kernel, reason):
    spec = spec_from_hf(CONFIGS["SmolLM2-135M-Instruct"] | changes)
    chosen = choose_attention(make_config(compute={"dtype": dtype}), (spec, spec), device)
    assert chosen.value == kernel and reason in chosen.reason


def test_a_reference_with_wide_heads_rules_triton_out():
    narrow, wide = (spec_from_hf(CONFIGS["SmolLM2-135M-Instruct"] | {"head_dim": dims}) for dims in (64, 512))
    assert choose_attention(make_config(), (narrow, narrow), gpu(80)).value == "triton"
    assert choose_attention(make_config(), (narrow, wide), gpu(80)).value == "xla"


@pytest.mark.parametrize(
    "changes, device, dtype, expected",
    [
        ({}, gpu(80), "bfloat16", None),
        ({}, gpu(80), "float32", "computes in float32"),
        (GEMMA2, gpu(80), "bfloat16", "caps its scores"),
        ({"head_dim": 96}, gpu(80, (8, 0)), "bfloat16", None),
        ({"head_dim": 100}, gpu(80), "bfloat16", "heads of 100 dims"),
        ({"head_dim": 256}, gpu(80), "bfloat16", None),
        ({"head_dim": 256}, gpu(80, (10, 0)), "bfloat16", "heads of 256 dims"),
        ({"head_dim": 256}, gpu(80, None), "bfloat16", "up to 128, 256 on Hopper"),
        ({}, gpu(16, (7, 5)), "bfloat16", "capability 7.5"),
    ],
)
def test_what_cudnn_does_not_fit(changes, device, dtype, expected):
    problem = cudnn_problem((spec_from_hf(CONFIGS["SmolLM2-135M-Instruct"] | changes),), dtype, device)
    assert problem is None if expected is None else expected in problem


# ---------------------------------------------------------------- blocks of logits


def test_a_large_gpu_has_all_logits_in_one_block_and_a_cpu_small_ones():
    assert choose_head(setting_of(), MEASURED, gpu(127), "cudnn").value == (4096, 50304)
    assert choose_head(setting_of(), MEASURED, StepDevice("cpu"), "blocks").value == (512, 2048)
    assert choose_head(setting_of(), MEASURED, StepDevice("tpu", 16 * GB), "cudnn").value == (512, 2048)


@pytest.mark.parametrize("gigabytes", [30, 40, 72, 127])
@pytest.mark.parametrize("tokens", [64, 4096, 10**6])
@pytest.mark.parametrize("reference", [True, False])
def test_a_block_of_logits_takes_at_most_its_share_of_what_weights_leave(gigabytes, tokens, reference):
    """And sizes are whole or multiples of 128. Kills: a budget that counts the logits of one model."""
    setting = setting_of(reference=reference)
    load = MEASURED._replace(tokens=tokens)
    (rows, columns), _ = choose_head(setting, load, gpu(gigabytes), "cudnn")
    left = 0.92 * gigabytes * GB - sum(held_by(setting))
    models = 2 if reference else 1
    budget = max(left / 8, block_bytes(setting, load, "cudnn"))
    assert rows * columns * (4 * models + 2) <= max(1.02 * budget, 512 * 2048 * 10)
    assert rows in (tokens, rows // 128 * 128) and columns in (50304, columns // 128 * 128)


def test_less_memory_cuts_the_vocabulary_before_the_tokens():
    """The head's gradient is then written once."""
    (tokens, vocabulary), reason = choose_head(setting_of(QWEN3), MEASURED, gpu(60), "cudnn")
    assert tokens == 4096 and 2048 < vocabulary < 151936 and "blocks of" in reason


@pytest.mark.parametrize(
    "head, block",
    [
        ({"tokens": 64}, (64, 50304)),
        ({"vocabulary": 999}, (4096, 999)),
        ({"tokens": 64, "vocabulary": 999}, (64, 999)),
    ],
)
def test_sizes_that_are_set_stay(head, block):
    assert choose_head(setting_of(compute={"head": head}), MEASURED, gpu(127), "cudnn").value == block
    on_cpu = choose_head(setting_of(compute={"head": head}), MEASURED, StepDevice("cpu"), "cudnn").value
    assert on_cpu == (head.get("tokens", 512), head.get("vocabulary", 2048))


# ---------------------------------------------------------------- what is computed again


def remat_on(device, setting=None, load=MEASURED):
    return choose_remat(setting or setting_of(), load, device, "cudnn", (4096, 50304))


def test_what_keeps_most_of_what_fits_is_taken():
    sizes = [remat_on(gpu(size)).value for size in range(30, 140)]
    order = ["everything", "all_but_products", "norms", "nothing"]
    assert sorted(sizes, key=order.index) == sizes and set(sizes) == set(order)
    assert remat_on(StepDevice("cpu")).value == "nothing"


def test_a_step_that_does_not_fit_says_what_to_do():
    chosen = remat_on(gpu(16))
    assert chosen.value == "everything" and "more than fits: take more micro-steps" in chosen.reason
    assert not choose(setting_of(), MEASURED, gpu(16)).fits


def test_what_is_set_is_not_chosen_by_memory():
    assert remat_on(gpu(16), setting_of(compute={"remat": "norms"})).value == "norms"


@pytest.mark.parametrize(
    "written, meant",
    [(True, "everything"), (False, "nothing"), ("norms", "norms"), ("auto", "auto")],
)
def test_earlier_values_of_remat_keep_their_meaning(written, meant):
    assert make_config(compute={"remat": written}).compute.remat == meant


@pytest.mark.parametrize(
    "override, line",
    [
        ("compute.head.tokens=some", "compute.head.tokens: expected a positive integer or auto, got 'some'"),
        ("compute.head.vocabulary=0", "compute.head.vocabulary: expected a positive integer or auto, got 0"),
        ("compute.remat=all", "compute.remat: "),
    ],
)
def test_other_values_are_refused_in_one_line(override, line):
    with pytest.raises(ConfigError) as caught:
        load_config("configs/quickstart.yaml", [override])
    [refused] = caught.value.lines
    assert refused.startswith(line)


# ---------------------------------------------------------------- the estimate


def test_policies_keep_less_and_less():
    for spec in (PYTHIA, QWEN3, spec_from_hf(GPT2)):
        kept = [
            kept_features(spec, remat) for remat in ("nothing", "norms", "all_but_products", "everything")
        ]
        assert sorted(kept, reverse=True) == kept and len(set(kept)) == 4 and kept[-1] == spec.width


# GB of temporaries of the step for MEASURED in bfloat16, cudnn attention, logits in one block, as XLA
# compiled it for an H200 (jax 0.10.2); an H200 took what was compiled for it.
COMPILED = {
    "pythia": (PYTHIA, {"nothing": 18.99, "norms": 13.44, "all_but_products": 12.62, "everything": 6.82}),
    "llama": (LLAMA_1B, {"nothing": 18.53, "norms": 14.76, "all_but_products": 14.21, "everything": 8.38}),
}


@pytest.mark.parametrize("name", COMPILED)
def test_the_estimate_is_what_xla_compiled_within_six_percent(name):
    """Gradients of blocks set the peak in one, logits in the other. Kills: a sum of what is there in turn."""
    spec, compiled = COMPILED[name]
    setting = setting_of(spec)
    held = held_by(setting)
    load = MEASURED._replace(longest=1024)
    for remat, gigabytes in compiled.items():
        need = needed_by(setting, load, remat, "cudnn", (4096, spec.vocab_size))
        assert (need.total - held.state - held.frozen) / GB == pytest.approx(gigabytes, rel=0.06), remat


@pytest.mark.parametrize(
    "spec, pairs, gigabytes", [(PYTHIA, 8, 41.23), (PYTHIA, 16, 55.27), (QWEN3, 8, 54.65), (QWEN3, 16, 75.02)]
)
def test_the_estimate_is_all_that_a_compiled_step_takes_within_four_percent(spec, pairs, gigabytes):
    """Weights and temporaries of DPO for an H200, reference in float32, for what is chosen by itself.

    The last one cuts the vocabulary. Kills: a block's logits counted twice, parts of heads that are not."""
    setting = setting_of(spec, reference_dtype="float32", compute={"attention": "cudnn"})
    load = Load(pairs * MEASURED.positions // 8, pairs * MEASURED.tokens // 8, 1024)
    chosen = choose(setting, load, gpu(135))
    assert chosen.remat.value == "nothing"
    assert chosen.need.total / GB == pytest.approx(gigabytes, rel=0.04)


def test_a_step_that_adds_gradients_to_sums_holds_those_of_a_layer():
    """DPO of Pythia in two micro-steps, everything recomputed, as it is compiled for an H200: 30.66 GB.

    Kills: the gradients of all blocks beside their sums (32.5 GB)."""
    setting = setting_of(po={"accumulation": 2})
    load = MEASURED._replace(longest=1024)
    need = needed_by(setting, load, "everything", "cudnn", (4096, 50304))
    assert need.total / GB == pytest.approx(30.66, rel=0.04)
    written_out = needed_by(setting, load, "everything", "cudnn", (4096, 50304), unroll=True)
    assert written_out.blocks - need.blocks == 2 * PYTHIA.block_matrix_count() * 23 // 24


LLAMA_8B_CONFIG = (
    CONFIGS["unsloth/Llama-3.2-1B-Instruct"]
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"tie_word_embeddings": False}
)
LLAMA_8B = spec_from_hf(LLAMA_8B_CONFIG)


@pytest.mark.parametrize(
    ("objective", "compiled"),
    [
        ("dpo", {"everything": 29.7, "all_but_products": 51.2, "nothing": 72.2}),
        ("sparsepo", {"everything": 37.1, "all_but_products": 57.3, "norms": 59.0, "nothing": 74.7}),
    ],
)
def test_the_estimate_on_a_mesh_that_cuts_heads_is_what_xla_compiled_within_six_percent(objective, compiled):
    """GB of Llama-3-8B on 8 H100, fsdp 2 x tensor 4, 8 micro-steps of 16 pairs of 1,024 + 1,024 tokens.

    Kills: a residual stream that is cut like heads (23 GB for everything), mask nets that read nothing."""
    config = make_config(objective={"kind": objective}, po={"accumulation": 8})
    setting = Setting(config, "po", LLAMA_8B, LLAMA_8B, itemsize=2, shards=8, tensor=4)
    load = longest_load(8, (2048, 1024), responses=2, shared=True)
    for remat, gigabytes in compiled.items():
        need = needed_by(setting, load, remat, "triton", (512, 2048))
        assert need.total / GB == pytest.approx(gigabytes, rel=0.06), remat


LLAMA_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "head_dim": 128}


@pytest.mark.parametrize(
    ("shape", "layers", "shards", "micro_steps", "remat", "held", "gigabytes"),
    [
        (LLAMA_70B, 4, 8, 16, "everything", "bfloat16", 16.44),
        (LLAMA_70B, 20, 8, 16, "everything", "bfloat16", 40.56),
        ({}, 4, 16, 4, "nothing", "float32", 12.95),
    ],
)
def test_the_estimate_where_weights_are_gathered_is_what_xla_compiled_within_five_percent(
    shape, layers, shards, micro_steps, remat, held, gigabytes
):
    """SparsePO of Llama's shapes with few layers, fsdp alone, 128 pairs of 1,024 + 1,024 tokens.

    Kills: a head that is whole in no phase (12.0, 34.5 and 11.8 GB)."""
    spec = spec_from_hf(LLAMA_8B_CONFIG | shape | {"num_hidden_layers": layers})
    po = {"accumulation": micro_steps, "optimizer": {"moments": held}}
    config = make_config(objective={"kind": "sparsepo"}, po=po, compute={"weights": held})
    setting = Setting(config, "po", spec, spec, itemsize=2, shards=shards)
    load = longest_load(128 // shards // micro_steps, (2048, 1024), responses=2, shared=True)
    need = needed_by(setting, load, remat, "triton", (4096 if held == "float32" else 2048, 128256))
    assert need.total / GB == pytest.approx(gigabytes, rel=0.05)


def test_held_bytes_are_counted_by_hand():
    """Weights, two moments, the reference, a gradient. In bfloat16 a step holds copies of what products read,
    the reference's matrices are held so, and the gradient of what products read has that type."""
    spec = spec_from_hf(GPT2)
    blocks, tables = 2 * 12 * 16 * 16, (31 + 32) * 16
    count = spec.parameter_count()
    vectors = count - blocks - tables
    assert held_by(setting_of(spec, itemsize=4)) == (12 * count, 4 * count, 0, 0, 4 * count)
    frozen = 2 * (blocks + tables) + 4 * vectors
    gradient = 2 * blocks + 4 * (tables + vectors)
    assert held_by(setting_of(spec)) == (12 * count, frozen, 2 * blocks, 0, gradient)
    halved = held_by(setting_of(spec, itemsize=4)._replace(shards=2))
    assert halved.state == 6 * count


def test_held_bytes_follow_types_optimizers_and_the_host():
    spec = spec_from_hf(GPT2 | {"n_layer": 8})  # of a reference on the host two layers are here at a time
    count, tables = spec.parameter_count(), (31 + 32) * 16
    plain = held_by(setting_of(spec))
    assert held_by(setting_of(spec, reference=False)).frozen == 0
    lion = {"optimizer": {"kind": "lion"}, "accumulation": 2}
    held = held_by(setting_of(spec, po=lion))
    assert (held.state, held.sums) == (8 * count, 4 * count)
    halved = held_by(setting_of(spec, compute={"weights": "bfloat16"}))
    assert halved.state < plain.state and halved.copies == 0
    on_host = held_by(setting_of(spec, compute={"offload": "both"}))
    assert 4 * count < on_host.state < plain.state and 2 * tables <= on_host.frozen < plain.frozen


def test_a_mask_that_is_learned_is_trained_too():
    spec = spec_from_hf(GPT2)
    learned = setting_of(spec)._replace(config=make_config(objective={"kind": "sparsepo"}))
    assert held_by(learned).state == held_by(setting_of(spec)).state + 12 * (2 * 17 + 2 + 32)


def test_logits_that_are_kept_count():
    """8 bytes a token and entry of the vocabulary more."""
    plain, keeping = (
        head_bytes(setting_of(compute={"head": {"keep_logits": keep}}), MEASURED, (512, 2048))
        for keep in (False, True)
    )
    assert keeping - plain == 4096 * 50304 * 8


def test_the_longest_rows_are_those_of_the_limits():
    assert longest_load(8, (768, 512), responses=2, shared=True) == MEASURED
    assert longest_load(8, (768, 512), responses=2, shared=False) == (8 * 2 * 767, 4096, 767)
    assert longest_load(3, (10, 4), responses=1, shared=True) == (3 * 9, 18, 9)


# ---------------------------------------------------------------- what is said

MADE_UP = {"data": {"train": [{"kind": "reviews", "rows": 20}]}, "tokenizer": {"kind": "bytes"}}


def test_check_says_what_is_chosen_on_common_devices_and_why():
    config = make_config(policy={"config": CONFIGS["SmolLM2-135M-Instruct"]}, po={"batch_size": 8}, **MADE_UP)
    lines = make_plan_text(config).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("chosen"))
    table = [line[12:].split("  ") for line in lines[start:]]
    assert "all 8 pair(s)" in lines[start] and table[1][0] == "device"
    rows = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in table[2:9]}
    assert rows["CPU"][:3] == ["blocks", "512 x 2,048", "nothing"]
    assert rows["GPU of 141 GB"][0] == "triton" and rows["TPU of 17 GB"][0] == "splash"
    assert any("triton: bfloat16 on GPU, leaves out blocks that nothing sees" in line for line in lines)


def test_check_needs_no_vocabulary_to_say_nothing_of_choices():
    config = make_config(policy={"path": "owner/absent"}, **MADE_UP)
    assert "chosen" not in make_plan_text(config)


@pytest.mark.slow
def test_a_run_says_and_keeps_its_choices_and_how_long_the_first_step_took(tmp_path, capsys):
    output = run(tmp_path, "po.steps=1", "sft.steps=1")
    shown = capsys.readouterr()
    assert "po: attention blocks: on CPU" in shown.out and "head blocks 512 tokens x 2,048" in shown.out
    assert re.search(r"sft: first step done [\d.]+ s after the start\n", shown.err)
    assert re.search(r"po: first step done [\d.]+ s after the stage sft\n", shown.err)
    facts = json.loads((output / "po/facts.json").read_text())
    assert facts["choices"]["recomputed"].startswith("nothing: about ")
    seconds = json.loads((output / "summary.json").read_text())["first_step_s"]
    assert set(seconds) == {"sft", "po"} and seconds["po"] == facts["first_step_s"] > 0
    assert "seconds to the first step" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    "platform, calls, asked, value",
    [
        ("gpu", LONG, "auto", True),
        ("gpu", LONG - 1, "auto", False),
        ("cpu", LONG, "auto", False),
        ("gpu", 1, True, True),
        ("gpu", LONG, False, False),
    ],
)
def test_layers_are_written_out_where_a_gpu_runs_them_long_enough(platform, calls, asked, value):
    choice = choose_unroll(make_config(compute={"unroll": asked}), StepDevice(platform), calls)
    assert choice.value is value
