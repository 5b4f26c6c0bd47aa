"""LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors. No JAX here, so that `--check` can read them.

What is plain LoRA is read: s B A beside a projection, an embedding or a head, and whole tensors that were trained with it (biases, modules_to_save).
Whatever else PEFT can do changes what is computed, and is refused by name.
"""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.spec import DecoderSpec
from sparsepo_jax.models.weights import (
    Part,
    Rule,
    family_rules,
    find_checkpoint,
    open_safetensors,
    read_float32,
)

# Settings of LoraConfig that change nothing once the adapter is trained: where it came from, how it was started, how it was run.
_HARMLESS = frozenset(
    [
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
    ]
)
# Starts that leave the base as it is; the others (pissa, olora, ...) take from the base what they give to the adapter.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_TIED = ("wte", "embed_tokens", "embed_in", "lm_head", "embed_out")
_TENSOR = re.compile(r"(?P<module>.+?)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.default)?(?:\.weight)?")


class AdapterConfig(NamedTuple):
    """What an adapter_config.json says that a reader needs. base: the model that the adapter was trained on, as it was named there."""

    directory: Path
    base: str | None
    rank: int
    alpha: float
    rslora: bool
    alpha_pattern: Mapping[str, float]

    def scale(self, module: str, rank: int) -> float:
        """What B A is multiplied by in a module of this name, as PEFT finds it: the first pattern that fits the end of its name."""
        fits = (key for key in self.alpha_pattern if re.match(rf"(.*\.)?({key})$", module))
        alpha = self.alpha_pattern.get(next(fits, ""), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


class Module(NamedTuple):
    """One adapted Hugging Face module. names: of A [rank, in] and B [out, rank] (of an embedding: [rank, V] and [D, rank])."""

    rule: Rule
    layer: int | None
    name: str
    names: tuple[str, str]
    rank: int
    scale: float
    embedding: bool


class LoraShape(NamedTuple):
    """An adapter as the settings of a LoRA: names of projections (DecoderSpec.projections), one rank and one alpha for all."""

    targets: tuple[str, ...]
    rank: int
    alpha: float
    rslora: bool


def read_adapter_config(path: str, where: str) -> AdapterConfig:
    """The configuration of an adapter directory (or Hub id).

    Args:
        path: the directory.
        where: the setting that names it, for messages.

    Raises:
        UserError: no adapter lies there, or one that is more than plain LoRA.
    """
    directory = find_checkpoint(path)
    file = directory / "adapter_config.json"
    if not file.exists():
        hint = (
            f"; it holds a whole model: set {where.removesuffix('adapter')}path to it"
            if (directory / "config.json").exists()
            else ""
        )
        raise UserError(
            f"{where}: {path}: expected an adapter as PEFT saves it, with adapter_config.json, found none{hint}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {file}: no valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: {file}: expected a JSON object, got {type(content).__name__}")
    if not (directory / "adapter_model.safetensors").exists():
        hint = "; its adapter_model.bin is a pickle, which is not opened: load it with PEFT and save_pretrained it again"
        hint = hint if (directory / "adapter_model.bin").exists() else ""
        raise UserError(f"{where}: {path}: expected adapter_model.safetensors, found none{hint}")
    _refuse_unsupported(content, f"{where}: {file}")
    return AdapterConfig(
        directory,
        content.get("base_model_name_or_path"),
        content["r"],
        float(content["lora_alpha"]),
        bool(content.get("use_rslora")),
        content.get("alpha_pattern") or {},
    )


def _refuse_unsupported(content: Mapping[str, Any], where: str) -> None:
    """UserError that names what an adapter asks for beyond plain LoRA, or what is none of its settings' values."""
    kind = content.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{where}: peft_type: {kind!r:.40} is not supported, only LORA: merge it into its model with PEFT (merge_and_unload)"
        )
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise UserError(
            f"{where}: expected a whole number r >= 1 and a number lora_alpha, got {rank!r:.40} and {alpha!r:.40}"
        )
    alphas = content.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(
        type(value) in (int, float) and _is_pattern(key) for key, value in alphas.items()
    ):
        raise UserError(
            f"{where}: alpha_pattern: expected a mapping of patterns to numbers, got {alphas!r:.60}"
        )
    if content.get("init_lora_weights", True) not in _STARTS:
        raise UserError(
            f"{where}: init_lora_weights: {content['init_lora_weights']!r:.40} changes the base itself: save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, which makes a plain one of it"
        )
    # A setting that nobody here knows is taken for a switch if it looks like one; a version or a date is not.
    on = [
        name
        for name, value in content.items()
        if name not in _HARMLESS and value and isinstance(value, bool | list | dict)
    ]
    if on:
        raise UserError(
            f"{where}: {', '.join(f'{name}: {content[name]!r:.40}' for name in on)} is not supported, only plain LoRA: merge the adapter into "
            "its model with PEFT (merge_and_unload), and start from that"
        )


