"""Tokenizers: any Hugging Face one, and three made on the spot. Those have one special token, which begins and ends every text and pads."""

import os
from collections.abc import Iterable

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path

END = "<|endoftext|>"


def load_tokenizer(path: str):
    """The tokenizer of a directory or Hub id. UserError if there is none, or one without character offsets (they place the response's start)."""
    from transformers import AutoTokenizer

    if not os.path.exists(path) and is_mistyped_path(path):
        raise UserError(
            f"{path}: no such directory (expected one with a Hugging Face tokenizer, or a Hub id like owner/name)"
        )
    try:
        # Unless it is told, transformers asks on stdin whether to run the code of the directory.
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen types; all mean that it cannot be had
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{path}: no Hugging Face tokenizer to be had there ({first})") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{path}: expected a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}; convert it with transformers"
        )
    return tokenizer


def make_byte_tokenizer():
    """256 bytes and END: 257 entries, no text is out of vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    entries = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return _wrapped(tokenizer)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int):
    """A byte-level BPE as GPT-2's, learned from texts; at most vocab_size entries, END among them (fewer if the texts hold no more merges)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def make_word_tokenizer(words: Iterable[str]):
    """One token a word, words separated by spaces; a word that is not among them cannot be encoded (there is no unknown token)."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    entries = {word: n for n, word in enumerate([END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=entries, unk_token=END + END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END])
    return _wrapped(tokenizer)


def _wrapped(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )
