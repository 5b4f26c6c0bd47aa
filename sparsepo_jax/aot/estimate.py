"""Bytes and seconds of a step counted by hand, for choosing which settings to compile.

Arguments are exact, from shapes and shardings. Temporaries are those of run/need; what kernels move and what
devices exchange are estimates in the same manner.
"""

from collections.abc import Mapping
from typing import NamedTuple

from sparsepo_jax.aot.bound import Bound, passes_of, tokens_of
from sparsepo_jax.aot.compile import StepShapes, Task
from sparsepo_jax.aot.footprint import held_bytes
from sparsepo_jax.models.decoder_spec import choose_projections
from sparsepo_jax.models.operations import Tokens, matrix_operations
from sparsepo_jax.run.choices import Choices, StepDevice, choose, dtype_on
from sparsepo_jax.run.held import trained_numbers
from sparsepo_jax.run.need import FLOAT, Load, Setting, held_by, kept_by_layers


class Held(NamedTuple):
    """What each device holds between steps on one mesh, and its share of a batch in one micro-step.

    Attributes:
        sizes: of the mesh's axes.
        argument_bytes: state, frozen weights and batch.
        frozen_bytes: reference, or base of adapters.
        load: tokens of a device.
        tokens: of a step, on all devices.
    """

    sizes: Mapping[str, int]
    argument_bytes: int
    frozen_bytes: int
    load: Load
    tokens: Tokens


class Estimate(NamedTuple):
    """What a step would need and take."""

    argument_bytes: int
    temp_bytes: int
    bound: Bound

    @property
    def needed_bytes(self) -> int:
        """All that a device would hold."""
        return self.argument_bytes + self.temp_bytes


def held_on(task: Task, shapes: StepShapes) -> Held:
    """What the arguments of a task's step in one micro-step tell."""
    _, frozen, batch = shapes.arguments
    packing = batch.packing
    micro_steps, rows, positions = packing.ids_RS.shape
    sizes = dict(shapes.mesh.shape)
    of_device = micro_steps * rows // (sizes["data"] * sizes["fsdp"])
    return Held(
        sizes,
        held_bytes(shapes.arguments),
        held_bytes(frozen),
        Load(of_device * positions, of_device * packing.at_RM.shape[-1], packing.column_RQW.shape[-1]),
        tokens_of(batch, task.table),
    )


def estimate(task: Task, held: Held) -> Estimate:
    """What the task's step would need and take.

    Args:
        task: with the settings in question.
        held: on the task's mesh.
    """
    setting, choices = chosen_for(task, held)
    device, topology = task.topology.device, task.topology
    held_through = held_by(setting)
    temp_bytes = choices.need.total - held_through.state - held_through.frozen
    passes = passes_of(task.config, task.stage, choices.remat.value)
    operations = matrix_operations(task.policy, held.tokens, passes)
    sent_bytes, network_bytes = _exchanged(task, held, setting, passes.blocks)
    bound = Bound(
        operations,
        operations / topology.devices / device.matrix_rate,
        _moved(task, held, setting, choices) / device.bandwidth,
        max(sent_bytes / device.link, network_bytes / device.network),
    )
    return Estimate(held.argument_bytes, temp_bytes, bound)


