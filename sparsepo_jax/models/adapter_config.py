"""adapter_config.json, PEFT's description of an adapter: read if it is plain LoRA, else refused by name."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.directory import ADAPTER, CONFIG, hint_at_latest, read_json_object
from sparsepo_jax.models.field_kinds import is_texts
from sparsepo_jax.models.stored_tensors import find_checkpoint

WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_MLX = "adapters.safetensors"
# Settings of LoraConfig that change nothing once the adapter is trained, by what they are about.
_HARMLESS_BY_SUBJECT = {
    "what it is": "peft_type task_type auto_mapping peft_version base_model_name_or_path revision",
    "what is read": "r lora_alpha use_rslora alpha_pattern rank_pattern target_parameters",
    "what follows from the tensors": """target_modules exclude_modules modules_to_save layers_to_transform
        layers_pattern bias fan_in_fan_out""",
    "how it was started": """init_lora_weights loftq_config eva_config corda_config lora_ga_config
        ensure_weight_tying""",
    "how it was trained or run": """inference_mode lora_dropout megatron_core qalora_group_size
        runtime_config""",
}
_HARMLESS = frozenset(name for names in _HARMLESS_BY_SUBJECT.values() for name in names.split())
# Starts that leave the base as it is. The others (pissa, olora, ...) take from the base what they give to
# the adapter.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class AdapterConfig(NamedTuple):
    """What an adapter_config.json says that a reader needs.

    Attributes:
        directory: where it lies.
        base: the model that the adapter was trained on, as it was named there; None: not said.
        rank: rank of modules that no pattern names.
        alpha: numerator of the scale of modules that no pattern names.
        rslora: whether the scale is alpha / sqrt(rank) instead of alpha / rank.
        alpha_pattern: regular expression -> alpha of the modules whose names end so.
        parameters: ends of the names of adapted tensors that PEFT knows by the tensor, not by the module.
        has_copies: whether modules were trained as copies; else complete tensors are the model's own.
    """

    directory: Path
    base: str | None
    rank: int
    alpha: float
    rslora: bool
    alpha_pattern: Mapping[str, float]
    parameters: tuple[str, ...]
    has_copies: bool

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A in a module, as in PEFT: the first pattern that fits the end of its name wins.

        Args:
            module: its name in the model.
            rank: its rank.
        """
        fitting = (pattern for pattern in self.alpha_pattern if re.match(rf"(.*\.)?({pattern})$", module))
        alpha = self.alpha_pattern.get(next(fitting, ""), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(path: str, where: str) -> AdapterConfig:
    """The configuration of an adapter.

    Args:
        path: directory or Hub id.
        where: the setting that names it, for messages.

    Raises:
        UserError: there is no adapter, or one that is more than plain LoRA.
    """
    directory = find_checkpoint(path)
    file = directory / ADAPTER
    if not file.exists():
        hint = hint_at_latest(directory, ADAPTER, where)
        if (directory / CONFIG).exists():
            hint = f"; it holds a whole model: set {where.removesuffix('adapter')}path to it"
        raise UserError(
            f"{where}: {path}: expected an adapter as PEFT saves it, with {ADAPTER}, found none{hint}"
        )
    content = read_json_object(file, where)
    if not (directory / WEIGHTS).exists():
        hint = ""
        if (directory / _PICKLED).exists():
            remedy = "load it with PEFT and save_pretrained it again"
            hint = f"; its {_PICKLED} is a pickle, which is not opened: {remedy}"
        elif (directory / _MLX).exists():
            hint = f"; its {_MLX} is MLX's: fuse it there into unquantised weights (mlx_lm.fuse), take these"
        raise UserError(f"{where}: {path}: expected {WEIGHTS}, found none{hint}")
    _refuse_wrong_values(content, f"{where}: {file}")
    _refuse_more_than_lora(content, f"{where}: {file}")
    return AdapterConfig(
        directory=directory,
        base=content.get("base_model_name_or_path"),
        rank=content["r"],
        alpha=float(content["lora_alpha"]),
        rslora=bool(content.get("use_rslora")),
        alpha_pattern=content.get("alpha_pattern") or {},
        parameters=tuple(content.get("target_parameters") or ()),
        has_copies=bool(content.get("modules_to_save")),
    )


def _refuse_wrong_values(content: Mapping[str, Any], where: str) -> None:
    kind = content.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{where}: peft_type: {kind!r:.40} is not supported, only LORA: merge it into its model with "
            "PEFT (merge_and_unload)"
        )
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not _is_number(alpha):
        raise UserError(
            f"{where}: expected a whole number r >= 1 and a number lora_alpha, got {rank!r:.40} and "
            f"{alpha!r:.40}"
        )
    parameters = content.get("target_parameters")
    if not is_texts(parameters):
        raise UserError(f"{where}: target_parameters: expected a list of names, got {parameters!r:.60}")
    alphas = content.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(
        _is_number(value) and _is_pattern(key) for key, value in alphas.items()
    ):
        raise UserError(
            f"{where}: alpha_pattern: expected a mapping of patterns to numbers, got {alphas!r:.60}"
        )


def _refuse_more_than_lora(content: Mapping[str, Any], where: str) -> None:
    start = content.get("init_lora_weights", True)
    if start not in _STARTS:
        raise UserError(
            f"{where}: init_lora_weights: {start!r:.40} changes the base itself: save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain one of it"
        )
    # An unknown setting counts as a switch if its value looks like one; a version or a date does not.
    switched_on = [
        f"{name}: {value!r:.40}"
        for name, value in content.items()
        if name not in _HARMLESS and value and isinstance(value, bool | list | dict)
    ]
    if switched_on:
        raise UserError(
            f"{where}: {', '.join(switched_on)} is not supported, only plain LoRA: merge the adapter into "
            "its model with PEFT (merge_and_unload), and start from that"
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
