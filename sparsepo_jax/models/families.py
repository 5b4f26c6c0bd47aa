"""The families of decoders that we know: one row each. No JAX here.

A row says how a config.json is read, which tensor is which array, and what transformers calls the model.
Which fields a config may have stands in field_tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.field_values import FamilyFields
from sparsepo_jax.models.gemma4_reader import read_gemma4
from sparsepo_jax.models.gpt_readers import read_gpt2, read_gpt_bigcode, read_gpt_neox, read_gptj
from sparsepo_jax.models.gpt_rules import gpt2_rules, gpt_neox_rules, gptj_rules
from sparsepo_jax.models.kin_readers import (
    read_arcee,
    read_cohere,
    read_cohere2,
    read_ernie4_5,
    read_exaone4,
    read_glm4,
    read_granite,
    read_granitemoehybrid,
    read_helium,
    read_ministral,
    read_ministral3,
    read_nemotron,
    read_olmo3,
    read_phi3,
    read_seed_oss,
    read_smollm3,
    read_stablelm,
    read_starcoder2,
)
from sparsepo_jax.models.llama_readers import (
    read_gemma,
    read_gemma2,
    read_gemma3,
    read_llama,
    read_mistral,
    read_olmo2,
    read_qwen2,
    read_qwen3,
)
from sparsepo_jax.models.llama_rules import (
    glm4_rules,
    gpt_oss_rules,
    granite_hybrid_rules,
    llama_rules,
    neighbours_rules,
    phi3_rules,
    qwen3_5_rules,
    qwen3_next_rules,
    starcoder2_rules,
)
from sparsepo_jax.models.mixture_readers import read_gpt_oss, read_mixtral, read_olmoe, read_qwen3_moe
from sparsepo_jax.models.mixture_rules import stacked_expert_rules
from sparsepo_jax.models.qwen3_5_reader import read_qwen3_5, read_qwen3_5_moe, read_qwen3_next
from sparsepo_jax.models.weight_rules import Rule
from sparsepo_jax.models.wrappers import ALONE, placed

# Families of whose adapters PEFT makes no stacks, though their experts are stacks in transformers.
_STACKED_FOR_PEFT = {"gpt_oss", "qwen3_5_moe_text"}


class Family(NamedTuple):
    """What we know of a family.

    Attributes:
        read: turns the fields of a config.json into the decoder's shape.
        rules: which tensor is which array, in the order in which tensors are written.
        architecture: the class in transformers.
    """

    read: Callable[[FamilyFields], DecoderSpec]
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
    "qwen3_moe": Family(read_qwen3_moe, llama_rules, "Qwen3MoeForCausalLM"),
    "mixtral": Family(read_mixtral, llama_rules, "MixtralForCausalLM"),
    "olmoe": Family(read_olmoe, llama_rules, "OlmoeForCausalLM"),
    "gpt_oss": Family(read_gpt_oss, gpt_oss_rules, "GptOssForCausalLM"),
    "gemma": Family(read_gemma, llama_rules, "GemmaForCausalLM"),
    "gemma2": Family(read_gemma2, llama_rules, "Gemma2ForCausalLM"),
    "gemma3_text": Family(read_gemma3, llama_rules, "Gemma3ForCausalLM"),
    "gemma4_text": Family(read_gemma4, llama_rules, "Gemma4ForCausalLM"),
    "qwen3_5_text": Family(read_qwen3_5, qwen3_5_rules, "Qwen3_5ForCausalLM"),
    "qwen3_5_moe_text": Family(read_qwen3_5_moe, qwen3_5_rules, "Qwen3_5MoeForCausalLM"),
    "qwen3_next": Family(read_qwen3_next, qwen3_next_rules, "Qwen3NextForCausalLM"),
    "smollm3": Family(read_smollm3, llama_rules, "SmolLM3ForCausalLM"),
    "olmo3": Family(read_olmo3, llama_rules, "Olmo3ForCausalLM"),
    "phi3": Family(read_phi3, phi3_rules, "Phi3ForCausalLM"),
    "granite": Family(read_granite, llama_rules, "GraniteForCausalLM"),
    "granitemoehybrid": Family(read_granitemoehybrid, granite_hybrid_rules, "GraniteMoeHybridForCausalLM"),
    "ministral": Family(read_ministral, llama_rules, "MinistralForCausalLM"),
    "ministral3": Family(read_ministral3, llama_rules, "Ministral3ForCausalLM"),
    "seed_oss": Family(read_seed_oss, llama_rules, "SeedOssForCausalLM"),
    "cohere": Family(read_cohere, neighbours_rules, "CohereForCausalLM"),
    "cohere2": Family(read_cohere2, neighbours_rules, "Cohere2ForCausalLM"),
    "arcee": Family(read_arcee, llama_rules, "ArceeForCausalLM"),
    "exaone4": Family(read_exaone4, llama_rules, "Exaone4ForCausalLM"),
    "helium": Family(read_helium, neighbours_rules, "HeliumForCausalLM"),
    "ernie4_5": Family(read_ernie4_5, neighbours_rules, "Ernie4_5ForCausalLM"),
    "glm4": Family(read_glm4, glm4_rules, "Glm4ForCausalLM"),
    "nemotron": Family(read_nemotron, llama_rules, "NemotronForCausalLM"),
    "stablelm": Family(read_stablelm, llama_rules, "StableLmForCausalLM"),
    "starcoder2": Family(read_starcoder2, starcoder2_rules, "Starcoder2ForCausalLM"),
}


def family_rules(spec: DecoderSpec) -> list[Rule]:
    """The weight rules of a decoder, in the order in which tensors are written.

    Args:
        spec: the decoder; the tensors of a wrapped one have the names of transformers' modules.
    """
    rules = _rules_of_kinds(spec) if spec.kind_of_layer else FAMILIES[spec.family].rules(spec)
    return [_within(spec, rule) for rule in rules]


def _within(spec: DecoderSpec, rule: Rule) -> Rule:
    """The rule where the text model of a wrapper lies."""
    if spec.wrapping is None:
        return rule
    return replace(rule, theirs=placed(rule.theirs, ALONE, spec.wrapping.row.trunks[0]))


def _rules_of_kinds(spec: DecoderSpec) -> list[Rule]:
    """Those of tensors outside the layers, and those of the layers of each kind."""
    rules_of = FAMILIES[spec.family].rules
    rules = [rule for rule in rules_of(spec) if not rule.per_layer]
    for kind in sorted(set(spec.kind_of_layer)):
        layers = tuple(layer for layer, other in enumerate(spec.kind_of_layer) if other == kind)
        of_kind = rules_of(spec.of_kind(kind))
        rules += [replace(rule, layers=layers) for rule in of_kind if rule.per_layer]
    return rules


def architecture(spec: DecoderSpec) -> str:
    """The class in transformers of the model that a decoder's checkpoint holds.

    Args:
        spec: the decoder.
    """
    if spec.wrapping is not None:
        return spec.wrapping.row.architecture
    return FAMILIES[spec.family].architecture


def stored_rules(spec: DecoderSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """The weight rules of a decoder that fit a checkpoint.

    Experts are stored as `family_rules` has them, or in stacks as transformers 5 holds them in memory.

    Args:
        spec: the decoder.
        shapes: of the checkpoint's tensors, by name.
    """
    rules = family_rules(spec)
    if spec.mixture is None or spec.mixture.bias:  # gpt-oss has one form
        return rules
    in_memory = (spec.mixture.experts, 2 * spec.mixture.width, spec.width)
    stacks = [shape for name, shape in shapes.items() if name.endswith(".mlp.experts.gate_up_proj")]
    if not stacks or (any(rule.stacked for rule in rules) and stacks[0] != in_memory):
        return rules
    others = [rule for rule in rules if not rule.ours[0].startswith("blocks.experts.")]
    return [*others, *_rules_of_stacks(spec, turned=True)]


def _rules_of_stacks(spec: DecoderSpec, *, turned: bool) -> list[Rule]:
    layers = spec.layers_with_experts() if spec.kind_of_layer else None
    in_stacks = (replace(rule, layers=layers) for rule in stacked_expert_rules(turned=turned))
    return [_within(spec, rule) for rule in in_stacks]


def adapted_rules(spec: DecoderSpec) -> list[Rule]:
    """The weight rules of a decoder, and those of stacks of experts that it has in memory alone.

    Args:
        spec: the decoder.
    """
    rules = family_rules(spec)
    if spec.mixture is None or spec.mixture.bias:
        return rules
    others = [rule for rule in rules if not rule.stacked]
    return [*others, *(rule for rule in _rules_of_stacks(spec, turned=False) if rule.stacked)]


def peft_rules(spec: DecoderSpec) -> list[Rule]:
    """The weight rules of a decoder as PEFT adapts it: experts one by one where it stacks them itself.

    Args:
        spec: the decoder.
    """
    if spec.wrapping is None and spec.family not in _STACKED_FOR_PEFT:
        return family_rules(spec)
    return [rule for rule in adapted_rules(spec) if not rule.per_expert]
