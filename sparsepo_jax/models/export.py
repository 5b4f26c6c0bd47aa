"""Writes a Hugging Face directory that transformers loads like any other, or an adapter for PEFT.

Mask nets lie beside the model, in masks.safetensors.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_text
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.directory import (
    ADAPTER,
    CONFIG,
    GENERATION,
    INDEX,
    PROCESSOR_FILES,
    SINGLE,
    TOKENIZER_FILES,
    with_dtype,
)
from sparsepo_jax.models.families import architecture
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.models.narrowing import narrow_at_random
from sparsepo_jax.models.peft_modules import to_peft
from sparsepo_jax.models.safetensors_file import copy_tensors
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.tensor_names import carried
from sparsepo_jax.models.weights import to_hf
from sparsepo_jax.models.wrappers import name_in, with_text_fields

# Few numbers that are published in float32 whatever type the others have: rounded, memories decay otherwise.
_FLOAT32 = (".linear_attn.A_log", ".linear_attn.norm.weight")
SHARD_BYTES = 5 * 10**9  # as transformers splits large models


def save_hf(
    directory: Path,
    spec: DecoderSpec,
    hf_config: Mapping[str, Any],
    weights: Mapping[str, Any],
    masks: Mapping[str, Any],
    card: str,
    *,
    dtype: str = "float32",
    at_random: bool = False,
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    source: Path | None = None,
) -> None:
    """Writes config.json, generation_config.json, safetensors, masks.safetensors and README.md.

    The weights are fetched one tensor after the other, and those of one file are held at a time.

    Args:
        directory: to write into; files of an earlier export there are replaced once all weights are written.
        spec: the decoder.
        hf_config: the content of config.json that the decoder was read from.
        weights: our arrays by path, on any device, or what is indexed as they are.
        masks: tensors of the mask nets under their official names; {} writes no file.
        card: the text of README.md.
        dtype: type of the weights, float32, float16 or bfloat16. Qwen3.5's decays stay float32.
        at_random: whether weights are rounded to it at random, see narrowing; else to the nearest number.
        generation: the content of generation_config.json; None writes no file, and transformers then reads
            config.json.
        shard_bytes: the weights are split into files of at most this size.
        source: the checkpoint that the decoder was read from. What lies in it around the text model is taken
            over, and how the text model's tensors are called; None: the decoder stands alone.

    Raises:
        UserError: a weight is too large for float16. Nothing is written then.
    """
    kept = {} if source is None else SafeTensors(source).files()
    stored_name = name_in(spec.wrapping, kept)
    tensors = ((stored_name(name), tensor) for name, tensor in _cast_tensors(spec, weights, dtype, at_random))
    there_before = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    shards = _Shards(directory, shard_bytes)
    try:
        shards.write(tensors, {name: kept[name] for name in carried(spec, kept)})
    except UserError:
        if not there_before:
            directory.rmdir()
        raise
    config = with_text_fields(with_dtype(hf_config, dtype), {"vocab_size": spec.vocab_size})
    config["architectures"] = [architecture(spec)]
    config.pop("transformers_weights", None)  # names a file of the checkpoint that was read
    config.pop("quantization_config", None)  # says how that was packed
    shards.take_their_place()
    _write_json(directory / CONFIG, config)
    if generation is None:
        (directory / GENERATION).unlink(missing_ok=True)
    else:
        _write_json(directory / GENERATION, generation)
    _save_masks(directory, masks)
    write_text(directory / "README.md", card)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


class _Shards:
    """Files of weights, under names that nothing reads until all of them are written."""

    def __init__(self, directory: Path, most_bytes: int):
        self._directory = directory
        self._most_bytes = most_bytes
        self._waiting: dict[str, np.ndarray] = {}
        self._size = 0  # of those, bytes
        self._written: list[tuple[Path, list[str]]] = []
        self._total = 0

    def write(self, tensors: Iterable[tuple[str, np.ndarray]], carried: Mapping[str, Path]) -> None:
        """Writes the tensors in order, in as few files as hold at most so many bytes each.

        Only those of one file are in memory. If one cannot be written, no file is left.

        carried: files of tensors that are copied as they are, by name; they get a file of their own.
        """
        for left in self._directory.glob("unfinished-*"):  # by an export that was killed
            left.unlink()
        try:
            for name, tensor in tensors:
                if self._waiting and self._size + tensor.nbytes > self._most_bytes:
                    self._flush()
                self._waiting[name] = tensor
                self._size += tensor.nbytes
                del tensor
            self._flush()
            if carried:
                self._total += copy_tensors(carried, self._new(list(carried)))
        except BaseException:
            for path, _ in self._written:
                path.unlink(missing_ok=True)
            raise

    def _new(self, names: list[str]) -> Path:
        path = self._directory / f"unfinished-{len(self._written) + 1:05d}"
        self._written.append((path, names))
        return path

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        save_file(self._waiting, self._new(list(self._waiting)), metadata={"format": "pt"})
        self._total += self._size
        self._waiting, self._size = {}, 0

    def take_their_place(self) -> None:
        """Puts the files in the place of those that were there, with an index if there are several."""
        for old in (*self._directory.glob("model*.safetensors"), *self._directory.glob(INDEX)):
            old.unlink()
        if len(self._written) == 1:
            self._written[0][0].rename(self._directory / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._written, start=1):
            file = f"model-{number:05d}-of-{len(self._written):05d}.safetensors"
            path.rename(self._directory / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def fetch_as_written(spec: DecoderSpec, weights: Mapping[str, Any], dtype: str) -> None:
    """Fetches what `save_hf` would write, and raises what it would: for the processes that write nothing.

    Args:
        spec: the decoder.
        weights: our arrays by path, as the process that writes has them.
        dtype: type of the weights.

    Raises:
        UserError: a weight is too large for float16.
    """
    for _ in _cast_tensors(spec, weights, dtype, at_random=False):
        pass


def _cast_tensors(
    spec: DecoderSpec, weights: Mapping[str, Any], dtype: str, at_random: bool
) -> Iterator[tuple[str, np.ndarray]]:
    def type_of(name: str) -> str:
        return "float32" if name.endswith(_FLOAT32) else dtype

    return ((name, _cast(name, tensor, type_of(name), at_random)) for name, tensor in to_hf(spec, weights))


def _cast(name: str, tensor: np.ndarray, dtype: str, at_random: bool) -> np.ndarray:
    """The tensor in another type. UserError: float16 cannot hold one of its numbers."""
    import ml_dtypes

    narrow = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with np.errstate(over="ignore"):
        if at_random and narrow.itemsize < tensor.dtype.itemsize:
            cast = narrow_at_random(tensor, narrow, name)
        else:
            cast = np.ascontiguousarray(tensor, narrow)
    if dtype == "float16" and not np.isfinite(cast).all() and np.isfinite(tensor).all():
        raise UserError(
            f"export.dtype: {name} holds {np.abs(tensor).max():.3g}, too large for float16; "
            "set it to bfloat16 or float32"
        )
    return cast


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies a tokenizer, its chat templates and processors unchanged, and removes those that were there.

    Args:
        source: directory to copy from.
        directory: another directory, to copy to.
    """
    for old in _tokenizer_files(directory):
        old.unlink()
    for path in _tokenizer_files(source):
        target = directory / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def copy_processor(source: Path, directory: Path) -> None:
    """Copies what processors of images read, where a tokenizer from elsewhere has brought none.

    Args:
        source: the checkpoint of a wrapped decoder.
        directory: another directory, to copy to.
    """
    for name in PROCESSOR_FILES:
        if (source / name).is_file() and not (directory / name).exists():
            shutil.copyfile(source / name, directory / name)


