"""The run's tokenizer, and what the configuration and the models say of it."""

import datetime
import json
from pathlib import Path
from typing import Any

import jax

from sparsepo_jax.build.sources import open_source
from sparsepo_jax.config.schema.data import Source
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_directory, write_json
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.directory import (
    end_tokens,
    has_tokenizer,
)
from sparsepo_jax.models.stored_tensors import find_checkpoint
from sparsepo_jax.run.files_read import stamp
from sparsepo_jax.run.resume import LOOKING, has_begun


def make_tokenizer(config: Config) -> Any | None:
    """The run's tokenizer; None if the data must come tokenised.

    One that is learned from the data is kept in output_dir/tokenizer.
    """
    from sparsepo_jax.data import tokenizers

    choice = config.tokenizer
    if choice.kind == "auto":
        if config.policy.path is None:
            return None
        directory = find_checkpoint(config.policy.path)
        return tokenizers.load_tokenizer(str(directory)) if has_tokenizer(directory) else None
    if choice.kind == "pretrained":
        return tokenizers.load_tokenizer(choice.path)
    if choice.kind == "bytes":
        return tokenizers.make_byte_tokenizer()
    if choice.kind == "reviews":
        from sparsepo_jax.data.reviews import reviews_vocabulary

        return tokenizers.make_word_tokenizer(reviews_vocabulary())
    return _learned_tokenizer(config)


def _learned_tokenizer(config: Config) -> Any:
    """The BPE of the run's own text.

    The one that is kept stays once a stage has begun with it, else as long as its settings and files do.
    """
    from sparsepo_jax.data import tokenizers

    choice, kept = config.tokenizer, Path(config.output_dir) / "tokenizer"
    about = kept / "learned_from.json"
    sources, kind = (config.data.sft, "sft") if config.data.sft else (config.data.train, "pairs")
    learned_from = _learned_from(config, sources)
    if kept.exists() and (has_begun(config) or _read(about) == learned_from):
        return tokenizers.load_tokenizer(str(kept))
    tokenizer = tokenizers.train_bpe_tokenizer(
        _texts(sources, kind, config, choice.max_rows), choice.vocab_size
    )

    def fill(directory: Path) -> None:
        tokenizer.save_pretrained(directory)
        write_json(directory / about.name, learned_from)

    if jax.process_index() == 0 and not LOOKING.issuperset(config.stages):
        write_directory(kept, fill)
    return tokenizer


def _learned_from(config: Config, sources: list[Source]) -> dict[str, Any]:
    """What decides which merges are learned, as JSON gives it back."""
    paths = [getattr(source, "path", None) for source in sources]
    decides = {
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "sources": [source.model_dump(mode="json") for source in sources],
        "on_bad_row": config.data.on_bad_row,
        "files": {path: stamp(Path(path)) for path in paths if path is not None},
    }
    return json.loads(json.dumps(decides))


def _read(about: Path) -> Any:
    """What a kept tokenizer was learned from; None: that is not to be read there."""
    try:
        return json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def tokenizer_directory(config: Config) -> Path | None:
    """Where the files of the run's tokenizer lie.

    None for a tokenizer that was made for this run, or that transformers fetches itself.
    """
    if config.tokenizer.kind == "auto" and config.policy.path is not None:
        return find_checkpoint(config.policy.path)
    if config.tokenizer.kind == "pretrained" and Path(config.tokenizer.path).is_dir():
        return Path(config.tokenizer.path)
    return None


def made_tokenizer(config: Config, tokenizer: Any | None) -> Any | None:
    """The run's tokenizer if it was made for this model, else None.

    A model needs a row for each token of a tokenizer that was made for it. One that came as files may have
    more.
    """
    return None if config.tokenizer.kind in ("auto", "pretrained") else tokenizer


def _texts(sources: list, kind: str, config: Config, max_rows: int | None):
    """All text in the rows of some sources, for a tokenizer to learn from."""
    from sparsepo_jax.data.load import read_texts

    for number, text in enumerate(
        read_texts([open_source(source, kind) for source in sources], on_bad_row=config.data.on_bad_row)
    ):
        if max_rows is not None and number >= max_rows:
            return
        yield text


def template_date(config: Config, tokenizer: Any | None) -> str | None:
    """The day that the chat template is told, as YYYY-MM-DD; None if it does not ask.

    It is data.template_date, else the day kept by this run or by the run whose sft it takes, else today,
    which is kept from now on: tokens must not change when the run is continued on another day.
    """
    from sparsepo_jax.data.templates import reads_clock

    data = config.data
    if not reads_clock(tokenizer, data.template, data.template_arguments) or data.template_date is not None:
        return data.template_date
    for directory in filter(None, (config.output_dir, config.sft.taken_from)):
        kept = Path(directory) / "template_date.json"
        if kept.exists():
            return _kept_date(kept)
    day = datetime.date.today().isoformat()
    if jax.process_index() == 0 and not LOOKING.issuperset(config.stages):
        write_json(Path(config.output_dir) / "template_date.json", {"template_date": day})
    return day


def _kept_date(path: Path) -> str:
    try:
        return datetime.date.fromisoformat(json.loads(path.read_text())["template_date"]).isoformat()
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path}: expected the day that the run's chat template was told, found something else; "
            "set data.template_date"
        ) from None


def same_tokenizer(
    policy_path: str | None, reference_path: str, policy: DecoderSpec, reference: DecoderSpec
) -> None:
    """UserError unless policy and reference have the same vocabulary.

    Where both checkpoints bring a tokenizer, these are compared too, by the tokens that the models have rows
    for.
    """
    name = policy_path or "policy.config"
    if policy.vocab_size != reference.vocab_size:
        raise UserError(
            f"reference.path: {reference_path} has a vocabulary of {reference.vocab_size}, the policy "
            f"({name}) one of "
            f"{policy.vocab_size}; log-ratios need the same one"
        )
    directories = [find_checkpoint(path) for path in (policy_path, reference_path) if path is not None]
    if len(directories) == 2 and all(has_tokenizer(directory) for directory in directories):
        from sparsepo_jax.data.tokenizers import load_tokenizer

        ours, theirs = (
            _tokens_with_a_row(load_tokenizer(str(directory)), policy.vocab_size) for directory in directories
        )
        if ours != theirs:
            token = next(
                token for token in sorted(ours.keys() | theirs.keys()) if ours.get(token) != theirs.get(token)
            )
            raise UserError(
                f"reference.path: the tokenizers of {name} and {reference_path} differ (token {token!r} is "
                f"{ours.get(token)} and {theirs.get(token)}); log-ratios need the same one"
            )


def _tokens_with_a_row(tokenizer: Any, rows: int) -> dict[str, int]:
    return {token: number for token, number in tokenizer.get_vocab().items() if number < rows}


def ends_of(
    hf_config: dict[str, Any], generation: dict[str, Any] | None, tokenizer: Any | None
) -> tuple[int, ...]:
    """Ids of the tokens that end a response.

    The model's, and the tokenizer's EOS, which ends its training data.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    return tuple(sorted({*end_tokens(hf_config, generation), eos} - {None}))
