"""What a problem is compiled with where the config leaves it to `auto`: by devices, models and batches."""

from collections.abc import Sequence

from jax.sharding import Mesh

from sparsepo_jax.build.compute import compute_dtype, device_of
from sparsepo_jax.build.models import decoder_graph
from sparsepo_jax.config.derive import length_limits
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.data.packing import Shape
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.run.choices import Choice, Choices, choose, longest_load
from sparsepo_jax.run.need import Load, Setting, adds_by_layer
from sparsepo_jax.sharding.mesh import pair_shards
from sparsepo_jax.train.problem import Problem


def training_choices(
    config: Config,
    stage: str,
    policy: DecoderSpec,
    reference: DecoderSpec,
    mesh: Mesh,
    shapes: Sequence[Shape],
    steps: int,
    device_bytes: int | None = None,
) -> Choices:
    """What the step of a stage is compiled with.

    Args:
        shapes: that the stage's batches have; the largest counts.
        steps: of the stage.
        device_bytes: memory of a device that is not here; None: the devices of the mesh tell.
    """
    load = Load(*(max(sizes) for sizes in zip(*shapes, strict=True)))
    setting = _setting(config, stage, policy, reference, mesh)
    return choose(setting, load, device_of(mesh, device_bytes), steps // len(shapes))


def reading_choices(config: Config, policy: DecoderSpec, reference: DecoderSpec, mesh: Mesh) -> Choices:
    """What programs that score are compiled with: for pairs as long as they may be.

    Nothing is kept for a backward pass there, so that nothing is computed again unless the config says so.
    """
    lengths = length_limits(config.data, policy.max_positions, policy.positions_note)
    pairs = max(1, config.evaluation.batch_size // pair_shards(mesh))
    load = longest_load(pairs, lengths, responses=2, shared=config.compute.layout == "shared")
    choices = choose(_setting(config, "po", policy, reference, mesh), load, device_of(mesh))
    if config.compute.remat != "auto":
        return choices
    return choices._replace(remat=Choice("nothing", "there is no backward pass"))


def _setting(config: Config, stage: str, policy: DecoderSpec, reference: DecoderSpec, mesh: Mesh) -> Setting:
    runs_reference = stage == "po" and not config.reference.cached
    return Setting(
        config,
        stage,
        policy,
        reference if runs_reference else None,
        itemsize=compute_dtype(config, mesh).itemsize,
        shards=mesh.shape["fsdp"] * mesh.shape["tensor"],
        tensor=mesh.shape["tensor"],
    )


def with_choices(
    problem: Problem, config: Config, policy: DecoderSpec, lora: Lora | None, mesh: Mesh, choices: Choices
) -> Problem:
    """The same problem, compiled as was chosen.

    Args:
        policy: shape of the policy.
        lora: the adapters that are trained, or None.
    """
    tokens, vocabulary = choices.head.value
    return problem._replace(
        policy_graph=decoder_graph(policy, compute_dtype(config, mesh), remat=choices.remat.value, lora=lora),
        unroll=choices.unroll.value,
        adds=lora is None and adds_by_layer(choices.remat.value, unroll=choices.unroll.value),
        head_blocks=problem.head_blocks._replace(tokens=tokens, vocabulary=vocabulary),
    )
