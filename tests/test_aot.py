"""Compiling for pods that are not here: their names, what a compiled program tells, how weights are cut.

With libtpu a small step is really compiled for TPUs.
"""

import importlib.util
import json
from dataclasses import dataclass

import pytest

from helpers.program import write_config
from sparsepo_jax.aot.hlo import Collective, HloProgram, collectives_in, kernels_in, refused_bytes
from sparsepo_jax.aot.topology import find_topology
from sparsepo_jax.config.load import load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.sharding.mesh import grid_of, make_mesh
from sparsepo_jax.sharding.rules import check_sharded, replicated_share

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install 'sparsepo_jax[tpu]'",
)

# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "shown", "chips", "gib"),
    [
        ("v5e-16", "v5e:4x4", 16, 16),
        ("v5litepod-8", "v5e:2x4", 8, 16),
        ("v6e-256", "v6e:16x16", 256, 32),
        ("v5e:4x4", "v5e:4x4", 16, 16),
        ("v5p-128", "v5p:4x4x4", 64, 95),
        ("v5p-8", "v5p:2x2x1", 4, 95),
        ("v4-8", "v4:2x2x1", 4, 32),
        ("v5p:4x4x4", "v5p:4x4x4", 64, 95),
        ("2xv5e-16", "2xv5e:4x4", 32, 16),
        ("v5e-16x2", "2xv5e:4x4", 32, 16),
        ("3xv5p:2x2x2", "3xv5p:2x2x2", 24, 95),
    ],
)
def test_topologies_go_by_the_names_that_people_use(name, shown, chips, gib):
    """v4 and v5p count TensorCores, two a chip; v5e and v6e chips."""
    topology = find_topology(name)
    assert (str(topology), topology.devices, topology.usable_bytes) == (shown, chips, gib * 2**30)
    assert topology.platform == "tpu" and topology.groups * topology.group_size == chips


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("v5p-64x", "TPUs by kind and shape"),
        ("v9-16", "v5e-1, 4, 8, 16"),
        (" ", "v5p-8, 16, 32"),
        ("2xv5e-16x2", "several slices of one"),
        ("h900", "h100, h100-pcie, h200"),
        ("a100x8", "expected a100-40g or a100-80g"),
        ("h100x80", "at most 16 cards; several hosts are 2x h100x8"),
        ("0x h100x8", "2x h100x8"),
        ("v5e-17", "there are v5e-1, 4, 8"),
        ("v5p-4", "there are v5p-8, 16"),
        ("v5p:4x4", "3 dimensions"),
        ("v5e:4x4x4", "2 dimensions"),
        ("v5e:0x4", "expected"),
    ],
)
def test_a_wrong_name_is_one_line_that_knows_others(name, remedy, tmp_path, capsys):
    assert main(["--config", str(write_config(tmp_path)), "--aot", name]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: --aot: no topology {name!r}") and remedy in line


# ---------------------------------------------------------------- programs

# The text of a compiled program; a line that ends in a backslash goes on in the next.
HLO = """\
HloModule jit_update, is_scheduled=true

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%condition.2 (p: (s32[], s32[])) -> pred[] {
  %p.2 = (s32[], s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %n.2 = s32[] get-tuple-element(%p.2), index=1
  ROOT %lt.2 = pred[] compare(%i.2, %n.2), direction=LT
}

%start.1 (x: bf16[2,64]) -> bf16[8,64] {
  %gather.1 = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=5, \
replica_groups=mesh['a'=4,'b'=2] {'a'}, frontend_attributes={chain_id="1"}
  ROOT %call.1 = (bf16[2,64]{1,0}, bf16[8,64]{1,0}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done.1 (x: bf16[2,64]) -> bf16[8,64] {
  ROOT %gather.2 = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=5, \
replica_groups=mesh['a'=4,'b'=2] {'a'}, frontend_attributes={chain_id="1"}
}

%all-reduce-scatter.1 (x: f32[8]) -> f32[2] {
  ROOT %sum.0 = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f.1 = bf16[8,64]{1,0} fusion(%p), kind=kCustom, calls=%start.1
  %f.2 = bf16[8,64]{1,0} fusion(%f.1), kind=kCustom, calls=%done.1
  %f.3 = f32[2]{0} fusion(%f.2), kind=kCustom, calls=%all-reduce-scatter.1
  %inner = (s32[], s32[]) while(%t), condition=%condition.2, body=%body.2, metadata={op_name="while"}
}

%body.2 (p: (s32[], s32[])) -> (s32[], s32[]) {
  %sent = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=7, \
source_target_pairs={{0,1},{1,0}}
  %came = f32[16]{0} collective-permute-done(%sent)
}

%never (x: f32[8]) -> f32[8] {
  ROOT %sum.9 = f32[8]{0} all-reduce(%x), channel_id=9, replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main.1 (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%a), condition=%condition.1, body=%body.1
  %both = (f32[4]{0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=2, replica_groups={{0,1}}, to_apply=%add
  %part = f32[3]{0} reduce-scatter(%c), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  %kernel = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call"
  ROOT %all = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), channel_id=4, \
replica_groups=[2,4]<=[8], dimensions={0}
}
"""


def test_collectives_count_as_often_as_they_run():
    """The program above, counted by hand.

    Three times, in the loop: an all-gather of 8 x 64 x 2 B that is a chain of two steps and counts as one, a
    reduce-scatter of 8 x 4 B, and an inner loop of unknown length, which counts as one round and passes on 16
    x 4 B. Once: an all-reduce of 16 + 8 B, a reduce-scatter of 3 x 4 B x 4 chips, an all-gather of 32 B.

    Kills: a `-start` counted with its operands; a computation that nothing calls; a chain counted by steps.
    """
    program = HloProgram(HLO)
    assert program.open_loops
    counted = {kind: (x.count, x.bytes) for kind, x in collectives_in(program).items()}
    assert counted == {
        "all-gather": (4, 3 * 1024 + 32),
        "all-reduce": (1, 24),
        "collective-permute": (3, 3 * 64),
        "reduce-scatter": (4, 3 * 32 + 48),
    }
    known = HloProgram(HLO.replace("(%t), condition=%condition.2", "(%t), condition=%condition.1"))
    assert known.open_loops is False
    assert kernels_in(program) == {"AsyncCollectiveStart": 1, "tpu_custom_call": 1}


def test_what_a_device_sends_at_least():
    """Eight devices on two hosts, 0 to 3 and 4 to 7; by hand.

    An all-gather of 64 B among 4: each sends 3/4 of it. Among 2 x 2 devices of both hosts the hosts send half
    of it to each other, shared by two devices. An all-reduce is two of that. A permute sends all. The mesh
    of the all-to-all has device 4 beside device 0 along y.
    """
    program = HloProgram("""\
HloModule m

ENTRY %main (a: f32[8]) -> f32[8] {
  %one = f32[16]{0} all-gather(%a), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %two = f32[16]{0} all-reduce(%a), channel_id=2, replica_groups={{0,1,4,5},{2,3,6,7}}, to_apply=%add
  %three = f32[16]{0} reduce-scatter(%a), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %five = f32[16]{0} all-to-all(%a), channel_id=5, \
replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}, dimensions={0}
  ROOT %four = f32[16]{0} collective-permute(%a), channel_id=4, source_target_pairs={{0,1},{3,4}}
}
""")
    assert collectives_in(program, [0] * 4 + [1] * 4) == {
        "all-gather": Collective(1, 64, sent_bytes=48, network_bytes=0),
        "all-reduce": Collective(1, 64, sent_bytes=96, network_bytes=32),
        "all-to-all": Collective(1, 64, sent_bytes=32, network_bytes=32),
        "collective-permute": Collective(1, 64, sent_bytes=64, network_bytes=64),
        "reduce-scatter": Collective(1, 128, sent_bytes=64, network_bytes=64),
    }
    assert all(x.network_bytes == 0 for x in collectives_in(program).values())


def test_a_refusal_says_what_is_needed():
    """refused_bytes: (of the temporaries, of everything), whichever the message names."""
    in_all = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 25.50G of 15.75G hbm. Exceeded hbm capacity by 9.75G."
    )
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(48.50G) exceeds available HBM (15.75G)."
    )
    assert refused_bytes(in_all) == (None, 25.5 * 2**30)
    assert refused_bytes("Used 512.0M of 15.75G hbm") == (None, 2**29)
    assert refused_bytes(temporaries) == (48.5 * 2**30, None)
    assert refused_bytes("something else") == (None, None)


