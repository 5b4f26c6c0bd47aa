"""The section `compute`: devices, number types, memory and kernels.

Beside the types of numbers nothing here changes what is computed."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import Positive, Section
from sparsepo_jax.config.shown import shown

ExpertsChoice = Literal["auto", "blocks", "triton", "ragged", "dense"]
RematChoice = Literal["nothing", "norms", "all_but_products", "everything"]


def _size(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One line for what is neither a size nor auto, in place of one for each."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"expected a positive integer or auto, got {shown(value)}") from None


Size = Annotated[Positive | Literal["auto"], WrapValidator(_size)]


class Mesh(Section):
    data: Positive | None = None
    """Devices over which batches are cut. null (at most one axis): what the other axes leave."""
    fsdp: Positive | None = 1
    """Devices over which batches, weights and optimizer state are cut."""
    tensor: Positive | None = 1
    """Devices over which each layer's matrices and the vocabulary are cut."""
    slices: Positive | None = None
    """Groups of devices with a fast network of their own (TPU slices): `data` is cut over them first, then
    `fsdp`. null: as the devices report it."""

    @model_validator(mode="after")
    def _one_free(self) -> Self:
        free = [name for name in ("data", "fsdp", "tensor") if getattr(self, name) is None]
        if len(free) > 1:
            raise ValueError(f"only one axis may be null (free), not {' and '.join(free)}")
        return self


class Head(Section):
    """Logits exist in blocks of tokens and vocabulary; changes memory and speed, not results."""

    tokens: Size = "auto"
    """Response tokens of a device at a time. auto: on GPU all of them, or as many as fit an eighth of the
    memory that weights and optimizer leave; else 512, measured on CPU."""
    vocabulary: Size = "auto"
    """Entries of the vocabulary of a device at a time. auto: as for tokens; else 2,048."""
    keep_logits: bool = False
    """Hold all logits from the forward to the backward pass instead of computing them again: a third fewer
    products in the head, for 8 bytes per response token and entry of the vocabulary."""


class Compute(Section):
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations. auto: float32 on CPU, bfloat16 elsewhere."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type in which the policy's matrices are held between steps. float32: with all digits, and each step
    rounds them to what it computes with. bfloat16: half the memory; updates are rounded at random, by seed
    and step, so that small ones are not lost. Norms, biases, adapters and mask nets are float32."""
    offload: Literal["nothing", "optimizer", "reference", "both"] = "nothing"
    """What lies in the host's memory between its uses: the optimizer's state, which comes to the device in
    the update; the matrices of the reference's blocks, which come layer by layer; or both. Less memory of the
    device, more time. The results are the same."""
    precision: Literal["auto", "float32", "tf32"] = "auto"
    """How float32 arrays are multiplied. float32: with all their digits. tf32: as fast as the device can with
    about three digits (NVIDIA's TF32; three bfloat16 passes on TPU); CPUs multiply in float32 all the same.
    auto: float32 where dtype is float32; where dtype is bfloat16, the device's own way for the few float32
    products that are left."""
    remat: Literal["auto", "nothing", "norms", "all_but_products", "everything"] = "auto"
    """What the backward pass computes again instead of keeping it from the forward pass. norms: norms and
    activation functions, at almost no cost. all_but_products: all that is no matrix product. everything:
    blocks from their inputs, a third more work. auto: the first of nothing, norms, all_but_products and
    everything that fits the device's memory; nothing where that is not known, as on CPU. true and false of
    earlier versions are everything and nothing."""
    unroll: Literal[False, True, "auto"] = "auto"
    """Whether a model's layers are written out one after another instead of looped over. A step on a GPU then
    copies less, and its program takes several times as long to compile. auto: on GPUs, where each program of
    a stage runs 10,000 steps or more. The results are the same."""
    layout: Literal["shared", "plain"] = "shared"
    """shared: the prompt runs once per pair and both responses attend to it; plain: once for each response.
    The results are the same."""
    attention: Literal["auto", "blocks", "triton", "xla", "cudnn", "splash"] = "auto"
    """The attention kernel. auto: blocks on CPU, splash on TPU (compiled only, never timed: Llama-3-8B's step
    on v5e-64 takes 4.9 GB of temporaries a chip, 6.0 by xla); on GPU triton in bfloat16 where it can, else
    xla. triton: NVIDIA GPU (Ampere or newer; run on an H200 alone), heads up to 256 dims; leaves out what
    nothing sees, and so beats cudnn. cudnn: the same GPUs, bfloat16, no capped scores, heads of a multiple of
    8 dims up to 128 (Hopper: 256). splash: TPU. The results are the same."""
    experts: ExpertsChoice = "auto"
    """What computes the products of experts, in a mixture of them. auto: blocks on CPU, ragged on TPU, on GPU
    triton: kernels of our own, compiled for it and never run there. blocks: one block of tokens after the
    other, with one expert each; runs everywhere. ragged: XLA's own, which multiplies all with all on CPU and
    GPU. dense: every expert on every token. The results are the same."""
    head: Head = Head()
    """Blocks in which logits are computed."""
    mesh: Mesh = Mesh()
    """How the devices are arranged: data x fsdp x tensor."""
    compile_cache: PathText | None = None
    """Directory of compiled programs. null: sparsepo_jax in the user's cache directory."""
    distributed: bool | None = None
    """Whether this process is one of several that make one run. null: if JAX_COORDINATOR_ADDRESS is set, in a
    Slurm step of several tasks, or if TPU_WORKER_HOSTNAMES names several. true: find the others as
    jax.distributed does (Cloud TPU, GKE, Slurm, MPI)."""

    @field_validator("remat", mode="before")
    @classmethod
    def _as_it_was(cls, remat: Any) -> Any:
        """Earlier versions knew true and false."""
        return {True: "everything", False: "nothing"}[remat] if isinstance(remat, bool) else remat
