"""What the section `compute` comes to on some devices, for `--check`: kernels, blocks, memory, with reasons.

`--check` starts no accelerator, so that it says what is chosen on common ones. Batches are those of the
longest rows that the config allows; a run chooses by its own.
"""

from collections.abc import Iterator

from sparsepo_jax.config.derive import is_unpaired, least_shards, length_limits
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.run.choices import GPU_SHARE, Choices, StepDevice, choose, dtype_on, longest_load, size_text
from sparsepo_jax.run.need import Setting

# Platform, bytes of memory.
_DEVICES = (
    ("cpu", None),
    *(("gpu", size * 10**9) for size in (24, 48, 80, 141)),
    *(("tpu", size * 2**30) for size in (16, 95)),
)
_COLUMNS = ("device", "attention", "block of logits", "computed again", "bytes of a step")


def choice_lines(
    config: Config, stage: str, policy: DecoderSpec, reference: DecoderSpec
) -> Iterator[tuple[str, str]]:
    """Names and texts of a table with a row for each device, and of the reasons.

    Args:
        stage: sft or po.
        policy: shape of the policy.
        reference: shape of the reference.
    """
    training, mesh = getattr(config, stage), config.compute.mesh
    alone = stage == "sft" or is_unpaired(config.objective)
    responses, unit = (1, "response(s)") if alone else (2, "pair(s)")
    rows = max(1, training.batch_size // (training.accumulation * least_shards(mesh)))
    load = longest_load(
        rows,
        length_limits(config.data, policy.max_positions, policy.positions_note),
        responses=responses,
        shared=config.compute.layout == "shared",
    )
    yield (
        "chosen",
        f"for {stage}, if all {rows:,} {unit} of a device and micro-step are as long as they may be:",
    )
    runs_reference = stage == "po" and not config.reference.cached
    chosen: dict[StepDevice, Choices] = {}
    for platform, size in _DEVICES:
        setting = Setting(
            config,
            stage,
            policy,
            reference if runs_reference else None,
            itemsize=4 if dtype_on(config, platform) == "float32" else 2,
            shards=(mesh.fsdp or 1) * (mesh.tensor or 1),
            tensor=mesh.tensor or 1,
        )
        chosen[StepDevice(platform, size)] = choose(setting, load, _as_jax_has_it(StepDevice(platform, size)))
    yield from (("", line) for line in _table(chosen))
    for name, reasons in _reasons(chosen).items():
        for value, reason in reasons.items():
            yield "", f"{name} {value}: {reason}"


def _as_jax_has_it(device: StepDevice) -> StepDevice:
    """With the part of a card's memory that JAX may have."""
    if device.platform != "gpu" or device.bytes is None:
        return device
    return device._replace(bytes=round(GPU_SHARE * device.bytes))


def _table(chosen: dict[StepDevice, Choices]) -> list[str]:
    rows = [_COLUMNS, *(_row(device, choices) for device, choices in chosen.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(device: StepDevice, choices: Choices) -> tuple[str, ...]:
    size = "" if device.bytes is None else f" of {device.bytes / 1e9:.0f} GB"
    tokens, vocabulary = choices.head.value
    fits = "" if choices.fits else ", too much"
    return (
        f"{device.platform.upper()}{size}",
        str(choices.attention.value),
        f"{tokens:,} x {vocabulary:,}",
        str(choices.remat.value),
        size_text(choices.need.total) + fits,
    )


def _reasons(chosen: dict[StepDevice, Choices]) -> dict[str, dict[str, str]]:
    """Why each kernel is taken, by kernel: what is chosen by memory speaks for itself."""
    return {
        "attention": {str(choices.attention.value): choices.attention.reason for choices in chosen.values()}
    }
