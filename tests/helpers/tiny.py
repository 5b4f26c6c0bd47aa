"""Tiny models and batches that many tests share."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sparsepo_jax.core.types import PairBatch
from sparsepo_jax.data.packing import Shape, pack, sizes_of
from sparsepo_jax.data.ragged import ragged
from sparsepo_jax.data.table import PER_ROW, TokenTable

GPT2 = {"model_type": "gpt2", "vocab_size": 31, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 31,
    "max_position_embeddings": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "rotary_pct": 0.5,
    "hidden_act": "gelu",
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 31,
    "max_position_embeddings": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
}
YARN = {  # all its fields
    "rope_type": "yarn",
    "rope_theta": 50.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "mscale": 2.0,
    "mscale_all_dim": 0.5,
    "truncate": False,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 50.0,
    "short_factor": [1.5, 3.0],
    "long_factor": [2.0, 5.0],
    "original_max_position_embeddings": 24,
}
GPTJ = {
    "model_type": "gptj",
    "vocab_size": 31,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "rotary_dim": 4,
}
GEMMA3 = LLAMA | {
    "model_type": "gemma3_text",
    "head_dim": 8,
    "sliding_window": 4,
    "query_pre_attn_scalar": 5,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    },
}
GEMMA2 = LLAMA | {
    "model_type": "gemma2",
    "head_dim": 8,
    "sliding_window": 4,
    "query_pre_attn_scalar": 5,
    "attn_logit_softcapping": 0.5,
    "final_logit_softcapping": 0.7,
}
GEMMA4 = LLAMA | {
    "model_type": "gemma4_text",
    "head_dim": 8,
    "global_head_dim": 12,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": 4,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 0.7,
    "num_hidden_layers": 5,
    "layer_types": [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
        "full_attention",
    ],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.5,
            "rope_theta": 5000.0,
        },
    },
}
QWEN3_5 = LLAMA | {
    "model_type": "qwen3_5_text",
    "head_dim": 8,
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
}
_SHARED = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 12,
}
QWEN3_5_MOE = QWEN3_5 | _SHARED | {"model_type": "qwen3_5_moe_text"}
QWEN3_NEXT = (
    QWEN3_5
    | _SHARED
    | {
        "model_type": "qwen3_next",
        "mlp_only_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    }
)
COHERE = LLAMA | {"model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 3.0}
QWEN3_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "norm_topk_prob": True,
}
GPT_OSS = LLAMA | {
    "model_type": "gpt_oss",
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": YARN | {"truncate": False},
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "swiglu_alpha": 1.3,
    "swiglu_limit": 0.2,
}
NEOX_SEQUENTIAL = NEOX | {"use_parallel_residual": False, "attention_bias": False}
CONFIGS = {
    "gpt2": GPT2,
    "gpt2, own head": GPT2 | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 24},
    "bigcode, one key/value head": GPT2 | {"model_type": "gpt_bigcode"},
    "bigcode, all heads": GPT2 | {"model_type": "gpt_bigcode", "multi_query": False},
    "gptj, part of the dims rotated": GPTJ,
    "neox": NEOX,
    "neox, sequential, no attention bias": NEOX_SEQUENTIAL,
    "neox, tied": NEOX | {"tie_word_embeddings": True, "rotary_pct": 1.0, "rotary_emb_base": 500},
    "llama": LLAMA,
    "llama 3": LLAMA
    | {
        "head_dim": 6,
        "attention_bias": True,
        "mlp_bias": True,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "llama, tied, linear": LLAMA
    | {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "llama, yarn": LLAMA | {"head_dim": 8, "rope_parameters": YARN},
    "llama, longrope": LLAMA | {"rope_parameters": LONGROPE},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 5},
    "qwen2": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 8},
    "qwen3, windows in upper layers": LLAMA
    | {
        "model_type": "qwen3",
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0},
    },
    "olmo2": LLAMA | {"model_type": "olmo2"},
    "smollm3, no positions in every second layer": LLAMA
    | {
        "model_type": "smollm3",
        "pad_token_id": 0,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
        "tie_word_embeddings": True,
    },
    "olmo3, windows, yarn without them": LLAMA
    | {
        "model_type": "olmo3",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 50.0,
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "attention_factor": 1.3,
            },
        },
    },
    "phi3": LLAMA | {"model_type": "phi3", "sliding_window": 6, "num_key_value_heads": 1, "pad_token_id": 0},
    "phi4 mini": LLAMA
    | {
        "model_type": "phi3",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 24,
        "rope_scaling": {"type": "longrope", "short_factor": [1.5, 3.0], "long_factor": [2.0, 5.0]},
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "granite": LLAMA
    | {
        "model_type": "granite",
        "attention_bias": True,
        "mlp_bias": True,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 0.3,
    },
    "granite 4, dense": LLAMA
    | {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["attention", "attention"],
        "position_embedding_type": "rope",
        "shared_intermediate_size": 24,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "logits_scaling": 0.3,
        "mamba_n_heads": 8,
        "tie_word_embeddings": True,
    },
    "ministral": LLAMA
    | {
        "model_type": "ministral",
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "ministral3, queries that grow": LLAMA
    | {
        "model_type": "ministral3",
        "head_dim": 8,
        "rope_parameters": YARN
        | {"llama_4_scaling_beta": 0.7, "truncate": True, "original_max_position_embeddings": 3},
    },
    "seed_oss": LLAMA | {"model_type": "seed_oss", "head_dim": 6, "attention_bias": True},
    "cohere, norms of queries and keys": COHERE | {"attention_bias": True, "use_qk_norm": True},
    "cohere2, no positions without a window": COHERE
    | {
        "model_type": "cohere2",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "arcee, squared relu": LLAMA | {"model_type": "arcee", "mlp_bias": True},
    "exaone4, no positions without a window": LLAMA
    | {
        "model_type": "exaone4",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "helium": LLAMA | {"model_type": "helium", "head_dim": 4, "mlp_bias": True},
    "ernie4_5": LLAMA | {"model_type": "ernie4_5", "head_dim": 6, "use_bias": True},
    "glm4": LLAMA | {"model_type": "glm4", "head_dim": 8, "pad_token_id": 0, "eos_token_id": [1]},
    "stablelm, parallel": LLAMA
    | {
        "model_type": "stablelm",
        "head_dim": 4,
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": True,
        "use_parallel_residual": True,
        "partial_rotary_factor": 0.5,
    },
    "starcoder2": LLAMA | {"model_type": "starcoder2", "norm_epsilon": 1e-5, "sliding_window": 5},
    "nemotron": LLAMA | {"model_type": "nemotron", "norm_eps": 1e-5},
    "qwen3 moe": QWEN3_MOE,
    "qwen3 moe, shares of all experts": QWEN3_MOE | {"norm_topk_prob": False, "num_experts_per_tok": 3},
    "qwen3 moe, a layer without experts": QWEN3_MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]},
    "gpt-oss": GPT_OSS,
    "mixtral": LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": LLAMA | {"model_type": "olmoe", "num_experts": 5, "num_experts_per_tok": 2},
    "gemma": LLAMA | {"model_type": "gemma", "head_dim": 8, "hidden_act": "gelu"},
    "gemma2, softcaps": GEMMA2,
    "gemma3, local and global layers": GEMMA3,
    "qwen3.5": QWEN3_5,
    "qwen3.5 moe": QWEN3_5_MOE,
    "qwen3 next": QWEN3_NEXT,
    "gemma4, two shapes": GEMMA4,
    "gemma4, global layers alone": GEMMA4 | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
}


def random_rows(
    pairs: int = 4, prompt: int = 5, tokens: int = 6, vocab: int = 31, seed: int = 0
) -> list[tuple[list[int], ...]]:
    """(prompt, chosen, rejected) ids of various lengths; the first pair has the longest of each."""
    rng = np.random.default_rng(seed)
    prompt_lengths = rng.integers(1, prompt + 1, pairs)
    lengths = rng.integers(1, tokens + 1, (pairs, 2))
    prompt_lengths[0], lengths[0] = prompt, tokens

    def ids(count):
        return rng.integers(0, vocab, count).tolist()

    return [
        (ids(n), ids(chosen), ids(rejected))
        for n, (chosen, rejected) in zip(prompt_lengths, lengths, strict=True)
    ]


def packed(
    pairs,
    *,
    rows: int = 1,
    shared: bool = True,
    spare: int = 0,
    response_length: int | None = None,
    before=None,
) -> PairBatch:
    """Pairs (prompt ids, ids of each response) in order, in `rows` rows of tokens.

    spare: tokens more than are needed, of a row, of the responses and of the longest sequence.
    before: for each token of all responses, in order, how many tokens 0 of another turn stand before it.
    """
    prompts = [np.array(prompt, np.int32) for prompt, *_ in pairs]
    responses = [np.array(response, np.int32) for _, *responses in pairs for response in responses]
    P = len(pairs[0]) - 1
    table = TokenTable(
        ragged(prompts, np.int32),
        ragged(responses, np.int32),
        np.arange(len(pairs)),
        np.zeros(len(pairs), bool),
        np.zeros((len(pairs), P), bool),
        np.ones(len(pairs), np.float32),
        ("pairs",),
        np.zeros(len(pairs), np.int32),
        np.arange(len(pairs)),
    )
    if before is not None:
        counts = [sum(x) for x in np.split(np.array(before), table.responses.starts[1:-1])]
        table = table.with_columns(
            all_before=np.array(before, np.int32), between=ragged([[0] * n for n in counts], np.int32)
        )
    sizes = sizes_of(
        table.prompt_lengths_N,
        table.response_lengths_NP,
        shared=shared,
        laid_lengths_NP=table.laid_lengths_NP,
    )
    most = [x.reshape(rows, -1).sum(axis=1).max() for x in sizes[:2]] + [sizes.longest_N.max()]
    longest = int(table.response_lengths_NP.max()) if response_length is None else response_length
    shape = Shape(*(int(x) + spare for x in most))
    batch = pack(table, np.arange(len(pairs)), shape, longest, rows=rows, shared=shared)
    return jax.tree.map(jnp.asarray, batch)


def random_batch(
    pairs: int = 4, prompt: int = 5, tokens: int = 6, vocab: int = 31, seed: int = 0, **packing
) -> PairBatch:
    return packed(random_rows(pairs, prompt, tokens, vocab, seed), **packing)


def row_table(rows):
    """A TokenTable of rows of one response: (prompt ids, response ids, label)."""
    table = pair_table([(prompt, response, [*response, 0]) for prompt, response, _ in rows])
    return TokenTable(
        **{
            name: getattr(table, name) for name in (*PER_ROW, "prompts", "files") if name != "response_cut_NP"
        },
        responses=ragged([response for _, response, _ in rows], np.int32),
        response_cut_NP=np.zeros((len(rows), 1), bool),
        label_N=np.array([label for *_, label in rows]),
    )


def pair_table(pairs, weights=None):
    """A TokenTable of (prompt ids, chosen ids, rejected ids).

    weights: for each pair, those of the chosen tokens and those of the rejected ones.
    """
    from sparsepo_jax.data.load import load_table
    from sparsepo_jax.data.sources import GeneratedRows

    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in pairs]
    if weights is not None:
        for row, (chosen, rejected) in zip(rows, weights, strict=True):
            row |= {"chosen_weights": chosen, "rejected_weights": rejected}
    with tempfile.TemporaryDirectory() as cache:
        return load_table(
            [GeneratedRows("pairs", rows, 1.0)],
            kind="pairs",
            tokenizer=None,
            vocab_size=None,
            max_length=64,
            max_prompt_length=32,
            separator="",
            template="none",
            template_arguments={},
            add_bos=None,
            add_eos=True,
            on_bad_row="error",
            bad_rows_path=Path(cache) / "bad.jsonl",
            cache_dir=cache,
        )


class InMemory:
    """Tensors that are already read."""

    def __init__(self, tensors):
        self.tensors = tensors

    def shapes(self):
        return {name: x.shape for name, x in self.tensors.items()}

    def read(self, names):
        return ((name, np.asarray(x)) for name, x in self.tensors.items() if name in names)


def gathered(spec, tensors, like):
    """Our weights, on one device; like: arrays of their shapes by path."""
    import jax.numpy as jnp

    from sparsepo_jax.models.weights import stream_hf

    tree = {path: np.full(x.shape, np.nan, np.float32) for path, x in like.items()}
    for path, layer, value in stream_hf(spec, tensors, {path: x.shape for path, x in like.items()}, "here"):
        tree[path][... if layer is None else layer] = value
    return {path: jnp.asarray(x) for path, x in tree.items()}
