"""Which program a config is for, by the keys at its root."""

from collections.abc import Iterable, Mapping
from typing import Any

from sparsepo_jax.config.shown import cut

TRANSLATED = ("TRL", "Axolotl", "LLaMA-Factory", "open-instruct")  # what --from-trl reads

_OURS_TOO = {"output_dir", "seed"}  # keys that configs of other programs have as well
_OPEN_INSTRUCT = {
    "dpo_loss_type",
    "dpo_beta",
    "dataset_mixer",
    "dataset_mixer_list",
    "mixer_list",
    "max_seq_length",
    "tokenizer_name",
    "use_slow_tokenizer",
    "use_flash_attn",
    "with_tracking",
    "chat_template_name",
    "checkpointing_steps",
}
_LLAMA_FACTORY = {
    "stage",
    "do_train",
    "pref_loss",
    "pref_beta",
    "cutoff_len",
    "lora_target",
    "template",
    "dataset",
    "dataset_dir",
}
_TRL = {
    "model_name_or_path",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "lr_scheduler_type",
    "dataset_name",
    "dataset_mixer",
    "dataset_mixture",
    "dataset_train_split",
    "loss_type",
    "beta",
    "max_length",
    "max_prompt_length",
    "desirable_weight",
    "cpo_alpha",
    "gamma_beta_ratio",
    "bf16",
    "save_steps",
    "logging_steps",
    "eval_steps",
    "warmup_ratio",
    "use_peft",
    "torch_dtype",
    "attn_implementation",
    "gradient_checkpointing",
    "report_to",
    "learning_rate",
    "max_steps",
    "push_to_hub",
    "completion_only_loss",
    "assistant_only_loss",
}
# (program, how many of these keys it takes, the keys), the most telling first.
_MARKS: tuple[tuple[str, int, set[str]], ...] = (
    ("ms-swift", 1, {"rlhf_type", "tuner_type", "split_dataset_ratio"}),
    ("OpenRLHF", 1, {"micro_train_batch_size", "pretrain"}),
    ("LLaMA-Factory", 1, {"finetuning_type"}),
    ("LLaMA-Factory", 2, _LLAMA_FACTORY),
    ("Axolotl", 1, {"base_model", "micro_batch_size", "sequence_len"}),
    ("TRL", 1, {"dataset_splits"}),  # of the alignment handbook, whose other keys are open-instruct's too
    ("open-instruct", 2, _OPEN_INSTRUCT),
    ("TRL", 1, _TRL),
)
_MOST_UNKNOWN = 3  # of the keys at the root of a config of ours that lacks `stages`
_NAMED = 4  # of the unknown keys


def find_program(content: Mapping[str, Any], ours: Iterable[str]) -> str | None:
    """The program whose config this is; None: it may be ours, or that of a program not known here.

    Args:
        ours: keys at the root of our own configs.
    """
    if content.keys() & (set(ours) - _OURS_TOO):
        return None
    found = (program for program, least, marks in _MARKS if len(marks & content.keys()) >= least)
    return next(found, None)


def why_not_ours(content: Mapping[str, Any], ours: Iterable[str]) -> str | None:
    """One line about a config that is another program's as a whole; None: it may be ours.

    Args:
        ours: keys at the root of our own configs.
    """
    program = find_program(content, ours)
    if program in TRANSLATED:
        return (
            f"this is a config of {program}: --from-trl in place of --config prints it as one of ours; "
            "docs/guides/trl.md says what each of its settings is called here"
        )
    if program is not None:
        return (
            f"this is a config of {program}, which --from-trl does not translate; docs/guides/trl.md says "
            "what the settings of TRL and others are called here"
        )
    unknown = [str(key) for key in content if key not in ours]
    if "stages" in content or len(unknown) < max(_MOST_UNKNOWN, len(content) / 2):
        return None
    more = ", and more" if len(unknown) > _NAMED else ""
    return (
        f"no config of this program: it has no stages, and unknown keys ({cut(', '.join(unknown[:_NAMED]))}"
        f"{more}); configs/ has examples, and --from-trl reads configs of {', '.join(TRANSLATED)}"
    )
