"""The tables of models in docs/guides/models.md, made from the package's own tables.

    python docs/models.py             write them
    python docs/models.py --check     only say whether they are as they should be; 1 if not

A test runs the second.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sparsepo_jax.models.families import FAMILIES
from sparsepo_jax.models.text_defaults import TEXT_DEFAULTS
from sparsepo_jax.models.wrappers import REFUSED, WRAPPERS

PAGE = Path(__file__).parent / "guides" / "models.md"
# Well-known models by `model_type`.
MODELS = {
    "gpt2": "GPT-2, DistilGPT-2",
    "gpt_bigcode": "StarCoderBase",
    "gptj": "GPT-J",
    "gpt_neox": "Pythia, GPT-NeoX-20B",
    "llama": "Llama 2 and 3, SmolLM 1 and 2, Vicuna",
    "mistral": "Mistral 7B, Mistral Small 3.0",
    "qwen2": "Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen",
    "qwen3": "Qwen3",
    "olmo2": "OLMo 2",
    "gpt_oss": "gpt-oss 20B and 120B",
    "qwen3_moe": "Qwen3-30B-A3B, Qwen3-235B-A22B",
    "mixtral": "Mixtral",
    "olmoe": "OLMoE",
    "gemma": "Gemma 2B and 7B of 2024, CodeGemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 270M and 1B",
    "gemma4_text": "the text model of Gemma 4 31B",
    "qwen3_5_text": "Qwen3.5, dense, its text model alone",
    "qwen3_5_moe_text": "Qwen3.5's mixtures of experts, their text model alone",
    "qwen3_next": "Qwen3-Next-80B-A3B",
    "smollm3": "SmolLM 3",
    "olmo3": "OLMo 3",
    "phi3": "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    "granite": "Granite 3",
    "granitemoehybrid": "Granite 4 without experts and Mamba (350M, 1B, Micro)",
    "ministral": "Ministral 8B of 2024",
    "ministral3": "Ministral 3, its text model alone",
    "seed_oss": "Seed-OSS",
    "cohere": "Command R and R+ of 2024",
    "cohere2": "Command R7B, Command A",
    "arcee": "Arcee AFM",
    "exaone4": "EXAONE 4",
    "helium": "Helium",
    "ernie4_5": "ERNIE 4.5, dense",
    "glm4": "GLM-4-0414",
    "nemotron": "Nemotron 4, Minitron",
    "stablelm": "StableLM",
    "starcoder2": "StarCoder 2",
    "gemma3": "Gemma 3 4B, 12B, 27B",
    "gemma4": "Gemma 4 31B",
    "mistral3": "Mistral Small 3.1 and 3.2, Ministral 3",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_5": "Qwen3.5 and Qwen3.6, dense (0.8B to 27B)",
    "qwen3_5_moe": "Qwen3.5-35B-A3B and larger ones",
    "qwen3_vl_moe": "Qwen3-VL-30B-A3B and 235B-A22B",
    "llava": "LLaVA 1.5, LLaVA-Interleave",
    "llava_next": "LLaVA 1.6",
    "llava_onevision": "LLaVA-OneVision",
    "aya_vision": "Aya Vision",
    "cohere2_vision": "Command A Vision",
    "idefics3": "Idefics3, SmolVLM 1",
    "smolvlm": "SmolVLM 2",
    "internvl": "InternVL 3 (the checkpoints whose names end in -hf)",
}


def families_table() -> str:
    rows = ["| models | `model_type` | class in transformers |", "|---|---|---|"]
    rows += [f"| {MODELS[name]} | `{name}` | `{row.architecture}` |" for name, row in FAMILIES.items()]
    return "\n".join(rows)


def wrappers_table() -> str:
    """Those around a text model that we have."""
    rows = ["| models | `model_type` | class in transformers |", "|---|---|---|"]
    known = {name: row for name, row in WRAPPERS.items() if row.text in TEXT_DEFAULTS}
    rows += [f"| {MODELS[name]} | `{name}` | `{row.architecture}` |" for name, row in known.items()]
    return "\n".join(rows)


def refused_list() -> str:
    return "\n".join(f"* `{name}`: {why}." for name, why in REFUSED.items())


BLOCKS = {"families": families_table, "wrappers": wrappers_table, "refused": refused_list}


def rendered(text: str, page: Path = PAGE, blocks: Mapping[str, Callable[[], str]] = BLOCKS) -> str:
    """The page with its tables. Raises ValueError if a table has no place there."""
    for name, make in blocks.items():
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(\n<!-- end of {name} -->)"
        content = f"\n{make()}\n"
        text, count = re.subn(
            pattern, lambda match, content=content: match[1] + content + match[2], text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"{page.name}: expected one block <!-- {name}: ... -->, found {count}")
    return text


def main(page: Path = PAGE, blocks: Mapping[str, Callable[[], str]] = BLOCKS) -> int:
    text = page.read_text()
    if rendered(text, page, blocks) == text:
        return 0
    if "--check" in sys.argv:
        print(f"{page.name}: its tables differ from those of the package; run: python {sys.argv[0]}")
        return 1
    page.write_text(rendered(text, page, blocks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
