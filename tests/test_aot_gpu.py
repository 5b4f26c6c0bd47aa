"""Compiling for GPUs that are not here: names, what XLA is told of them, traffic, the bound of a step's time.

With the extra aot-gpu a small step is really compiled for H100s.
"""

import json

import pytest

from helpers.program import write_config
from sparsepo_jax.aot.absent import absent_devices, target_config, toolkit_directory
from sparsepo_jax.aot.bound import lower_bound
from sparsepo_jax.aot.devices import CARDS, DEVICES
from sparsepo_jax.aot.footprint import Footprint
from sparsepo_jax.aot.hlo import Collective, HloProgram
from sparsepo_jax.aot.topology import find_topology
from sparsepo_jax.aot.traffic import Traffic, traffic_in
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.models.operations import Passes, Tokens, matrix_operations, pair_tokens
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.run.choices import GPU_SHARE

needs_plugin = pytest.mark.skipif(
    toolkit_directory() is None,
    reason="compiling for a GPU needs its plugin: pip install 'sparsepo_jax[aot-gpu]'",
)

# ---------------------------------------------------------------- names and facts


@pytest.mark.parametrize(
    ("name", "shown", "cards", "hosts"),
    [
        ("h100", "h100", 1, 1),
        ("h100x1", "h100", 1, 1),
        ("h100x8", "h100x8", 8, 1),
        ("2x h100x8", "2x h100x8", 16, 2),
        ("2xh100x8", "2x h100x8", 16, 2),
        ("4x h200", "4x h200", 4, 4),
        ("a100-80gx8", "a100-80gx8", 8, 1),
        ("a100-40g", "a100-40g", 1, 1),
        ("h100-pciex2", "h100-pciex2", 2, 1),
        ("rtx4090", "rtx4090", 1, 1),
        ("l4x4", "l4x4", 4, 1),
        ("l40s", "l40s", 1, 1),
    ],
)
def test_gpus_go_by_card_and_number(name, shown, cards, hosts):
    topology = find_topology(name)
    assert (str(topology), topology.devices, topology.groups) == (shown, cards, hosts)
    assert topology.platform == "gpu" and find_topology(shown) == topology


def test_a_part_of_a_cards_memory_is_left_to_cuda():
    """As much as a run leaves. A TPU's memory is a program's alone."""
    card, chip = find_topology("h100x8"), find_topology("v5e-8")
    assert card.usable_bytes == int(GPU_SHARE * card.device.memory_bytes)
    assert chip.usable_bytes == chip.device.memory_bytes


@pytest.mark.parametrize("name", DEVICES)
def test_facts_are_of_the_size_that_they_should_be(name):
    """Kills: a rate in TFLOP/s, a bandwidth in GB/s, memory in GB."""
    device = DEVICES[name]
    assert 15e9 < device.memory_bytes < 300e9
    assert 0.2e12 < device.bandwidth < 10e12
    assert 50e12 < device.matrix_rate < 3000e12
    assert device.network < device.link < device.bandwidth and device.source


@pytest.mark.parametrize("name", CARDS)
def test_the_target_is_said_in_the_compilers_words(name):
    card = CARDS[name]
    text = target_config(card, (9, 10, 2))
    major, minor = card.capability
    for line in (
        f"core_count: {card.multiprocessors}",
        f"device_memory_size: {card.memory_bytes}",
        f"memory_bandwidth: {int(card.bandwidth)}",
        f"cuda_compute_capability {{ major: {major} minor: {minor}",
        "dnn_version_info { major: 9 minor: 10 patch: 2 }",
        f'device_description_str: "{card.name}"',
    ):
        assert line in text
    # Only these have instructions of their own architecture, such as sm_90a's.
    assert ("ACCELERATED_FEATURES" in text) == (card.capability in ((9, 0), (10, 0)))
    assert text.count("{") == text.count("}")


def test_without_the_plugin_one_line_says_what_to_install(monkeypatch):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name):
        if name == "jax-cuda12-plugin":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        UserError, match=r"needs jax-cuda12-plugin, which is not installed: pip install .*gpu"
    ):
        absent_devices(find_topology("h100"))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.0.1" if name.startswith("jax-cuda12") else real(name)
    )
    with pytest.raises(UserError, match=r"needs jax-cuda12-plugin .* but 0.0.1 is installed"):
        absent_devices(find_topology("h100"))