def chosen_for(task: Task, held: Held) -> tuple[Setting, Choices]:
    """(models and how they are cut, what is chosen for what a device runs at a time)."""
    config, stage = task.config, task.stage
    micro_steps = getattr(config, stage).accumulation
    positions, tokens, longest = held.load
    load = Load(-(-positions // micro_steps), -(-tokens // micro_steps), longest)
    runs_reference = stage == "po" and not config.reference.cached
    setting = Setting(
        config,
        stage,
        task.policy,
        task.reference if runs_reference else None,
        itemsize=4 if dtype_on(config, task.topology.platform) == "float32" else 2,
        shards=held.sizes["fsdp"] * held.sizes["tensor"],
        tensor=held.sizes["tensor"],
    )
    return setting, choose(setting, load, StepDevice(task.topology.platform, task.topology.usable_bytes))


# What fusions read and write of a position in a layer, in numbers per number that a block keeps of it, for a
# forward pass and for a backward pass (whose share grows with what is computed again).
_FORWARD, _BACKWARD = 1.5, 3.0
_AGAIN = {"nothing": 0.0, "norms": 0.5, "all_but_products": 0.8, "everything": 1.5}
_ADDED = 8.0  # per number that an adapted product writes, to add what its adapter does, in both passes


def _moved(task: Task, held: Held, setting: Setting, choices: Choices) -> float:
    """Bytes that all but products and attention move through a device's memory in a step."""
    spec, micro_steps = task.policy, setting.training.accumulation
    state_bytes = held.argument_bytes - held.frozen_bytes
    trained = _trained(setting) / setting.shards
    optimizer = 2 * state_bytes + 2 * FLOAT * trained
    casts = (FLOAT + setting.itemsize) * trained
    sums = 3 * FLOAT * trained * micro_steps if micro_steps > 1 else 0
    forwards = 2 if setting.reference is not None else 1
    features = kept_by_layers(spec, "nothing", tensor=setting.tensor)
    passes = forwards * _FORWARD + _BACKWARD + _AGAIN[choices.remat.value]
    numbers = features * passes + _ADDED * _adapted_outputs(setting)
    activations = setting.itemsize * numbers * held.load.positions
    # A loop over layers copies the weights of each out of their stack.
    loops = forwards + 1 + (choices.remat.value == "everything")
    layers = 2 * setting.itemsize * spec.block_matrix_count() / setting.shards * loops * micro_steps
    return optimizer + casts + sums + activations + layers + _moved_by_head(held, setting, choices)


def _adapted_outputs(setting: Setting) -> int:
    """Numbers that adapted products write of a position in all layers, on each device; 0 without LoRA."""
    spec, lora = setting.policy, setting.training.lora
    if lora is None:
        return 0
    adapted = choose_projections(tuple(lora.targets), spec)
    outputs = 0
    for block, layers in spec.blocks():
        for name, (_, size) in block.projections().items():
            if name in adapted:
                chosen = block.mixture.chosen if name.startswith("experts.") and block.mixture else 1
                outputs += layers * chosen * size
    return outputs // setting.tensor


def _trained(setting: Setting) -> int:
    """Numbers that are trained, without the few of mask nets."""
    return sum(trained_numbers(setting.training, setting.policy, 0))


def _moved_by_head(held: Held, setting: Setting, choices: Choices) -> float:
    """The same of logits: each of them, the head for each block of tokens, states for each of entries.

    The gradients of head and states are added up in float32.
    """
    spec, (tokens, vocabulary) = setting.policy, choices.head.value
    entries = spec.vocab_size / setting.tensor
    token_blocks = max(held.load.tokens / tokens, setting.training.accumulation)
    vocabulary_blocks = max(entries / vocabulary, 1.0)
    per_weight = 4 * setting.itemsize + 2 * 4
    heads = token_blocks * entries * spec.width * per_weight
    states = vocabulary_blocks * held.load.tokens * spec.width * per_weight
    return heads + states + 4 * 6 * held.load.tokens * entries


def _exchanged(task: Task, held: Held, setting: Setting, passes: float) -> tuple[float, float]:
    """(bytes that a device sends in a step, and of them to other hosts or slices)."""
    spec, groups = task.policy, task.topology.groups
    micro_steps = getattr(task.config, task.stage).accumulation
    data, fsdp, tensor = (held.sizes[axis] for axis in ("data", "fsdp", "tensor"))
    groups_of_data = min(data, groups)
    groups_of_fsdp = groups // groups_of_data
    # Weights are gathered in 16 bits, the policy's for two passes and the reference's for one; gradients are
    # summed in 32 bits.
    trained = _trained(setting) / tensor
    frozen = (setting.reference or spec).parameter_count() / tensor if held.frozen_bytes else 0
    gathered = micro_steps * (2 * (2 * trained + frozen) + FLOAT * trained)
    summed = 2 * FLOAT * trained / fsdp * micro_steps
    states = 2 * 2 * 2 * held.load.positions * spec.width * spec.num_layers * passes
    sent = gathered * _share(fsdp) + summed * _share(data) + states * _share(tensor)
    network = gathered * _share(groups_of_fsdp) * groups_of_fsdp / fsdp
    network += summed * _share(groups_of_data) * groups_of_data / data
    return sent, network


def _share(parts: int) -> float:
    """What a device sends of an array that is gathered from so many parts."""
    return (parts - 1) / parts
