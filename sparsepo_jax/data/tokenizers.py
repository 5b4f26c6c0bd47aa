"""Tokenizers: any of Hugging Face, and three kinds that are made on the spot.

Those that are made here have one special token, END, which begins and ends every text and pads.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.paths import is_mistyped_path
from sparsepo_jax.core.placeholders import first_placeholder
from sparsepo_jax.data.rows import one_line

END = "<|endoftext|>"
# Files that may hold the vocabulary of a tokenizer.
_VOCABULARIES = ("tokenizer.json", "tokenizer.*.json", "*.model*", "vocab.*", "*.tiktoken", "tekken.json")
_NO_VOCABULARY = (
    "the tokenizer's vocabulary is missing, as after a download that was not finished: fetch tokenizer.json "
    "(or tokenizer.model, or vocab.json and merges.txt) to it, or, if the data are token ids, remove "
    "tokenizer_config.json"
)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a directory or Hub id, as transformers loads it.

    Args:
        path: of the directory, or the Hub id.

    Raises:
        UserError: there is none, or it is not a fast one. (Only fast ones tell which characters a token
            covers, and that is how the start of a response is located.)
    """
    from transformers import AutoTokenizer

    if not os.path.exists(path) and is_mistyped_path(path):
        raise UserError(
            f"{path}: no such directory "
            "(expected one with a Hugging Face tokenizer, or a Hub id like owner/name)"
        )
    problem = files_problem(path)
    if os.path.isfile(path):
        raise UserError(f"{path}: {problem}")
    try:
        # Without this argument, transformers asks on stdin whether to run code from the directory.
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen types, all for a tokenizer that cannot be loaded
        directory = Path(path)
        known = first_placeholder(directory) or _missing_package(directory) or problem
        reason = known or (f"its files lack {error}" if isinstance(error, KeyError) else one_line(error))
        if "trust_remote_code" in str(error):
            reason = (
                "its code, which auto_map in tokenizer_config.json names, does not run here: beside a "
                "tokenizer.json, take auto_map and tokenizer_class out of that file; else set tokenizer.path "
                "to a directory with one"
            )
        raise UserError(f"{path}: no Hugging Face tokenizer to be had there ({reason})") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{path}: expected a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}; "
            "convert it with transformers"
        )
    _refuse_empty(tokenizer, path)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_template(path)
    _check_template(tokenizer.chat_template, path)
    return tokenizer


def _refuse_empty(tokenizer: Any, path: str) -> None:
    """UserError for a tokenizer without vocabulary, which transformers makes of tokenizer_config.json alone.

    It would leave out all text but its special tokens.
    """
    if (Path(path) / "tokenizer.json").exists():
        return
    if tokenizer.added_tokens_decoder.keys() >= set(tokenizer.get_vocab().values()):
        raise UserError(f"{path}: {_NO_VOCABULARY}")


def files_problem(path: str) -> str | None:
    """What to say where no file could be a tokenizer's vocabulary; None: one could, or the path is a Hub id.

    Args:
        path: of the tokenizer's directory, or the Hub id.
    """
    if os.path.isfile(path):
        return f"a file; expected the directory of a tokenizer, so {os.path.dirname(path) or '.'}"
    has_one = any(any(Path(path).glob(pattern)) for pattern in _VOCABULARIES)
    return None if has_one or not os.path.isdir(path) else _NO_VOCABULARY


def _check_template(template: Any, path: str) -> None:
    """UserError for a chat template of a kind that transformers could not use either."""
    texts = template.values() if isinstance(template, dict) else [template]
    if template is not None and not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"{path}: expected a chat template that is text, or several by name, got {str(template)[:60]}"
        )


def _missing_package(directory: Path) -> str | None:
    """Which packages a tokenizer of SentencePiece lacks here: transformers asks for another one.

    Args:
        directory: of the tokenizer.
    """
    alone = (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file()
    missing = [name for name in ("sentencepiece", "google.protobuf") if alone and not _is_installed(name)]
    if not missing:
        return None
    return "its tokenizer.model is read by packages that are not here: pip install sentencepiece protobuf"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (
        ImportError,
        ValueError,
    ):  # what it lies in is not there, or something keeps it from being imported
        return False


def _processor_template(path: str) -> str | dict[str, str] | None:
    """The chat template of a model with a processor, which may keep it in files that tokenizers do not read.

    Args:
        path: of the directory, or the Hub id.
    """
    from transformers.utils import cached_file

    for name in ("chat_template.json", "processor_config.json"):
        file = cached_file(
            path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is None:
            continue
        try:
            template = json.loads(Path(file).read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file}: expected a JSON object with chat_template ({error})") from None
        if template is not None:
            return template
    return None


def vocabulary_digest(tokenizer: Any | None) -> str | None:
    """A hash of which id stands for which token: what lists of token ids depend on.

    Args:
        tokenizer: one of Hugging Face. None gives None.
    """
    if tokenizer is None:
        return None
    entries = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(entries.encode()).hexdigest()[:16]


def make_byte_tokenizer() -> Any:
    """A token a byte, and END: 257 entries. It can encode every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    entries = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return _wrapped(tokenizer)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE like GPT-2's, learned from texts.

    Args:
        texts: to learn from.
        vocab_size: entries at the most, END and the 256 bytes included; there are fewer if the texts hold no
            more merges.
    """
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


def make_word_tokenizer(words: Iterable[str]) -> Any:
    """A token a word, for text whose words are separated by spaces.

    There is no unknown token: a text with other words cannot be encoded.

    Args:
        words: all that there are.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    entries = {word: n for n, word in enumerate([END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=entries, unk_token=END + END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END])
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Any) -> Any:
    """A tokenizer of `tokenizers` as one of transformers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )
