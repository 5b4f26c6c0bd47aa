"""A step of TRL's DPOTrainer on random pairs, as the trainer's own loop does one: its data loader and
collator, training_step, clipping, optimizer, schedule. float32 on CPU; neither gradient checkpointing nor
dropout; all else as TRL has it by default.

    python trl_dpo.py [--precomputed] PAIRS PROMPT RESPONSE VOCAB WIDTH LAYERS

In an environment with trl, torch and datasets.

--precomputed: the reference's log-probs are computed before the first step (precompute_ref_log_probs).
"""

import copy
import itertools
import random
import sys
import tempfile

import torch
import transformers
import trl
from datasets import Dataset
from serve import serve
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

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


class Step:
    def __init__(
        self,
        precomputed: bool,
        pairs: int,
        prompt: int,
        response: int,
        vocab: int,
        width: int,
        layers: int,
        directory: str,
    ):
        torch.manual_seed(0)
        policy = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab,
                n_positions=prompt + response,
                n_embd=width,
                n_layer=layers,
                n_head=width // 64,
                bos_token_id=vocab - 1,
                eos_token_id=vocab - 1,
            )
        )
        settings = trl.DPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,
            fp16=False,
            per_device_train_batch_size=pairs,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            disable_dropout=True,
            max_grad_norm=1.0,
            max_length=prompt + response,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            max_steps=1000,
            precompute_ref_log_probs=precomputed,
            report_to="none",
            disable_tqdm=True,
        )
        self.trainer = trainer = trl.DPOTrainer(
            policy,
            None if precomputed else copy.deepcopy(policy),
            settings,
            train_dataset=random_pairs(pairs, prompt, response, vocab),
            processing_class=number_tokenizer(vocab),
        )
        # What Trainer's loop does before its first step.
        loader = trainer.get_train_dataloader()
        trainer.create_optimizer_and_scheduler(1000)
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        trainer.current_gradient_accumulation_steps = 1
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch after epoch
        first = next(self.batches)
        assert first["input_ids"].shape == (2 * pairs, prompt + response), first["input_ids"].shape
        assert first["completion_mask"].sum(1).tolist() == [response] * (2 * pairs), first[
            "completion_mask"
        ].sum(1)
        assert {x.dtype for x in policy.parameters()} == {torch.float32}
        assert ("ref_chosen_logps" in first) == precomputed

    def __call__(self) -> float:
        trainer = self.trainer
        loss = trainer.training_step(trainer.model_wrapped, next(self.batches))
        trainer.accelerator.clip_grad_norm_(trainer.model_wrapped.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model_wrapped.zero_grad()
        return float(loss)


def main() -> None:
    arguments = sys.argv[1:]
    precomputed = arguments[0] == "--precomputed"
    with tempfile.TemporaryDirectory() as directory:
        step = Step(precomputed, *map(int, arguments[precomputed:]), directory)
        serve(
            step,
            versions={module.__name__: module.__version__ for module in (trl, torch, transformers)},
            optimizer=step.trainer.args.optim,
        )


if __name__ == "__main__":
    main()