def _is_pattern(key: str) -> bool:
    try:
        re.compile(key)
        return True
    except re.error:
        return False


class Adapter:
    """An adapter that fits a decoder: its modules, and the whole tensors that came with it. Arrays are read when they are asked for."""

    def __init__(self, path: str, spec: DecoderSpec, where: str):
        """Raises UserError that lists every tensor that does not fit."""
        self.path, self.spec, self.where, self.config = path, spec, where, read_adapter_config(path, where)
        self._file = self.config.directory / "adapter_model.safetensors"
        with open_safetensors(self._file) as file:
            self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        self.modules: list[Module] = []
        self.whole: dict[str, tuple[Rule, int | None]] = {}
        faults = self._sort_tensors()
        if faults:
            shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
            raise UserError(
                f"{where}: {path}: {len(faults)} tensor(s) do not fit the model ({spec.family}): {shown}"
            )
        if not self.modules and not self.whole:
            raise UserError(f"{where}: {path}: adapter_model.safetensors holds no tensors")

    # ------------------------------------------------------------ what lies in the file

    def _sort_tensors(self) -> list[str]:
        """Fills modules and whole; returns what does not fit."""
        known, halves, faults = self._known_names(), {}, []
        for full_name in sorted(self._shapes):
            name = full_name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            match = _TENSOR.fullmatch(name)
            place = known.get(f"{match['module']}.weight" if match else name)
            module = match["module"] if match else name.removesuffix(".weight")
            if self.spec.tied_head and module.endswith(_TIED):
                faults.append(
                    f"{full_name}: embedding and head are one in this model, and PEFT adapts one of them alone"
                )
            elif place is None:
                faults.append(f"{full_name} is no part of this architecture, or of plain LoRA")
            elif match:
                halves.setdefault((match["module"], *place), {})[match["part"]] = full_name
            else:
                self.whole[full_name] = place
        for (module, rule, layer), names in halves.items():
            fault = self._add_module(module, rule, layer, names)
            faults += [] if fault is None else [fault]
        return faults

    def _known_names(self) -> dict[str, tuple[Rule, int | None]]:
        """Tensor's name in the model, with and without its first part (adapters of the bare trunk lack it) -> its rule and layer."""
        known: dict[str, tuple[Rule, int | None]] = {}
        for rule in family_rules(self.spec):
            for layer in range(self.spec.num_layers) if "{i}" in rule.theirs else (None,):
                name = rule.theirs.format(i=layer)
                known[name] = rule, layer
                if name.count(".") > 1:
                    known.setdefault(name.split(".", 1)[1], (rule, layer))
        return known

    def _add_module(self, module: str, rule: Rule, layer: int | None, names: Mapping[str, str]) -> str | None:
        """Why A and B do not fit, None if they do."""
        embedding = "lora_embedding_A" in names
        pair = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if set(names) != set(pair):
            return f"{module}: expected one A and one B, got {', '.join(sorted(names))}"
        a, b = (names[part] for part in pair)
        size = self._size(rule)
        if size is None:
            return f"{module} is no matrix"
        inside, outside = size
        (rank, *rest_a), (*rest_b, rank_b) = self._shapes[a], self._shapes[b]
        if [*rest_a, *rest_b] != [inside, outside] or rank != rank_b:
            return f"{module}: A {list(self._shapes[a])} and B {list(self._shapes[b])}, expected [rank, {inside}] and [{outside}, rank]"
        self.modules.append(
            Module(rule, layer, module, (a, b), rank, self.config.scale(module, rank), embedding)
        )
        return None

    def _size(self, rule: Rule) -> tuple[int, int] | None:
        """(inputs, outputs) of a Hugging Face module by its weight's rule; None: it is no matrix."""
        sizes = {f"blocks.{name}.kernel": size for name, size in self.spec.projections().items()}
        if all(path in sizes for path in rule.ours):
            return sizes[rule.ours[0]][0], sum(sizes[path][1] for path in rule.ours)
        return {
            "embed.embedding": (self.spec.vocab_size, self.spec.width),
            "embed_positions.embedding": (self.spec.max_positions, self.spec.width),
            "head.embedding": (self.spec.width, self.spec.vocab_size),
        }.get(rule.ours[0])

    def _read(self, name: str) -> np.ndarray:
        with open_safetensors(self._file) as file:
            return read_float32(self._file, file, name)

    # ------------------------------------------------------------ merged

    def merge_parts(self) -> Iterator[tuple[Part, bool]]:
        """(part of one of our arrays, whether it is added to what is there or takes its place), in an order in which they may be applied."""
        for name, (rule, layer) in self.whole.items():
            for path, value in zip(rule.ours, rule.split(self._read(name)), strict=True):
                yield Part(path, layer, value), False
        for module in self.modules:
            a, b = map(self._read, module.names)
            product = module.scale * (b @ a)  # [out, in]
            theirs = product.T if module.embedding or self._is_conv(module) else product
            for path, value in zip(module.rule.ours, module.rule.split(theirs), strict=True):
                yield Part(path, module.layer, value), True

    def _is_conv(self, module: Module) -> bool:
        """Whether the module's weight is stored [in, out], as GPT-2's are."""
        return self.spec.family == "gpt2" and module.layer is not None

    # ------------------------------------------------------------ trained further

    @functools.cached_property
    def lora(self) -> LoraShape:
        """The adapter as a LoRA of ours. UserError: it is one that ours cannot be."""
        if self.whole:
            self._refuse(f"it holds whole tensors ({', '.join(list(self.whole)[:2])})")
        single = [module.rank for module in self.modules if len(module.rule.ours) == 1]
        rank = min(single or [self.config.rank, *(module.rank for module in self.modules)])
        targets, scales = [], set()
        for theirs in dict.fromkeys(module.rule.theirs for module in self.modules):
            same = [module for module in self.modules if module.rule.theirs == theirs]
            if same[0].layer is None:
                self._refuse(f"it adapts {same[0].name}, which is no projection of a block")
            if len(same) != self.spec.num_layers:
                self._refuse(f"it adapts {same[0].name} in {len(same)} of {self.spec.num_layers} layers")
            targets += self._targets(same, rank)
            scales |= {module.scale for module in same}
        scale = next(iter(scales))
        if not all(math.isclose(other, scale, rel_tol=1e-6) for other in scales):
            self._refuse("its modules have different scales (alpha_pattern, rank_pattern)")
        order = list(self.spec.projections())
        alpha = scale * (math.sqrt(rank) if self.config.rslora else rank)
        return LoraShape(tuple(sorted(targets, key=order.index)), rank, round(alpha, 6), self.config.rslora)

    def _targets(self, same: list[Module], rank: int) -> list[str]:
        """The projections that one module of all layers adapts, each with this rank."""
        ranks = {module.rank for module in same}
        names = [path.removeprefix("blocks.").removesuffix(".kernel") for path in same[0].rule.ours]
        if ranks == {rank}:
            return names
        blocks = same[0].rank // rank
        if len(ranks) > 1 or same[0].rank % rank or not 1 < blocks <= len(names):
            self._refuse(
                f"its modules have different ranks ({', '.join(map(str, sorted({module.rank for module in self.modules})))})"
            )
        if blocks == len(names):
            return names
        parts = self._split_b(same[0])
        moving = [name for name, part in zip(names, parts, strict=True) if part.any()]
        if len(moving) != blocks:
            self._refuse(
                f"{same[0].name} has rank {same[0].rank}, and which of {', '.join(names)} it adapts cannot be told"
            )
        return moving

    def _split_b(self, module: Module) -> tuple[np.ndarray, ...]:
        """B of each projection that a module holds, [rank, outputs]."""
        b = self._read(module.names[1])
        return module.rule.split(b.T if self._is_conv(module) else b)

    def weights(self) -> dict[str, np.ndarray]:
        """The LoRA's arrays by path: A [L, in, R], B [L, R, out]. A fused module's A goes to each projection that it holds."""
        shape, found = self.lora, {}
        for module in self.modules:
            a = self._read(module.names[0])
            parts = zip(module.rule.ours, self._split_b(module), strict=True)
            adapted = [
                (path, b)
                for path, b in parts
                if path.removeprefix("blocks.").removesuffix(".kernel") in shape.targets
            ]
            for number, (path, b) in enumerate(adapted):
                begin = number * shape.rank if module.rank > shape.rank else 0
                rows = slice(begin, begin + shape.rank)
                if np.delete(b, np.arange(module.rank)[rows], axis=0).any():
                    self._refuse(
                        f"{module.name} has rank {module.rank}, shared by the projections that it holds"
                    )
                stem = path.removesuffix(".kernel")
                found.setdefault(f"{stem}.lora.lora_a", {})[module.layer] = a[rows].T
                found.setdefault(f"{stem}.lora.lora_b", {})[module.layer] = b[rows]
        return {
            path: np.stack([layers[i] for i in range(self.spec.num_layers)]) for path, layers in found.items()
        }

    def _refuse(self, why: str) -> None:
        raise UserError(
            f"{self.where}: {self.path}: {why}, which cannot be trained further under po.lora: leave out po.lora (then the adapter is merged), "
            "or export the merged model first and start from that"
        )

    def describe(self) -> str:
        """For a reader: LoRA, its rank or ranks."""
        ranks = sorted({module.rank for module in self.modules})
        return (
            "LoRA rank " + (f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}")
            if ranks
            else "whole tensors only"
        )