# ---------------------------------------------------------------- mesh and rules

SHAPES = {
    "embed.embedding": (30, 16),
    "blocks.up.kernel": (2, 16, 64),
    "blocks.down.kernel": (2, 64, 16),
    "final_norm.scale": (16,),
}
TOTAL = 480 + 2 * 2048 + 16


def test_the_replicated_share_by_hand():
    """fsdp 2 x tensor 4: a device holds half of the embedding (30 rows are no multiple of 4), an eighth of
    both kernels, and the whole norm."""
    held = 240 + 2 * 2048 / 8 + 16
    share = replicated_share(SHAPES, {"data": 1, "fsdp": 2, "tensor": 4})
    assert share == pytest.approx((held / TOTAL - 1 / 8) / (1 - 1 / 8))
    assert replicated_share(SHAPES, {"data": 8, "fsdp": 1, "tensor": 1}) == 0.0  # nothing to cut over
    assert replicated_share(
        {"final_norm.scale": (16,)}, {"data": 1, "fsdp": 2, "tensor": 4}
    ) == pytest.approx(1.0)


def test_a_mesh_that_leaves_weights_whole_is_refused_with_one_that_does_not():
    mesh = make_mesh(1, 2, 4)
    message = (
        r"data=1, fsdp=2, tensor=4 leaves 5 % of the weights replicated \(at most 2 % may be\): "
        r"embed.embedding \[30, 16\] in 2 part\(s\), .* instead of 8, .*; take data=1, fsdp=4, tensor=2"
    )
    with pytest.raises(UserError, match=message):
        check_sharded(SHAPES, mesh)
    check_sharded(SHAPES, make_mesh(1, 4, 2))
    check_sharded({"final_norm.scale": (16,)}, make_mesh(8, 1, 1))
    with pytest.raises(ValueError, match="new.kernel matches 0 rules"):
        check_sharded(SHAPES | {"new.kernel": (16, 16)}, make_mesh(8, 1, 1))


def test_training_on_such_a_mesh_stops_before_anything_is_written(tmp_path, capsys):
    config = write_config(tmp_path, stages=["po"], compute={"mesh": {"data": 1, "fsdp": 1, "tensor": 8}})
    assert main(["--config", str(config)]) == 1
    assert "of the weights replicated" in capsys.readouterr().err
    assert not (tmp_path / "run" / "po").exists()


@dataclass(frozen=True)
class Chip:
    """What a mesh asks a device for."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "none"


@pytest.mark.parametrize(
    ("sizes", "slices_of_axes"),
    [((4, 2, 1), (2, 1, 1)), ((2, 2, 2), (2, 1, 1)), ((1, 4, 2), (1, 2, 1)), ((2, 4, 1), (2, 1, 1))],
)
def test_data_is_cut_over_slices_first_and_fsdp_over_the_rest(sizes, slices_of_axes):
    """Along an axis that is not cut over slices all devices are of one slice."""
    chips = [Chip(n, n % 2) for n in range(8)]  # the order in which they are found says nothing
    grid = grid_of(sizes, None, chips)
    assert grid.shape == sizes and {chip.id for chip in grid.flat} == set(range(8))
    for axis, (size, number) in enumerate(zip(sizes, slices_of_axes, strict=True)):
        lines = grid.swapaxes(axis, -1).reshape(-1, size)
        assert all(len({chip.slice_index for chip in line}) == number for line in lines)


def test_slices_that_cannot_be_are_refused():
    chips = [Chip(n, n % 2) for n in range(6)]
    message = (
        "data=1 x fsdp=3 cannot be cut over 2 slices, and tensor must not be; take a multiple of 2 for data"
    )
    with pytest.raises(UserError, match=message):
        grid_of((1, 3, 2), None, chips)
    with pytest.raises(UserError, match="slices: 3, but these 6 device.s. are 2 slice"):
        grid_of((6, 1, 1), 3, chips)
    with pytest.raises(UserError, match="slices: 2, but these 8 device.s. are 1 slice"):
        make_mesh(8, 1, 1, 2)


# ---------------------------------------------------------------- compiled for TPUs


@pytest.mark.parametrize("option", ["--json", "--fit"])
def test_some_options_go_with_aot_alone(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(write_config(tmp_path)), option])
    assert stopped.value.code == 2 and f"{option} goes with --aot" in capsys.readouterr().err


@needs_libtpu
def test_two_slices_of_a_real_topology():
    from sparsepo_jax.aot.absent import absent_devices

    mesh = make_mesh(None, 4, 1, devices=absent_devices(find_topology("2xv5e:2x2")))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert [{device.slice_index for device in row.flat} for row in mesh.devices] == [{0}, {1}]


@needs_libtpu
def test_the_step_of_a_run_is_compiled_for_a_pod(tmp_path, capsys):
    """Two slices of four chips. The whole state is donated, and a chip holds a quarter of it and of the
    reference, which in tiles takes little more than its bytes.

    Kills: a replicated state or reference; a step without donation; float32 on TPU.
    """
    config = write_config(
        tmp_path,
        stages=["po"],
        compute={"mesh": {"data": None, "fsdp": 4}},
        policy={
            "config": {"model_type": "gpt2", "n_layer": 1, "n_head": 4, "n_embd": 512, "n_positions": 64}
        },
    )
    assert main(["--config", str(config), "--aot", "2xv5e:2x2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["topology"], report["chips"], report["mesh"]) == (
        "2xv5e:2x2",
        8,
        {"data": 2, "fsdp": 4, "tensor": 1},
    )
    assert (
        report["fits"]
        and report["hbm_bytes"] == 16 * 2**30
        and report["dtype"] == "bfloat16"
        and report["batch"]["lengths"] == "of data.train"
    )
    assert report["kernels"]["attention"] == "splash"
    weights = 4 * (12 * 512**2 + (162 + 64) * 512)
    assert 3 * weights / 4 < report["alias_bytes"] < 1.1 * 3 * weights / 4
    held = 3.5 * weights / 4  # the reference's matrices are bfloat16
    assert held < report["argument_bytes"] < 1.1 * held and report["temp_bytes"] > 0
    assert (
        report["collectives"]["all-gather"]["bytes"] > 0
        and sum(x["count"] for x in report["collectives"].values()) > 10
    )


@needs_libtpu
@pytest.mark.parametrize("family", [{}, {"model_type": "gpt_bigcode"}])
def test_splash_is_in_the_step_of_a_mesh_that_cuts_rows_and_heads(tmp_path, capsys, family):
    """Four kernels: the reference's and the policy's forward, and the policy's two backward. Two heads of 128
    dims; in GPTBigCode one key head for both."""
    config = write_config(
        tmp_path,
        stages=["po"],
        compute={"attention": "splash", "mesh": {"data": 1, "fsdp": 2, "tensor": 2}},
        policy={
            "config": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 256, "n_positions": 64}
            | family
        },
    )
    assert main(["--config", str(config), "--aot", "v5e-4", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert kernels["attention"] == "splash" and kernels["custom_calls"]["tpu_custom_call"] == 4


@needs_libtpu
def test_a_step_that_does_not_fit_needs_neither_data_nor_network(tmp_path, capsys):
    """A Hub id with its shape, whose embedding alone is 17 GB, with its moments and the reference's 60 GB."""
    config = write_config(
        tmp_path,
        stages=["po"],
        tokenizer=None,
        policy={
            "path": "no-one/here",
            "config": {
                "model_type": "gpt2",
                "n_layer": 1,
                "n_head": 8,
                "n_embd": 1024,
                "n_positions": 64,
                "vocab_size": 2**22,
            },
        },
        data={"train": [{"path": "no-one/there"}], "sft": [], "eval": []},
        po={"batch_size": 4, "steps": 5},
    )
    assert load_config(str(config), [])[0].policy.path == "no-one/here"
    assert (
        main(["--config", str(config), "--aot", "v5e-4", "--json", "compute.mesh={data: 1, fsdp: null}"]) == 3
    )
    report = json.loads(capsys.readouterr().out)
    assert (
        not report["fits"]
        and "no-one/there is not here" in report["batch"]["lengths"]
        and "32" in report["batch"]["lengths"]
    )
    assert (
        report["argument_bytes"] > 3.5 * 2**32
        and report["needed_bytes"] > report["hbm_bytes"] > 0
        and "RESOURCE_EXHAUSTED" in report["refusal"]
    )
