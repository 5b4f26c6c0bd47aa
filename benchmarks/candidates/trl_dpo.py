"""A step of TRL's DPOTrainer on random pairs, as the trainer's own loop does one: its data loader and
collator, training_step, clipping, optimizer, schedule. Neither gradient checkpointing nor dropout; all else
as TRL has it by default.

    python trl_dpo.py SHAPE PROMPT RESPONSE PAIRS [PAIRS ...] [--precision TYPE] [--precomputed]

In an environment with trl, torch and datasets. SHAPE: the content of a config.json. Runs on the GPU if there
is one.

--precision: see on_torch.py. --precomputed: the reference's log-probs are computed before the first step
(precompute_ref_log_probs).
"""

import argparse
import copy
import functools
import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import trl
from datasets import Dataset
from on_torch import DEVICE, PRECISIONS, device_peak, make_model, versions
from serve import LossBefore, serve
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<end>"


def number_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers separated by spaces, one token each; the last entry ends a text."""
    tokenizer = Tokenizer(
        models.WordLevel(vocab={str(n): n for n in range(vocab - 1)} | {END: vocab - 1}, unk_token=END)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def random_pairs(pairs: int, prompt: int, response: int, vocab: int) -> Dataset:
    """TRL adds END to each response, which then has `response` tokens."""
    draws = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(str(draws.randrange(vocab - 1)) for _ in range(tokens))

    return Dataset.from_list(
        [
            {"prompt": text(prompt) + " ", "chosen": text(response - 1), "rejected": text(response - 1)}
            for _ in range(pairs)
        ]
    )


def settings(options: argparse.Namespace, directory: str) -> trl.DPOConfig:
    return trl.DPOConfig(
        output_dir=directory,
        use_cpu=DEVICE == "cpu",
        bf16=options.precision == "autocast",
        fp16=False,
        per_device_train_batch_size=max(options.pairs),
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        disable_dropout=True,
        max_grad_norm=1.0,
        max_length=options.prompt + options.response,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        max_steps=1000,
        precompute_ref_log_probs=options.precomputed,
        report_to="none",
        disable_tqdm=True,
    )


class Step:
    """A step for each number of pairs; see settings."""

    def __init__(self, options: argparse.Namespace, directory: str):
        vocab = json.loads(options.shape)["vocab_size"]
        ends = {name: vocab - 1 for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        policy = make_model(options.shape, options.precision, **ends)
        self.trainer = trainer = trl.DPOTrainer(
            policy,
            None if options.precomputed else copy.deepcopy(policy),
            settings(options, directory),
            train_dataset=random_pairs(max(options.pairs), options.prompt, options.response, vocab),
            processing_class=number_tokenizer(vocab),
        )
        # What Trainer's loop does before its first step.
        trainer.create_optimizer_and_scheduler(1000)
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        trainer.current_gradient_accumulation_steps = 1
        self.batches = {pairs: self._endless(pairs, options) for pairs in options.pairs}
        self._loss_before = LossBefore()
        weight_type = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        assert {x.dtype for x in policy.parameters()} == {weight_type}

    def _endless(self, pairs: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
        """Batches of so many pairs, epoch after epoch."""
        self.trainer._train_batch_size = pairs
        batches = itertools.chain.from_iterable(itertools.repeat(self.trainer.get_train_dataloader()))
        first = next(batches)
        assert first["input_ids"].shape == (2 * pairs, options.prompt + options.response), first[
            "input_ids"
        ].shape
        lengths = first["completion_mask"].sum(1).tolist()
        assert lengths == [options.response] * (2 * pairs), lengths
        assert ("ref_chosen_logps" in first) == options.precomputed
        return batches

    def __call__(self, pairs: int) -> dict[str, Any]:
        trainer = self.trainer
        loss = trainer.training_step(trainer.model_wrapped, next(self.batches[pairs]))
        trainer.accelerator.clip_grad_norm_(trainer.model_wrapped.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model_wrapped.zero_grad()
        return {"loss": self._loss_before(loss)} | device_peak()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape")
    parser.add_argument("prompt", type=int)
    parser.add_argument("response", type=int)
    parser.add_argument("pairs", type=int, nargs="+")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--precomputed", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:

        @functools.cache
        def trainer() -> Step:
            """Made with the first step: until then nothing is on the device."""
            return Step(options, directory)

        def advance(pairs: int) -> dict[str, Any]:
            return trainer()(pairs)

        steps = {str(pairs): functools.partial(advance, pairs) for pairs in options.pairs}
        serve(steps, versions=versions(trl))


if __name__ == "__main__":
    main()
