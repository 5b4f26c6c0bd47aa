"""LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors.

What is plain LoRA is read: s B A beside a projection, an embedding or a head, and whole tensors that were
trained with it (biases, modules_to_save). Whatever else PEFT can do changes what is computed, and is
refused by name.

No JAX here, so that `--check` can read adapters quickly.
"""

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, NoReturn

import numpy as np

from sparsepo_jax.core.errors import UserError
from sparsepo_jax.models.adapter_config import WEIGHTS, read_adapter_config
from sparsepo_jax.models.adapter_problems import rows_problem, tower_problem
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.families import adapted_rules
from sparsepo_jax.models.safetensors_file import TensorFile
from sparsepo_jax.models.tensor_names import embedding_name, module_name
from sparsepo_jax.models.weight_rules import Rule
from sparsepo_jax.models.weights import LayerPlace, Place, TensorPart, parts_of, tensor_places
from sparsepo_jax.models.wrappers import placed, trunks_of_adapters

# Modules that share the embedding's weight where the head is tied.
_TIED = ("wte", "embed_tokens", "embed_in", "lm_head", "embed_out")
_WRAPPED = re.compile(r"(?P<module>.+?)(?P<layers>(\.base_layer)*)\.(?P<rest>lora_[AB]\..+)")
_TENSOR = re.compile(r"(?P<module>.+?)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.default)?(?:\.weight)?")


class Module(NamedTuple):
    """One adapted Hugging Face module.

    Attributes:
        rule: what its weight is to us.
        layer: its layer, from 0, or layer and expert; None: it is outside the blocks.
        name: its name in the model.
        a_name: the tensor A [rank, in]; of an embedding [rank, V], of a stack of experts [E * rank, in].
        b_name: the tensor B [out, rank]; of an embedding [D, rank], of a stack of experts [out, rank * E].
        rank: inner size of A and B.
        scale: s, the factor of B A.
        embedding: whether it is an embedding.
    """

    rule: Rule
    layer: LayerPlace
    name: str
    a_name: str
    b_name: str
    rank: int
    scale: float
    embedding: bool


