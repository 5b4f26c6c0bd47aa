"""Sections about models: the policy, the reference, the tokenizer and the export."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sparsepo_jax.config.paths import PathText
from sparsepo_jax.config.schema.base import ByKind, IsNumber, Json, Positive, Section


class Policy(Section):
    path: PathText | None = None
    """A Hugging Face directory or Hub id to start from (config.json and safetensors)."""
    config: Json | None = None
    """The content of a config.json, inline: a model of this shape is made from scratch. `vocab_size` may be
    left out and is then the tokenizer's. Together with `path`, it is the shape that the checkpoint must have,
    so that --check knows the shape without the checkpoint."""
    adapter: PathText | None = None
    """A LoRA adapter as PEFT saves it (a directory or Hub id), put onto `path`. It is merged into the
    weights, except under po.lora without an sft before it: then po goes on training this adapter, and rank,
    alpha, rslora and targets are the adapter's."""


class Reference(Section):
    path: PathText | None = None
    """A Hugging Face directory or Hub id. null: the policy as it was when po began, its adapter included.
    Under po.lora only policy.path itself may be named: the base without policy.adapter."""
    adapter: PathText | None = None
    """A LoRA adapter as PEFT saves it, put onto `path`, or onto policy.path where `path` is null."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which the frozen reference's matrices are held. auto: bfloat16 where activations or
    compute.weights are, else float32, so that a reference that equals the policy computes what it computes.
    Under po.lora the reference is held as po.lora.base says."""
    cached: bool = False
    """Compute the reference's log-probs of the training tokens (and masks from activations) once, keep them
    on disk, and train without running the reference. Only for objectives without a KL term and without
    learned masks; the training metrics then lack the KL."""
    cache_dir: PathText | None = None
    """Where the cached log-probs are kept. null: sparsepo_jax in the user's cache directory."""


class AutoTokenizer(Section):
    kind: Literal["auto"] = "auto"
    """The tokenizer that lies beside `policy.path`. If there is none, the data must be tokenised already."""


class PretrainedTokenizer(Section):
    kind: Literal["pretrained"]
    """A tokenizer of its own."""
    path: PathText
    """A directory or Hub id with a Hugging Face tokenizer."""


class ByteTokenizer(Section):
    kind: Literal["bytes"]
    """One token a byte (256), and one for the beginning and end of text."""


class BpeTokenizer(Section):
    kind: Literal["bpe"]
    """A byte-level BPE, learned from the text of data.sft, or of data.train where there is no data.sft."""
    vocab_size: Annotated[int, Field(ge=258, lt=2**31), IsNumber] = 8192
    """Entries, the special token included. Byte-level, so no text is out of vocabulary."""
    max_rows: Positive | None = None
    """Learn from the first so many rows only, to save time. null: from all."""


class ReviewsTokenizer(Section):
    kind: Literal["reviews"]
    """One token a word of the grammar behind the built-in `reviews`."""


Tokenizer = Annotated[
    AutoTokenizer | PretrainedTokenizer | ByteTokenizer | BpeTokenizer | ReviewsTokenizer, ByKind("auto")
]


def _repository(name: str) -> str:
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return name
    raise ValueError(f"expected owner/name, got {name!r:.60}")


class Export(Section):
    path: PathText | None = None
    """Where the Hugging Face directory is written; not a directory that the run reads. null:
    output_dir/export."""
    merged: bool = True
    """Under po.lora: also write the complete model with the adapters merged. false: write only the
    subdirectory adapter/ (PEFT's format), and base/, the model that the adapters stand on, where that is not
    policy.path as it is (after sft)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the exported weights. auto: that of the weights in policy.path; float32 from scratch. In the
    16 bits that the weights came in they are rounded at random, so that small changes are kept; to the
    nearest number where the run itself computed so."""
    hub: Annotated[str, AfterValidator(_repository)] | None = None
    """owner/name of a repository on the Hugging Face Hub: when all stages are done, the export is pushed
    there with its model card. The token comes from the environment (HF_TOKEN, or `hf auth login`) and is
    tried out before the first stage. null: nothing leaves this machine."""
    hub_private: bool = True
    """Make the repository private. true refuses one that is there already and public."""
