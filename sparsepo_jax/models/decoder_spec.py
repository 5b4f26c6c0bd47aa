"""What a decoder looks like, as the few facts that our one implementation needs. No JAX here."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.delta_shape import DeltaShape
from sparsepo_jax.models.mixture import Mixture
from sparsepo_jax.models.rope_scaling import Rotation
from sparsepo_jax.models.stacks import Scan, one_scan, places_of, scans_of
from sparsepo_jax.models.wrappers import Wrapping

Activation = Literal["gelu_tanh", "gelu", "relu", "relu2", "silu"]


@dataclass(frozen=True)
class BlockShape:
    """What blocks of one kind have in another number than the decoder says; None: as it says.

    Attributes:
        num_kv_heads: see DecoderSpec.
        head_dim: see DecoderSpec.
        mlp_width: see DecoderSpec.
        key_is_value: see DecoderSpec.
        delta: see DecoderSpec.
        without_experts: their MLP is a plain one, though that of other blocks is a mixture of experts.
    """

    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    key_is_value: bool | None = None
    delta: DeltaShape | None = None
    without_experts: bool = False


@dataclass(frozen=True)
class LayerKind:
    """What differs between the layers of a decoder.

    Attributes:
        rotation: how queries and keys are rotated by their positions; None: they are not.
        window: positions that a token sees back, itself included; None: all.
        shape: of its blocks, where that differs.
    """

    rotation: Rotation | None
    window: int | None = None
    shape: BlockShape = BlockShape()


@dataclass(frozen=True)
class QueryGrowth:
    """Queries at position p are multiplied by 1 + beta log(1 + floor(p / positions)).

    Attributes:
        beta: above 0.
        positions: tokens before the first step.

    References:
        Llama 4's attention temperature, which Ministral 3 takes up.
    """

    beta: float
    positions: int


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a transformer decoder.

    Attributes:
        family: `model_type` of its Hugging Face config.
        vocab_size: rows of the embedding, tokens.
        max_positions: longest sequence that the model is meant for, tokens.
        num_layers: blocks.
        width: features of the residual stream.
        num_heads: query heads.
        mlp_width: features inside the MLP.
        activation: the MLP's activation function.
        norm_eps: what norms add to the variance or mean square.
        positions: whether positions are embedded (learned) or queries and keys rotated.
        kinds: the kinds of layer that there are.
        tied_head: the head is the token embedding.
        init_std: standard deviation of random initial weights.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: dims of a head.
        norm: LayerNorm (scale and bias) or RMSNorm (scale).
        norm_bias: layer norms have biases.
        gated_mlp: the MLP is down(act(gate(x)) * up(x)) instead of down(act(up(x))).
        parallel_residual: attention and MLP read the same residual stream.
        shared_norm: one norm serves both of them (parallel residual only).
        head_bias: the head has a bias.
        qkv_bias: the projections to queries, keys and values have biases.
        out_bias: the attention's output projection has a bias.
        mlp_bias: the projections of the MLP have biases.
        norms: where attention and MLP are normed: their inputs, their outputs, or both.
        norm_offset: what the stored scales of norms lack to the factor that they stand for (1 in Gemma).
        qk_norm: queries and keys have an RMS norm over each head's dims, or over all heads together, or a
            layer norm over each head's dims whose factors are each head's own.
        sinks: each head's softmax counts one more score, which is learned and has no value.
        query_scale: factor of attention scores; None: 1 / sqrt(head_dim).
        embed_scale: factor of token embeddings.
        kind_of_layer: for each layer the number of its kind in `kinds`; (): all layers are of the only kind.
        attn_softcap: attention scores s become c tanh(s / c) for this c; None: no cap.
        logit_softcap: the same for logits, after their factor.
        logit_scale: factor of logits.
        residual_scale: factor of what attention and MLP add to the residual stream.
        query_growth: factor of rotated queries that grows with the position; None: none.
        wrapping: the model around this one that the checkpoint holds; None: it stands alone.
        mixture: the MLPs are mixtures of such experts, but for those of kinds without; None: plain MLPs.
        key_is_value: values are what the projection to keys gives, before norm and rotation.
        value_norm: the values of each head are normed, without a scale of their own.
        scales_blocks: each block multiplies what it writes by a stored number that is not trained.
        gated_attention: what heads attend to is multiplied by the sigmoid of a projection of the input.
        delta: the blocks have such a gated delta net in place of attention; None: they attend.
    """

    family: str
    vocab_size: int
    max_positions: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    activation: Activation
    norm_eps: float
    positions: Literal["learned", "rotary"]
    kinds: tuple[LayerKind, ...]
    tied_head: bool
    init_std: float
    num_kv_heads: int
    head_dim: int
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    gated_mlp: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    head_bias: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    norms: Literal["before", "after", "both"] = "before"
    norm_offset: float = 0.0
    qk_norm: Literal["head", "all", "own"] | None = None
    sinks: bool = False
    query_scale: float | None = None
    embed_scale: float = 1.0
    kind_of_layer: tuple[int, ...] = ()
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    residual_scale: float = 1.0
    query_growth: QueryGrowth | None = None
    wrapping: Wrapping | None = None
    mixture: Mixture | None = None
    key_is_value: bool = False
    value_norm: bool = False
    scales_blocks: bool = False
    gated_attention: bool = False
    delta: DeltaShape | None = None

    def of_kind(self, kind: int) -> "DecoderSpec":
        """The same decoder as if all layers were of one kind: what a block of it has to know.

        Args:
            kind: its number.
        """
        shape = self.kinds[kind].shape
        changes = {field.name: getattr(shape, field.name) for field in fields(shape)}
        without_experts = changes.pop("without_experts")
        changed = {name: value for name, value in changes.items() if value is not None}
        if without_experts:
            changed["mixture"] = None
        return replace(
            self, kinds=(replace(self.kinds[kind], shape=BlockShape()),), kind_of_layer=(), **changed
        )

    def of_layer(self, layer: int) -> "DecoderSpec":
        """What the block of a layer has to know.

        Args:
            layer: its number.
        """
        return self.of_kind(self.kind_of_layer[layer] if self.kind_of_layer else 0)

    def blocks(self) -> Iterator[tuple["DecoderSpec", int]]:
        """Of each kind what its blocks have to know, and how many there are."""
        for kind in range(len(self.kinds)):
            count = self.kind_of_layer.count(kind) if self.kind_of_layer else self.num_layers
            if count:
                yield self.of_kind(kind), count

    @property
    def has_one_shape(self) -> bool:
        """Whether all blocks can lie in one stack."""
        return len({self.kinds[kind].shape for kind in set(self.kind_of_layer)}) <= 1

    def scans(self) -> tuple[Scan, ...]:
        """How the layers run, and where their weights lie; see models/stacks."""
        return one_scan(self.num_layers) if self.has_one_shape else scans_of(self.kind_of_layer)

    def place(self, path: str, layer: int) -> tuple[str, int]:
        """The path and place in its stack of a layer's weight.

        Args:
            path: as if all layers lay in one stack, such as `blocks.up.kernel`.
            layer: the layer's number.
        """
        stack, place = places_of(self.scans())[layer]
        return stack.path + path.removeprefix("blocks"), place

    def layers_with_experts(self) -> tuple[int, ...]:
        """The numbers of the layers that have experts."""
        if self.mixture is None:
            return ()
        kinds = self.kind_of_layer or (0,) * self.num_layers
        return tuple(n for n, kind in enumerate(kinds) if not self.kinds[kind].shape.without_experts)

    def projection_names(self) -> tuple[str, ...]:
        """The names of all matrices that blocks have."""
        return tuple(dict.fromkeys(name for block, _ in self.blocks() for name in block.projections()))

    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each matrix of a block, by name; all layers are of one kind.

        Those of experts stand for one expert.
        """
        D, F = self.width, self.mlp_width
        sizes = self._attention_projections() if self.delta is None else self.delta.projections(D)
        if self.mixture is not None:
            return sizes | self.mixture.projections(D)
        sizes["up"] = (D, F)
        if self.gated_mlp:
            sizes["gate"] = (D, F)
        sizes["down"] = (F, D)
        return sizes

    def _attention_projections(self) -> dict[str, tuple[int, int]]:
        D, queries, keys = self.width, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "attention.query": (D, queries),
            **({"attention.gate": (D, queries)} if self.gated_attention else {}),
            "attention.key": (D, keys),
            **({} if self.key_is_value else {"attention.value": (D, keys)}),
            "attention.out": (queries, D),
        }

    def copies(self, projection: str, *, active: bool = False) -> int:
        """How many matrices of a block a name of `projections` stands for: one, or one for each expert.

        Args:
            projection: its name.
            active: count the experts that a token is sent to instead of all.
        """
        if self.mixture is None or not projection.startswith("experts."):
            return 1
        return self.mixture.chosen if active else self.mixture.experts

    @property
    def positions_note(self) -> str:
        """Why there are no more positions than `max_positions`, for messages; "" if the model has no more."""
        rotations = [kind.rotation for kind in self.kinds]
        if any(rotation is not None and rotation.is_longrope for rotation in rotations):
            return " (LongRoPE: in a longer sequence the prompt would be rotated otherwise)"
        return ""

    def adapter_parameter_count(self, targets: tuple[str, ...], rank: int) -> int:
        """Weights of LoRA adapters.

        Args:
            targets: names of the adapted projections.
            rank: inner size of each adapter.
        """
        count = 0
        for block, layers in self.blocks():
            sizes = {name: size for name, size in block.projections().items() if name in targets}
            count += layers * rank * sum(block.copies(name) * sum(size) for name, size in sizes.items())
        return count

    def block_matrix_count(self, *, active: bool = False) -> int:
        """Weights of the matrices of all blocks, without routers.

        Args:
            active: count those that a token meets instead of all.
        """
        return sum(layers * block.matrix_count_of_block(active=active) for block, layers in self.blocks())

    def matrix_count_of_block(self, *, active: bool = False) -> int:
        """Weights of the matrices of a block, without its router; all layers are of one kind.

        Args:
            active: count those that a token meets instead of all.
        """
        return sum(
            self.copies(name, active=active) * inputs * outputs
            for name, (inputs, outputs) in self.projections().items()
        )

    def matrix_count(self) -> int:
        """Weights of all matrices: those of blocks, embeddings and head. A tied head counts once."""
        rows = self.vocab_size * (1 if self.tied_head else 2)
        if self.positions == "learned":
            rows += self.max_positions
        return self.block_matrix_count() + rows * self.width

    def parameter_count(self) -> int:
        """Weights of the whole decoder, all experts included; a tied head counts once."""
        head_bias = self.vocab_size if self.head_bias else 0
        of_blocks = sum(layers * block._block_vector_count() for block, layers in self.blocks())
        vectors = of_blocks + self._norm_size() + head_bias
        return self.matrix_count() + vectors

    def active_parameter_count(self) -> int:
        """Weights that a token meets: of experts those that it is sent to."""
        idle = self.block_matrix_count() - self.block_matrix_count(active=True)
        if self.mixture is not None:
            share = 1 - self.mixture.chosen / self.mixture.experts
            biases = round(share * self.mixture.bias_count(self.width))
            idle += len(self.layers_with_experts()) * biases
        return self.parameter_count() - idle

    def _norm_size(self) -> int:
        return (2 if self.norm == "layer" and self.norm_bias else 1) * self.width

    def _block_vector_count(self) -> int:
        """Weights of the biases, norms and router of a block; all layers are of one kind."""
        D, F = self.width, self.mlp_width
        count = 1 if self.scales_blocks else 0
        count += self._attention_vector_count() if self.delta is None else self.delta.vector_count()
        if self.mixture is not None:
            count += self.mixture.router_count(D) + self.mixture.bias_count(D)
        elif self.mlp_bias:
            count += (2 * F if self.gated_mlp else F) + D
        norms = 1 if self.shared_norm else 2
        if self.norms == "both":
            norms = 4
        return count + norms * self._norm_size()

    def _attention_vector_count(self) -> int:
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        count = self.num_heads if self.sinks else 0
        if self.qkv_bias:
            count += (2 if self.gated_attention else 1) * queries + (1 if self.key_is_value else 2) * keys
        if self.out_bias:
            count += self.width
        if self.qk_norm == "head":
            count += 2 * self.head_dim
        elif self.qk_norm is not None:
            count += queries + keys
        return count


def choose_projections(patterns: tuple[str, ...], spec: DecoderSpec) -> tuple[str, ...]:
    """The projections whose names fit one of the patterns.

    Args:
        patterns: regular expressions, searched for anywhere in a name. One that does not hold the word
            `experts` fits no projection of experts.
        spec: the decoder.

    Returns:
        Names, in the order of `DecoderSpec.projection_names`.

    Raises:
        SpecError: a pattern fits no projection.
    """
    names = spec.projection_names()

    def fits(pattern: str, name: str) -> bool:
        meant = "experts" in pattern or not name.startswith("experts.")
        return meant and re.search(pattern, name) is not None

    for pattern in patterns:
        if not any(fits(pattern, name) for name in names):
            raise SpecError(f"{pattern!r} fits no projection; there are {', '.join(names)}")
    return tuple(name for name in names if any(fits(pattern, name) for pattern in patterns))
