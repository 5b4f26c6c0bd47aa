"""What is left to `auto` in the section `compute`, decided from the device and the models. No JAX here.

Each choice comes with its reason in words, for `--check`, the run and the report.
"""

import math
from typing import Any, NamedTuple

from sparsepo_jax.config.schema.compute import Head, RematChoice
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.run.need import (
    ROOM,
    Load,
    Need,
    Setting,
    block_bytes,
    held_by,
    logit_bytes,
    most_of_head,
    needed_by,
)

# Tokens and entries of the vocabulary in a block of logits, as they were measured on CPU.
BLOCK = 512, 2048
GPU_SHARE = 0.9  # of a card's memory that a run lets JAX have; CUDA and its libraries need some beside it
# A block of logits may take this part of the memory that weights and optimizer leave, or as much as the
# backward pass of the decoder takes after it.
HEAD_SHARE = 8
# Measured on an H200, Pythia-1.4B, 8 pairs of 512+256: without a loop over layers a step takes 13 to 15 ms
# less, and its program 30 s more to compile, two side by side 80 s. So a run this long ends a minute earlier.
LONG = 10_000
LANES = 128  # blocks are multiples of this, which suits the devices' matrix units
POLICIES: tuple[RematChoice, ...] = (
    "nothing",
    "norms",
    "all_but_products",
    "everything",
)  # the one that keeps most first
_AGAIN = {
    "nothing": "nothing",
    "norms": "norms and activation functions",
    "all_but_products": "all but products",
    "everything": "everything",
}


class StepDevice(NamedTuple):
    """The device that a step runs on.

    Attributes:
        platform: cpu, gpu or tpu.
        bytes: of its memory that programs can have; None: not known.
        capability: CUDA's compute capability; None: not known, or no NVIDIA GPU.
    """

    platform: str
    bytes: int | None = None
    capability: tuple[int, int] | None = None


class Choice(NamedTuple):
    """A value of a setting.

    Attributes:
        value: as the config would say it.
        reason: why it is this one.
    """

    value: Any
    reason: str


class Choices(NamedTuple):
    """What a stage's step is compiled with.

    Attributes:
        attention: the kernel.
        head: (tokens, vocabulary) of a block of logits.
        remat: what the backward pass computes again.
        unroll: whether layers are written out instead of looped over.
        need: bytes of a device that the step then takes.
        fits: whether that is known not to be more than the device has.
    """

    attention: Choice
    head: Choice
    remat: Choice
    unroll: Choice
    need: Need
    fits: bool

    def words(self) -> dict[str, str]:
        """Each choice with its reason in a line, by name."""
        tokens, vocabulary = self.head.value
        return {
            "attention": f"{self.attention.value}: {self.attention.reason}",
            "head blocks": f"{tokens:,} tokens x {vocabulary:,}: {self.head.reason}",
            "recomputed": f"{_AGAIN[self.remat.value]}: {self.remat.reason}",
            "layers": f"{'written out' if self.unroll.value else 'in a loop'}: {self.unroll.reason}",
        }


def longest_load(pairs: int, lengths: tuple[int, int], *, responses: int, shared: bool) -> Load:
    """What a device runs if all of its pairs are as long as they may be.

    Args:
        pairs: of a device and micro-step; rows in sft.
        lengths: the longest prompt + response and the longest prompt, tokens.
        responses: of a pair, 2, or of a row, 1.
        shared: whether the prompt runs once for both responses.
    """
    longest, prompt = lengths
    run = longest - prompt - 1  # of a response: its last token is not run
    prompts = 1 if shared else responses
    sequence = prompt + (responses if shared else 1) * run
    return Load(
        pairs * (prompts * prompt + responses * run), pairs * responses * (longest - prompt), sequence
    )


def dtype_on(config: Config, platform: str) -> str:
    """The type of activations: by default float32 on CPUs, bfloat16 elsewhere."""
    if config.compute.dtype == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    return config.compute.dtype


