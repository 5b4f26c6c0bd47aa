"""The families of decoders that we know: one row each. No JAX here.

A row says how a config.json is read, which tensor is which array, and what transformers calls the model.
Which fields a config may have stands in field_tables.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.field_values import Config
from sparsepo_jax.models.gpt_readers import read_gpt2, read_gpt_bigcode, read_gpt_neox, read_gptj
from sparsepo_jax.models.gpt_rules import gpt2_rules, gpt_neox_rules, gptj_rules
from sparsepo_jax.models.llama_readers import (
    read_gemma2,
    read_gemma3,
    read_llama,
    read_mistral,
    read_olmo2,
    read_qwen2,
    read_qwen3,
)
from sparsepo_jax.models.llama_rules import llama_rules
from sparsepo_jax.models.weight_rules import Rule
from sparsepo_jax.models.wrappers import ALONE, placed


class Family(NamedTuple):
    """What we know of a family.

    Attributes:
        read: turns the fields of a config.json into the decoder's shape.
        rules: which tensor is which array, in the order in which tensors are written.
        architecture: the class in transformers.
    """

    read: Callable[[Config], DecoderSpec]
    rules: Callable[[DecoderSpec], list[Rule]]
    architecture: str


# By the `model_type` of a config.json.
FAMILIES: dict[str, Family] = {
    "gpt2": Family(read_gpt2, gpt2_rules, "GPT2LMHeadModel"),
    "gpt_bigcode": Family(read_gpt_bigcode, gpt2_rules, "GPTBigCodeForCausalLM"),
    "gptj": Family(read_gptj, gptj_rules, "GPTJForCausalLM"),
    "gpt_neox": Family(read_gpt_neox, gpt_neox_rules, "GPTNeoXForCausalLM"),
    "llama": Family(read_llama, llama_rules, "LlamaForCausalLM"),
    "mistral": Family(read_mistral, llama_rules, "MistralForCausalLM"),
    "qwen2": Family(read_qwen2, llama_rules, "Qwen2ForCausalLM"),
    "qwen3": Family(read_qwen3, llama_rules, "Qwen3ForCausalLM"),
    "olmo2": Family(read_olmo2, llama_rules, "Olmo2ForCausalLM"),
    "gemma2": Family(read_gemma2, llama_rules, "Gemma2ForCausalLM"),
    "gemma3_text": Family(read_gemma3, llama_rules, "Gemma3ForCausalLM"),
}


def family_rules(spec: DecoderSpec) -> list[Rule]:
    """The weight rules of a decoder, in the order in which tensors are written.

    Args:
        spec: the decoder; the tensors of a wrapped one have the names of transformers' modules.
    """
    rules = FAMILIES[spec.family].rules(spec)
    if spec.wrapping is None:
        return rules
    trunk = spec.wrapping.row.trunks[0]
    return [replace(rule, theirs=placed(rule.theirs, ALONE, trunk)) for rule in rules]


def architecture(spec: DecoderSpec) -> str:
    """The class in transformers of the model that a decoder's checkpoint holds.

    Args:
        spec: the decoder.
    """
    if spec.wrapping is not None:
        return spec.wrapping.row.architecture
    return FAMILIES[spec.family].architecture