class LoraShape(NamedTuple):
    """An adapter as the settings of a LoRA of ours.

    Attributes:
        targets: names of projections (see `DecoderSpec.projections`).
        rank: of all of them.
        alpha: of all of them.
        rslora: whether the scale is alpha / sqrt(rank) instead of alpha / rank.
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float
    rslora: bool


class Adapter:
    """An adapter that fits a decoder. Its arrays are read when they are asked for.

    Attributes:
        path: directory or Hub id.
        spec: the decoder.
        where: the setting that names the adapter, for messages.
        config: its adapter_config.json.
        modules: what it adapts.
        whole_tensors: what each whole tensor that came with it is, by name.
    """

    def __init__(self, path: str, spec: DecoderSpec, where: str):
        """Reads the configuration, and names and shapes of the tensors.

        Args:
            path: directory or Hub id.
            spec: the decoder.
            where: the setting that names the adapter, for messages.

        Raises:
            UserError: it is no plain LoRA, or a list of the tensors that do not fit.
        """
        self.path = path
        self.spec = spec
        self.where = where
        self.config = read_adapter_config(path, where)
        self._file = TensorFile(self.config.directory / WEIGHTS)
        self._shapes = self._file.shapes
        self.modules: list[Module] = []
        self.whole_tensors: dict[str, Place] = {}
        faults = self._sort_tensors()
        if (problem := tower_problem(self._shapes)) is not None:
            raise UserError(f"{where}: {path}: {problem}")
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise UserError(
                f"{where}: {path}: {len(faults)} tensor(s) do not fit the model ({spec.family}): "
                f"{'; '.join(faults[:5])}{more}"
            )
        if not self.modules and not self.whole_tensors:
            raise UserError(f"{where}: {path}: {WEIGHTS} holds no tensors")

    def describe(self) -> str:
        """For a reader: LoRA and its rank, or the range of its ranks."""
        ranks = sorted({module.rank for module in self.modules})
        if not ranks:
            return "whole tensors only"
        return f"LoRA rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")

    # ------------------------------------------------------------ what lies in the file

    def _sort_tensors(self) -> list[str]:
        """Fills `modules` and `whole_tensors`; returns what does not fit."""
        places = self._known_places()
        ends = tuple(f".{end}" for end in self.config.parameters)
        parameters = [name for name in places if name.endswith(ends)]
        halves: dict[tuple[str, Rule, LayerPlace], dict[str, str]] = {}
        faults = []
        for full_name in sorted(self._shapes):
            name = self._of_parameter(full_name.removeprefix("base_model.model."), parameters)
            name = name.replace(".base_layer.", ".")
            match = _TENSOR.fullmatch(name)
            module = match["module"] if match else name.removesuffix(".weight")
            place = places.get(f"{module}.weight", places.get(module)) if match else places.get(name)
            tied = self.spec.tied_head and module.endswith(_TIED)
            if tied and place is None:
                place = places[embedding_name(self.spec)]
            if tied and (match or self.config.has_copies):
                faults.append(
                    f"{full_name}: embedding and head are one in this model, and PEFT adapts one of them "
                    "alone"
                )
            elif place is None:
                faults.append(f"{full_name} is no part of this architecture, or of plain LoRA")
            elif match:
                rule, layer = place
                halves.setdefault((module, rule, layer), {})[match["part"]] = full_name
            elif problem := rows_problem(full_name, self._shapes[full_name][0], place[0], self.spec):
                faults.append(problem)
            else:
                self.whole_tensors[full_name] = place
        for (module, rule, layer), names in halves.items():
            fault = self._add_module(module, rule, layer, names)
            if fault is not None:
                faults.append(fault)
        return faults

    def _of_parameter(self, name: str, parameters: Collection[str]) -> str:
        """The name of a tensor as if PEFT named it after the parameter that it adapts.

        PEFT wraps a module once for each of its parameters, in their order, and names no parameter.

        Args:
            name: as PEFT has it.
            parameters: the model's tensors that PEFT knows by their own names, in order.
        """
        match = _WRAPPED.fullmatch(name)
        if match is None:
            return name
        wrapped = [full_name for full_name in parameters if full_name.rpartition(".")[0] == match["module"]]
        around = match["layers"].count(".base_layer")
        if around >= len(wrapped):
            return name
        return f"{wrapped[-1 - around]}.{match['rest']}"

    def _known_places(self) -> dict[str, Place]:
        """What each tensor of the model is, by its name with and without its first part.

        Adapters of the bare trunk lack the first part; those made with older versions of transformers, or
        for the text model alone, may have another, if the model is wrapped.
        """
        places = tensor_places(self.spec, adapted_rules(self.spec))
        trunks = trunks_of_adapters(self.spec.wrapping, self.spec.family)
        for trunk in trunks[1:]:
            places |= {placed(name, trunks[0], trunk): place for name, place in places.items()}
        places |= {module_name(self.spec, name): place for name, place in places.items()}
        of_trunk = {name.split(".", 1)[1]: place for name, place in places.items() if name.count(".") > 1}
        return of_trunk | places

    def _add_module(self, module: str, rule: Rule, layer: LayerPlace, names: Mapping[str, str]) -> str | None:
        """Adds a module, or says why its A and B do not fit.

        Args:
            module: its name.
            rule: what its weight is to us.
            layer: its layer.
            names: part (lora_A, ...) -> name of the tensor.
        """
        embedding = "lora_embedding_A" in names
        expected = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if set(names) != set(expected):
            return f"{module}: expected one A and one B, got {', '.join(sorted(names))}"
        a_name, b_name = (names[part] for part in expected)
        size = self._size(rule, layer)
        if size is None:
            return f"{module} is no matrix"
        inputs, outputs = size
        ranks, *rest_a = self._shapes[a_name]
        *rest_b, ranks_b = self._shapes[b_name]
        rank, rest = divmod(ranks, self._copies(rule))
        if [*rest_a, *rest_b] != [inputs, outputs] or ranks != ranks_b or rest:
            times = f" * {self._copies(rule)}" if rule.stacked else ""
            return (
                f"{module}: A {list(self._shapes[a_name])} and B {list(self._shapes[b_name])}, "
                f"expected [rank{times}, {inputs}] and [{outputs}, rank{times}]"
            )
        scale = self.config.scale(module, rank)
        self.modules.append(Module(rule, layer, module, a_name, b_name, rank, scale, embedding))
        return None

    def _size(self, rule: Rule, layer: LayerPlace) -> tuple[int, int] | None:
        """(inputs, outputs) of a Hugging Face module, from its weight's rule; None: it is no matrix."""
        block = self.spec.of_layer((layer[0] if isinstance(layer, tuple) else layer) or 0)
        sizes = {f"blocks.{name}.kernel": size for name, size in block.projections().items()}
        if all(path in sizes for path in rule.ours):
            inputs, _ = sizes[rule.ours[0]]
            return inputs, sum(sizes[path][1] for path in rule.ours)
        spec = self.spec
        tables = {
            "embed.embedding": (spec.vocab_size, spec.width),
            "embed_positions.embedding": (spec.max_positions, spec.width),
            "head.embedding": (spec.width, spec.vocab_size),
            "blocks.experts.router.weight": (spec.width, spec.mixture.experts if spec.mixture else 0),
        }
        return tables.get(rule.ours[0])

    def _copies(self, rule: Rule) -> int:
        """Matrices that a tensor holds, each of which has an A and a B."""
        return self.spec.mixture.experts if rule.stacked and self.spec.mixture is not None else 1

    def _read(self, name: str) -> np.ndarray:
        return self._file.read(name).astype(np.float32, copy=False)

    def _halves(self, module: Module) -> tuple[np.ndarray, np.ndarray]:
        """A [in, rank] and B [rank, out]; of a stack [E, in, rank] and [E, rank, out]."""
        a, b = self._read(module.a_name), self._read(module.b_name)
        if not module.rule.stacked:
            return a.T, b.T
        experts = self._copies(module.rule)
        return a.reshape(experts, module.rank, -1).swapaxes(1, 2), b.reshape(len(b), -1, experts).T

    def _is_turned(self, module: Module) -> bool:
        """Whether the module's weight is stored as [out, in]; GPT-2's, and stacks of experts, are not."""
        return not module.rule.stacked and (self.spec.family != "gpt2" or module.layer is None)

    # ------------------------------------------------------------ merged

    def merge_parts(self) -> Iterator[tuple[TensorPart, bool]]:
        """What the adapter changes in the decoder's weights, in an order in which it may be applied.

        Yields:
            A part of one of our arrays, and whether it is added to what is there (True) or replaces it
            (False).
        """
        for name, place in self.whole_tensors.items():
            for part in parts_of(self.spec, place, self._read(name)):
                yield part, False
        for module in self.modules:
            a, b = self._halves(module)
            product = module.scale * (a @ b)  # [in, out]
            stored = product.T if self._is_turned(module) and not module.embedding else product
            for part in parts_of(self.spec, (module.rule, module.layer), stored):
                yield part, True

    # ------------------------------------------------------------ trained further

    @functools.cached_property
    def lora(self) -> LoraShape:
        """The adapter as a LoRA of ours.

        Raises:
            UserError: ours cannot be like it.
        """
        if self.whole_tensors:
            self._refuse(f"it holds whole tensors ({', '.join(list(self.whole_tensors)[:2])})")
        rank = self._smallest_rank()
        targets: list[str] = []
        scales: set[float] = set()
        places = tensor_places(self.spec, adapted_rules(self.spec))
        for stored in dict.fromkeys(module.rule.theirs for module in self.modules):
            modules = [module for module in self.modules if module.rule.theirs == stored]
            if modules[0].layer is None or not all(path.endswith(".kernel") for path in modules[0].rule.ours):
                self._refuse(f"it adapts {modules[0].name}, which is no projection of a block")
            layers = sum(rule.theirs == stored for rule, _ in places.values())
            if len(modules) != layers:
                self._refuse(f"it adapts {modules[0].name} in {len(modules)} of {layers} layers")
            targets += self._targets(modules, rank)
            scales |= {module.scale for module in modules}
        scale = next(iter(scales))
        if not all(math.isclose(other, scale, rel_tol=1e-6) for other in scales):
            self._refuse("its modules have different scales (alpha_pattern, rank_pattern)")
        order = self.spec.projection_names()
        alpha = scale * (math.sqrt(rank) if self.config.rslora else rank)
        return LoraShape(tuple(sorted(targets, key=order.index)), rank, round(alpha, 6), self.config.rslora)

    def _smallest_rank(self) -> int:
        """The rank of one projection; a module that holds several may have the sum of theirs."""
        ranks = [module.rank for module in self.modules if len(module.rule.ours) == 1]
        if ranks:
            return min(ranks)
        return min(self.config.rank, *(module.rank for module in self.modules))

    def _targets(self, modules: list[Module], rank: int) -> list[str]:
        """The projections, each of this rank, that a module adapts.

        Args:
            modules: the module in all layers.
            rank: of one projection.
        """
        module = modules[0]
        ranks = {module.rank for module in modules}
        names = [_projection(path) for path in module.rule.ours]
        if ranks == {rank}:
            return names
        blocks = module.rank // rank
        if len(ranks) > 1 or module.rank % rank or not 1 < blocks <= len(names):
            all_ranks = sorted({module.rank for module in self.modules})
            self._refuse(f"its modules have different ranks ({', '.join(map(str, all_ranks))})")
        if blocks == len(names):
            return names
        parts = self._split_b(module)
        moving = [name for name, part in zip(names, parts, strict=True) if part.any()]
        if len(moving) != blocks:
            self._refuse(
                f"{module.name} has rank {module.rank}, and which of {', '.join(names)} it adapts cannot be "
                "told"
            )
        return moving

    def weights(self) -> dict[str, np.ndarray]:
        """The arrays of the LoRA by path: A [L, in, R], B [L, R, out]; of experts [L, E, ...].

        The A of a module that holds several projections goes to each of them.

        Raises:
            UserError: ours cannot be like it.
        """
        stacks: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
        for module in self.modules:
            for name, a, b in self._projection_adapters(module):
                assert module.layer is not None
                layer, *expert = module.layer if isinstance(module.layer, tuple) else (module.layer,)
                path, number = self.spec.place(name, layer)
                stem, place = path.removesuffix(".kernel"), (number, *expert)
                stacks.setdefault(f"{stem}.lora.lora_a", {})[place] = a
                stacks.setdefault(f"{stem}.lora.lora_b", {})[place] = b
        return {path: _stacked(of) for path, of in stacks.items()}

    def _projection_adapters(self, module: Module) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(path of the kernel, A [.., in, R], B [.., R, out]) of each projection that a module adapts."""
        shape = self.lora
        a, _ = self._halves(module)
        parts = zip(module.rule.ours, self._split_b(module), strict=True)
        adapted = [(path, b) for path, b in parts if _projection(path) in shape.targets]
        for number, (path, b) in enumerate(adapted):
            begin = number * shape.rank if module.rank > shape.rank else 0
            rows = slice(begin, begin + shape.rank)
            if np.delete(b, np.arange(module.rank)[rows], axis=-2).any():
                self._refuse(f"{module.name} has rank {module.rank}, shared by the projections that it holds")
            yield path, a[..., rows], b[..., rows, :]

    def _split_b(self, module: Module) -> tuple[np.ndarray, ...]:
        """B of each projection that a module holds, [rank, outputs]; of a stack [E, rank, outputs]."""
        _, b = self._halves(module)
        return module.rule.split(b.T if self._is_turned(module) else b)

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(
            f"{self.where}: {self.path}: {why}, which cannot be trained further under po.lora: leave out "
            "po.lora (then the adapter is merged), or export the merged model first and start from that"
        )


def _stacked(arrays: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """The arrays as one, by places that fill it."""
    sizes = np.max(list(arrays), axis=0) + 1
    first = next(iter(arrays.values()))
    return np.stack([arrays[place] for place in sorted(arrays)]).reshape(*sizes, *first.shape)


def _projection(path: str) -> str:
    """The name of the projection whose kernel has this path."""
    return path.removeprefix("blocks.").removesuffix(".kernel")