def choose(setting: Setting, load: Load, device: StepDevice, calls: int = 0) -> Choices:
    """What a stage's step is compiled with.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        device: what it runs on.
        calls: how often a program of the stage runs; 0: unknown.
    """
    specs = (setting.policy,) if setting.reference is None else (setting.policy, setting.reference)
    attention = choose_attention(setting.config, specs, device)
    head = choose_head(setting, load, device, attention.value)
    unroll = choose_unroll(setting.config, device, calls)
    remat = choose_remat(setting, load, device, attention.value, head.value, unroll=unroll.value)
    need = needed_by(setting, load, remat.value, attention.value, head.value, unroll=unroll.value)
    fits = device.bytes is None or need.total <= ROOM * device.bytes
    return Choices(attention, head, remat, unroll, need, fits)


# ---------------------------------------------------------------- attention


def choose_attention(config: Config, specs: tuple[DecoderSpec, ...], device: StepDevice) -> Choice:
    """The kernel asked for, or the one that suits the device best.

    Args:
        specs: of all models that run.
    """
    asked, dtype = config.compute.attention, dtype_on(config, device.platform)
    if asked != "auto":
        return Choice(asked, "set")
    if device.platform == "cpu":
        return Choice("blocks", "on CPU, leaves out blocks that nothing sees")
    if device.platform == "tpu":
        return Choice("splash", "on TPU, leaves out blocks that nothing sees")
    problem = triton_problem(specs, device)
    if problem is not None:
        return Choice("xla", f"triton does not fit {problem}")
    if dtype != "bfloat16":
        return Choice("xla", f"triton is slow in {dtype}")
    return Choice("triton", f"{dtype} on GPU, leaves out blocks that nothing sees")


def triton_problem(specs: tuple[DecoderSpec, ...], device: StepDevice) -> str | None:
    """What our own kernels for GPUs do not fit; None if they can be used. See ops/triton_attention."""
    if (problem := old_gpu_problem(device)) is not None:
        return problem
    widest = max(block.head_dim for spec in specs for block, _ in spec.blocks())
    return f"heads of {widest} dims (up to 256)" if widest > 256 else None


def old_gpu_problem(device: StepDevice) -> str | None:
    """Why neither our kernels for GPUs nor cuDNN's attention fit a device; None if it is new enough."""
    capability = device.capability
    if capability is None or capability >= (8, 0):
        return None
    return f"a GPU of compute capability {'.'.join(map(str, capability))} (8.0 or more)"


def cudnn_problem(specs: tuple[DecoderSpec, ...], dtype: str, device: StepDevice) -> str | None:
    """What cuDNN's attention does not fit; None if it can be used.

    References:
        NVIDIA cuDNN, Attention, support matrix (forward and backward pass).
    """
    if any(spec.attn_softcap is not None for spec in specs):
        return "a model that caps its scores"
    if any(spec.sinks for spec in specs):
        return "a model with attention sinks"
    if dtype != "bfloat16":
        return f"a model that computes in {dtype}"
    if (problem := old_gpu_problem(device)) is not None:
        return problem
    is_hopper = device.capability is not None and device.capability[0] == 9
    most = 256 if is_hopper else 128
    for head_dim in (block.head_dim for spec in specs for block, _ in spec.blocks()):
        if head_dim % 8 or head_dim > most:
            limit = f"{most}" if is_hopper else f"{most}, 256 on Hopper"
            return f"heads of {head_dim} dims (a multiple of 8 up to {limit})"
    return None


# ---------------------------------------------------------------- blocks of logits