def _tokenizer_files(directory: Path) -> list[Path]:
    return [path for pattern in TOKENIZER_FILES for path in sorted(directory.glob(pattern)) if path.is_file()]


def save_peft(
    directory: Path,
    spec: DecoderSpec,
    adapters: Mapping[str, Any],
    lora: Lora,
    masks: Mapping[str, Any],
    card: str,
    base: str | None,
) -> None:
    """Writes an adapter that PEFT loads onto the base model, masks.safetensors and README.md.

    Args:
        directory: to write into.
        spec: the decoder.
        adapters: our adapters' arrays by path, on any device.
        lora: the adapters' settings.
        masks: tensors of the mask nets under their official names; {} writes no file.
        card: the text of README.md.
        base: path or Hub id of the base model; None: not known.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    parameters: set[str] = set()
    of_experts = False
    for module in to_peft(spec, adapters):
        tensors[f"base_model.model.{module.full_name}.lora_A.weight"] = module.a
        tensors[f"base_model.model.{module.full_name}.lora_B.weight"] = module.b
        ranks[module.name] = module.rank
        if module.is_parameter:
            parameters.add(module.name)
        of_experts |= module.is_of_expert
    # PEFT stacks experts' modules, doubles rank and alpha of gate and up, and forgets the square root in it.
    lora = lora._replace(alpha=lora.scale * lora.rank, rslora=False) if of_experts else lora
    _write_json(directory / ADAPTER, _peft_config(spec, lora, ranks, parameters, base))
    save_file(_as_float32(tensors), directory / "adapter_model.safetensors", metadata={"format": "pt"})
    _save_masks(directory, masks)
    write_text(directory / "README.md", card)


def _peft_config(
    spec: DecoderSpec, lora: Lora, ranks: Mapping[str, int], parameters: Set[str], base: str | None
) -> dict[str, Any]:
    """PEFT's description of an adapter.

    ranks: of each kind of module or parameter, by its name within a layer.
    parameters: the names of those that PEFT knows as parameters.
    """
    # The rank of a module that holds several projections is a multiple of ours; alpha grows so that the
    # scale stays.
    other_ranks = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    other_alphas = {
        name: lora.scale * (rank**0.5 if lora.rslora else rank) for name, rank in other_ranks.items()
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0 if parameters else lora.dropout,  # PEFT loads no parameters with one
        "use_rslora": lora.rslora,
        "fan_in_fan_out": spec.family == "gpt2",
        "target_modules": _target_modules(spec, ranks.keys() - parameters),
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        "rank_pattern": other_ranks,
        "alpha_pattern": other_alphas,
    }


def _target_modules(spec: DecoderSpec, names: Set[str]) -> list[str] | str:
    """The adapted modules; in a wrapper as a pattern, since others may have modules of the same names."""
    if spec.wrapping is None or not names:
        return sorted(names)
    modules = "|".join(re.escape(name) for name in sorted(names))
    return rf"{re.escape(spec.wrapping.row.trunks[0])}layers\.\d+\.({modules})"


def _as_float32(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def _save_masks(directory: Path, masks: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    (directory / "masks.safetensors").unlink(missing_ok=True)
    if masks:
        save_file(_as_float32(masks), directory / "masks.safetensors", metadata={"format": "pt"})
