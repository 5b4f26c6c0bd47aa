"""Our decoder and transformers' on the same tiny random weights and the same padded batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from helpers.tiny import gathered
from sparsepo_jax.core.tree import merge_module, split_module
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.wrappers import WRAPPERS
from sparsepo_jax.ops.attention import Given

IDS = np.random.default_rng(0).integers(0, 31, (2, 9))  # two rows without padding
VALID = np.ones((2, 9), bool)


def make_theirs(config, **settings):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = dict(config)
    auto = AutoModelForImageTextToText if config["model_type"] in WRAPPERS else AutoModelForCausalLM
    if config["model_type"] == "gemma2":  # its other kernels leave out the cap on scores
        settings |= {"attn_implementation": "eager"}
    model = auto.from_config(AutoConfig.for_model(config.pop("model_type"), **config), **settings)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases away from 1 and 0, so that each is seen
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):  # stored, though not trained
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model.eval()


def load_ours(directory):
    spec = spec_from_hf(read_config(directory))
    graph, abstract = split_module(nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0))))
    return spec, graph, gathered(spec, SafeTensors(directory), abstract)


def our_logits(graph, weights, ids_BS, valid_BS):
    """(logits, kept states) as transformers has them for a padded batch: attention is causal and does not see
    padding, and positions count real tokens."""
    positions_BS = np.maximum(np.cumsum(valid_BS, axis=1) - 1, 0)
    causal_SS = np.tril(np.ones((ids_BS.shape[1],) * 2, bool))
    attend_BSS = causal_SS & valid_BS[:, None, :]
    return run_decoder(graph, weights, ids_BS, positions_BS, attend_BSS)


@functools.partial(jax.jit, static_argnums=0)
def run_decoder(graph, weights, ids_BS, positions_BS, attend_BSS):
    model = merge_module(graph, weights)
    states_BSD, kept = model(
        ids_BS, positions_BS, Given(attend_BSS, positions_BS, positions_BS), tap=keep_states
    )
    return model.logits(states_BSD), kept


def keep_states(name, x):
    return x if name in ("embed", "block_out", "final_norm") else None


def our_states(kept):
    """In transformers' order: the embedding, after each block but the last, after the final norm."""
    return [kept["embed"], *kept["block_out"][:-1], kept["final_norm"]]


def bfloat16_errors(config, directory):
    """(ours, transformers') root mean square error of bfloat16 logits against float32, on the same rounded
    weights. Of mixtures the median over tokens: at a near-tie, rounding sends a token to another expert, and
    few such tokens would decide."""
    model = make_theirs(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    spec, _, weights = load_ours(directory)
    graph, _ = split_module(Decoder(spec, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    ids_BS, valid_BS = np.random.default_rng(2).integers(0, 31, (16, 12)), np.ones((16, 12), bool)
    theirs = their_outputs(model, ids_BS, valid_BS).logits.float().numpy()
    exact = their_outputs(model.float(), ids_BS, valid_BS).logits.numpy()
    ours = np.asarray(our_logits(graph, weights, ids_BS, valid_BS)[0])
    return tuple(
        _error(logits_BSV - exact, by_token=spec.mixture is not None) for logits_BSV in (ours, theirs)
    )


def _error(x_BSV, *, by_token) -> float:
    squares_BS = np.mean(np.square(x_BSV), axis=-1)
    return float(np.sqrt(np.median(squares_BS) if by_token else np.mean(squares_BS)))


def their_outputs(model, ids_BS, valid_BS):
    positions_BS = np.maximum(np.cumsum(valid_BS, axis=1) - 1, 0)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids_BS),
            attention_mask=torch.tensor(valid_BS.astype(np.int64)),
            position_ids=torch.tensor(positions_BS),
            output_hidden_states=True,
        )


def their_greedy_tokens(model, batch, count):
    """What transformers' model answers to a batch of prompts: so many of the likeliest tokens, and no end."""
    written = model.generate(
        input_ids=torch.tensor(batch.prompt_BS[0], dtype=torch.long),
        attention_mask=torch.tensor(batch.valid_BS[0].astype(np.int64)),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
    )
    return written[:, batch.prompt_BS.shape[-1] :].numpy()