def choose_head(setting: Setting, load: Load, device: StepDevice, attention: str) -> Choice:
    """(tokens, vocabulary) of a block of logits: the largest that fits a share of the memory.

    The vocabulary is cut first: the head's gradient is written once then, and not once for each block of
    tokens.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        device: what it runs on.
        attention: the kernel.
    """
    head = setting.config.compute.head
    if head.tokens != "auto" and head.vocabulary != "auto":
        return Choice((head.tokens, head.vocabulary), "set")
    reason, budget = _head_budget(setting, load, device, attention)
    if budget is None:
        return Choice(_with_set(head, BLOCK), reason)
    most_tokens, most_vocabulary = most_of_head(setting, load)
    logits = max(1, budget // logit_bytes(setting))
    tokens = most_tokens if head.tokens == "auto" else min(head.tokens, most_tokens)
    if head.tokens == "auto" and tokens * BLOCK[1] > logits:
        tokens = max(BLOCK[0], logits // BLOCK[1] // LANES * LANES)
    vocabulary = most_vocabulary
    if tokens * vocabulary > logits:
        parts = math.ceil(vocabulary / max(BLOCK[1], logits // tokens))
        vocabulary = math.ceil(vocabulary / parts / LANES) * LANES
    block = _with_set(head, (tokens, vocabulary))
    size = block[0] * block[1] * logit_bytes(setting)
    one = "one block" if block == (most_tokens, most_vocabulary) else "blocks"
    return Choice(block, f"{one} of {size_text(size)}, {reason}")


def _with_set(head: Head, block: tuple[int, int]) -> tuple[int, int]:
    """The block, with what the config sets in its place."""
    tokens, vocabulary = head.tokens, head.vocabulary
    return (
        block[0] if tokens == "auto" else tokens,
        block[1] if vocabulary == "auto" else vocabulary,
    )


def _head_budget(setting: Setting, load: Load, device: StepDevice, attention: str) -> tuple[str, int | None]:
    """(the reason in words, bytes of a block of logits; None: as measured on CPU)."""
    if device.platform == "cpu":
        return "measured on CPU", None
    if device.platform == "tpu":
        return "as on CPU, since no TPU was measured", None
    if device.bytes is None:
        return "since the GPU does not tell its memory", 2**30
    left = max(0, round(ROOM * device.bytes) - sum(held_by(setting)))
    return f"of {size_text(left)} that weights and optimizer leave", max(
        left // HEAD_SHARE, block_bytes(setting, load, attention)
    )


# ---------------------------------------------------------------- what is computed again


def choose_remat(
    setting: Setting,
    load: Load,
    device: StepDevice,
    attention: str,
    head_block: tuple[int, int],
    *,
    unroll: bool = False,
) -> Choice:
    """What the backward pass computes again: as little as fits.

    Args:
        setting: the models and how they are cut.
        load: what a device runs at a time.
        device: what it runs on.
        attention: the kernel.
        head_block: tokens and entries of the vocabulary in a block of logits.
        unroll: whether layers are written out.
    """
    asked = setting.config.compute.remat

    def need(remat: RematChoice) -> int:
        return needed_by(setting, load, remat, attention, head_block, unroll=unroll).total

    if asked != "auto":
        return Choice(asked, f"set; about {size_text(need(asked))}")
    if device.bytes is None:
        return Choice("nothing", f"about {size_text(need('nothing'))}; the device's memory is not known")
    limit = round(ROOM * device.bytes)
    fitting = [remat for remat in POLICIES if need(remat) <= limit]
    if not fitting:
        even_so = f"even so about {size_text(need('everything'))} of {size_text(device.bytes)}"
        return Choice(
            "everything",
            f"{even_so}, more than fits: take more micro-steps (accumulation, which changes the loss of aot "
            "alone), more devices (compute.mesh.fsdp) or lora",
        )
    reason = f"about {size_text(need(fitting[0]))} of {size_text(device.bytes)}"
    if fitting[0] != "nothing":
        before = POLICIES[POLICIES.index(fitting[0]) - 1]
        reason += f", {size_text(need(before))} if only {_AGAIN[before]} were"
    return Choice(fitting[0], reason)


def choose_unroll(config: Config, device: StepDevice, calls: int) -> Choice:
    """Whether layers are written out: on GPUs, where a run is long enough to repay the longer compilation.

    Args:
        device: what the stage runs on.
        calls: how often a program of the stage runs; 0: unknown.
    """
    asked = config.compute.unroll
    if asked != "auto":
        return Choice(asked, "set")
    if device.platform != "gpu":
        return Choice(False, f"on {device.platform.upper()}")
    if calls < LONG:
        return Choice(False, f"a program compiles quicker so, for fewer than {LONG:,} steps")
    return Choice(True, f"{calls:,} steps of a program repay its longer compilation")


def size_text(size: int) -> str:
    """Bytes in GB or MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