# ---------------------------------------------------------------- traffic

HLO = """\
HloModule jit_update, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%slices (stack: bf16[4,8,16], i: s32[], row: f32[16]) -> (f32[8,16], f32[16]) {
  %stack = bf16[4,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,8,16]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %flat = bf16[8,16]{1,0} bitcast(%layer)
  %wide = f32[8,16]{1,0} convert(%flat)
  %row = f32[16]{0} parameter(2)
  %twice = f32[16]{0} add(%row, %row)
  ROOT %both = (f32[8,16]{1,0}, f32[16]{0}) tuple(%wide, %twice)
}

%update (kept: f32[4,16], i: s32[], row: f32[16]) -> f32[4,16] {
  %kept = f32[4,16]{1,0} parameter(0)
  %row.2 = f32[16]{0} parameter(2)
  %one = f32[1,16]{1,0} bitcast(%row.2)
  %i.2 = s32[] parameter(1)
  %zero.2 = s32[] constant(0)
  ROOT %new = f32[4,16]{1,0} dynamic-update-slice(%kept, %one, %i.2, %zero.2)
}

%gemm (a: f32[8,16], b: f32[16,8]) -> f32[8,8] {
  %a.3 = f32[8,16]{1,0} parameter(0)
  %b.3 = f32[16,8]{1,0} parameter(1)
  ROOT %c.3 = f32[8,8]{1,0} dot(%a.3, %b.3), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%condition (p: (s32[], f32[4,16])) -> pred[] {
  %p.4 = (s32[], f32[4,16]{1,0}) parameter(0)
  ROOT %more = pred[] custom-call(%p.4), custom_call_target="more"
}

%body (p: (s32[], f32[4,16], bf16[4,8,16], f32[16])) -> (s32[], f32[4,16]) {
  %p = (s32[], f32[4,16]{1,0}, bf16[4,8,16]{2,1,0}, f32[16]{0}) parameter(0)
  %i.5 = s32[] get-tuple-element(%p), index=0
  %kept.5 = f32[4,16]{1,0} get-tuple-element(%p), index=1
  %stack.5 = bf16[4,8,16]{2,1,0} get-tuple-element(%p), index=2
  %row.5 = f32[16]{0} get-tuple-element(%p), index=3
  %f.1 = (f32[8,16]{1,0}, f32[16]{0}) fusion(%stack.5, %i.5, %row.5), kind=kLoop, calls=%slices
  %f.2 = f32[4,16]{1,0} fusion(%kept.5, %i.5, %row.5), kind=kLoop, calls=%update
  %wide.5 = f32[8,16]{1,0} get-tuple-element(%f.1), index=0
  %product = f32[8,8]{1,0} custom-call(%wide.5, %wide.5), custom_call_target="__cublas$gemm"
  ROOT %out = (s32[], f32[4,16]{1,0}) tuple(%i.5, %f.2)
}

ENTRY %main (a: f32[8,16], b: f32[16,8]) -> f32[8,8] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,8]{1,0} parameter(1)
  %loop = (s32[], f32[4,16]{1,0}) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %seen = f32[8,16]{1,0} custom-call(%a, %a), custom_call_target="__cudnn$fmhaSoftmax"
  %room = f32[64,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %turned = f32[16,8]{0,1} transpose(%a), dimensions={1,0}
  %part = f32[2,16]{1,0} slice(%a), slice={[0:2], [0:16]}
  ROOT %last = f32[8,8]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
}
"""


def test_traffic_counts_what_kernels_read_and_write():
    """The program above, by hand.

    Three rounds of: a fusion that takes one layer of a stack (8 x 16 x 2 B), an index (4 B) and a row (64 B)
    and writes 8 x 16 x 4 B and 64 B; one that updates a row of 64 B in place (reads 64 B and the index); a
    product. Once: a product in a fusion, attention, a transpose, and a slice that reads as much as it writes.

    Kills: a stack read as a whole; an array updated in place counted as written; loops counted once; a
    fusion around a product counted as a fusion; room that is only set aside counted as written.
    """
    slices, update = 256 + 4 + 64 + 512 + 64, 64 + 4 + 64
    product = 2 * 512 + 256
    assert traffic_in(HloProgram(HLO)) == {
        "fusion": Traffic(6, 3 * (slices + update)),
        "product": Traffic(4, 3 * product + 512 + 512 + 256),
        "attention": Traffic(1, 3 * 512),
        "copy": Traffic(2, 2 * 512 + 2 * 128),
    }


# ---------------------------------------------------------------- operations and the bound

TINY = {"model_type": "gpt2", "vocab_size": 10, "n_positions": 8, "n_embd": 4, "n_layer": 3, "n_head": 2}


def test_operations_by_hand():
    """One pair of a prompt of 2 tokens and responses of 3, of which 2 run: 6 positions.

    A block has 4 x 4 x 4 + 2 x 4 x 16 weights. The prompt sees 2 x 2 / 2; a response's two tokens see the
    prompt and half of themselves, 2 x (2 + 1). The head is 10 x 4 for 6 response tokens.
    """
    spec = spec_from_hf(TINY)
    tokens = pair_tokens(1, 2, 3)
    assert tokens == Tokens(positions=6, seen=2 + 2 * 6, responses=6)
    blocks = 3 * (2 * 192 * 6 + 4 * 4 * 14)
    assert matrix_operations(spec, tokens, Passes(1, 0)) == blocks
    assert matrix_operations(spec, tokens, Passes(4, 6)) == 4 * blocks + 6 * 2 * 10 * 4 * 6


def test_the_bound_by_hand():
    """Two hosts of eight H100s. Products at 989.4 TFLOP/s; 3.352 TB in fusions and copies take a second, what
    products and attention move is theirs; 100 GB to the other host take two seconds, longer than the rest."""
    topology = find_topology("2x h100x8")
    traffic = {
        "fusion": Traffic(1, int(3e12)),
        "product": Traffic(1, 10**15),
        "attention": Traffic(1, 10**15),
        "copy": Traffic(1, int(0.352e12)),
    }

    def bound_of(network_bytes):
        collectives = {"all-gather": Collective(1, 0, sent_bytes=45 * 10**9, network_bytes=network_bytes)}
        footprint = Footprint(0, 0, 0, 0, True, collectives, False, {}, traffic)
        return lower_bound(topology, 16 * 0.5 * 989.4e12, footprint)

    bound = bound_of(0)
    assert (bound.products_s, bound.memory_s, bound.exchange_s) == pytest.approx((0.5, 1.0, 0.1))
    assert bound.seconds == pytest.approx(1.5)
    assert bound_of(100 * 10**9).seconds == pytest.approx(2.0)
    refused = Footprint(0, None, None, None, False, None, False, None)
    assert lower_bound(topology, 1.0, refused) is None


# ---------------------------------------------------------------- compiled


@needs_plugin
@pytest.mark.parametrize("name", ["2x h100x2", "rtx4090"])
def test_the_step_of_a_run_is_compiled_for_gpus(name, tmp_path, capsys):
    """The whole state is donated, and a card holds its part of it.

    Kills: float32 on GPU; the attention kernel of the CPU; hosts that the mesh does not know; a step without
    donation.
    """
    topology = find_topology(name)
    config = write_config(
        tmp_path,
        stages=["po"],
        compute={"mesh": {"data": None, "fsdp": topology.group_size}},
        policy={
            "config": {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 256, "n_positions": 64}
        },
    )
    assert main(["--config", str(config), "--aot", name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["topology"], report["chips"]) == (name, topology.devices)
    assert report["fits"] and report["dtype"] == "bfloat16" and report["kernels"]["attention"] != "blocks"
    weights = 4 * (2 * 12 * 256**2 + (162 + 64) * 256) / topology.group_size
    assert 3 * weights < report["alias_bytes"] < 1.1 * 3 * weights
    assert report["traffic_bytes"] == report["traffic"]["fusion"]["bytes"] > 8 * weights
    assert report["traffic"]["product"]["count"] > 20
    parts = report["lower_bound"]
    assert report["lower_bound_s"] >= parts["products_s"] + parts["memory_s"] > 0
    if topology.devices > 1:
        reduced = report["collectives"]["all-reduce"]
        gathered = report["collectives"]["all-gather"]  # of weights: within a host
        assert reduced["network_bytes"] > 0.01 * reduced["sent_bytes"]
        assert gathered["network_bytes"] < 0.01 * gathered["sent_bytes"]
