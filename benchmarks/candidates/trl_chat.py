"""TRL's DPOTrainer on message pairs with a real model: seconds to the first step, seconds a step, held-out
accuracy. One JSON line.

    python trl_chat.py MODEL TRAIN.jsonl EVAL.jsonl STEPS PAIRS LENGTH RATE BETA

In an environment with trl, torch and datasets.

float32 on CPU, no gradient checkpointing, no dropout, reference log-probs on the fly; all else as TRL has it
by default.
"""

import json
import sys
import tempfile
import time

BEGAN_S = time.perf_counter()

import torch  # noqa: E402
import trl  # noqa: E402
from datasets import load_dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

ANSWERS = sys.stdout
sys.stdout = sys.stderr  # keeps what libraries print out of the answers


class Clock(TrainerCallback):
    """Seconds since the process began, at the end of each step."""

    def __init__(self):
        self.ends_s = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends_s.append(time.perf_counter() - BEGAN_S)


def main() -> None:
    model, train, held_out, *numbers = sys.argv[1:]
    steps, pairs, length = map(int, numbers[:3])
    rate, beta = map(float, numbers[3:])
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        rows = load_dataset("json", data_files={"train": train, "eval": held_out}, cache_dir=directory)
        settings = trl.DPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,
            fp16=False,
            per_device_train_batch_size=pairs,
            per_device_eval_batch_size=pairs,
            gradient_checkpointing=False,
            disable_dropout=True,
            max_grad_norm=1.0,
            max_length=length,
            weight_decay=0.0,
            learning_rate=rate,
            beta=beta,
            lr_scheduler_type="cosine",
            warmup_steps=round(0.1 * steps),
            max_steps=steps,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=steps,
        )
        trainer = trl.DPOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            settings,
            train_dataset=rows["train"],
            eval_dataset=rows["eval"],
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[clock],
        )
        trainer.train()
        figures = trainer.evaluate()
    answer = {
        "first_step_s": clock.ends_s[0],
        "step_s": (clock.ends_s[-1] - clock.ends_s[0]) / (steps - 1),
        "accuracy": figures["eval_rewards/accuracies"],
        "margin": figures["eval_rewards/margins"],
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
    }
    print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
