"""The problem that a stage solves: models, mask source and loss, as the configuration asks for them."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
from jax.tree_util import Partial

from sparsepo_jax.build.choices import reading_choices
from sparsepo_jax.build.compute import choose_attention, choose_experts, compute_dtype
from sparsepo_jax.build.models import decoder_graph
from sparsepo_jax.config.derive import masked_terms
from sparsepo_jax.config.schema.objectives import Mix
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.types import LossOutput
from sparsepo_jax.losses import (
    margins,
    quantiles,
    separate,
    sequence,
    token_guided,
    token_weighted,
    unpaired,
    wrappers,
)
from sparsepo_jax.masks.activation import choose_points
from sparsepo_jax.masks.learned import NetSettings
from sparsepo_jax.masks.source import MaskSource, activation_source, fixed_source, learned_source, unit_source
from sparsepo_jax.models.decoder_spec import DecoderSpec
from sparsepo_jax.models.experts import dispatch_on
from sparsepo_jax.models.lora import Lora
from sparsepo_jax.ops.logit_blocks import HeadBlocks
from sparsepo_jax.run.mixture import replay_mistakes
from sparsepo_jax.sharding.experts import make_spread_experts
from sparsepo_jax.sharding.mesh import (
    make_constrain,
    make_place_head,
    make_spread,
    platform_of,
)
from sparsepo_jax.train.problem import Problem
from sparsepo_jax.train.readings import with_baseline

LOSSES = {
    "sparsepo": token_weighted.tdpo1_loss,  # sparsepo_loss without L1, which is added as to all others
    "mapo": token_weighted.tdpo1_loss,
    "dpo": token_weighted.dpo_loss,
    "tdpo1": token_weighted.tdpo1_loss,
    "tdpo2": token_weighted.tdpo2_loss,
    "d2po": token_weighted.d2po_loss,
    "sampo": token_weighted.sampo_loss,
    "ldpo": token_weighted.ldpo_loss,
    "cdpo": sequence.cdpo_loss,
    "robust": sequence.robust_loss,
    "ipo": sequence.ipo_loss,
    "hinge": sequence.hinge_loss,
    "simpo": sequence.simpo_loss,
    "orpo": sequence.orpo_loss,
    "cpo": sequence.cpo_loss,
    "dpop": sequence.dpop_loss,
    "rdpo": sequence.rdpo_loss,
    "confpo": sequence.confpo_loss,
    "caldpo": sequence.caldpo_loss,
    "dpo_norm": sequence.dpo_norm_loss,
    "alphapo": sequence.alphapo_loss,
    "exo": margins.exo_loss,
    "discopop": margins.discopop_loss,
    "bpo": margins.bpo_loss,
    "tbpo_a": margins.tbpo_a_loss,
    "fdpo": margins.fdpo_loss,
    "nca": separate.nca_loss,
    "bco_pair": separate.bco_pair_loss,
    "sppo": separate.sppo_loss,
    "apo_zero": separate.apo_zero_loss,
    "apo_down": separate.apo_down_loss,
    "tidpo": token_guided.tidpo_loss,
    "tbpo_q": token_guided.tbpo_q_loss,
    "aot": quantiles.aot_loss,
    "aot_unpaired": quantiles.aot_unpaired_loss,
    "kto": unpaired.kto_loss,
    "bco": unpaired.bco_loss,
    "apo_zero_unpaired": unpaired.apo_zero_unpaired_loss,
}


def make_mask_source(config: Config, spec: DecoderSpec, policy: DecoderSpec | None = None) -> MaskSource:
    """The maker of token masks.

    Args:
        spec: the reference's, whose states the masks read.
        policy: whose states a baseline reads; None: the policy is shaped as the reference.
    """
    source = _mask_source(config, spec)
    if "baseline" not in config.objective.reads:
        return source
    # The baseline's weights are trained and kept beside those of the masks.
    return with_baseline(source, (policy or spec).width)


def _mask_source(config: Config, spec: DecoderSpec) -> MaskSource:
    mask = config.objective.mask
    if mask is None:
        return unit_source()
    placing = {"on": masked_terms(config.objective), "normalised": mask.normalise}
    if mask.kind == "learned":
        net = NetSettings(
            net=mask.net,
            num_layers=spec.num_layers,
            width=spec.width,
            norm_eps=spec.norm_eps,
            init=mask.init,
            layer_activation=mask.layer_activation,
            mixer_activation=mask.mixer_activation,
            dropout=mask.dropout,
            budget=mask.budget,
            temperature=mask.temperature,
            sees=mask.sees,
        )
        return learned_source(
            net,
            sharing=mask.sharing,
            temperature_start=mask.temperature_start,
            temperature_steps=mask.temperature_steps,
            **placing,
        )
    if mask.kind == "activation":
        if "logits" in mask.groups and spec.logit_softcap is not None:
            # The mean of capped logits would need all of them at once.
            raise UserError(
                f"objective.mask.groups: logits is not supported for {spec.family}, whose logits are capped; "
                "leave it out"
            )
        if len(spec.layers_with_experts()) == spec.num_layers and set(mask.groups) == {"mlp"}:
            raise UserError(
                f"objective.mask.groups: mlp alone is not supported for {spec.family}, whose experts have no "
                "activation that all tokens share; add another group"
            )
        try:
            points = choose_points(spec.family, tuple(mask.groups), mask.official)
        except ValueError as error:
            raise UserError(f"objective.mask.groups: {error}") from error
        return activation_source(points=points, mapping=mask.mapping, **placing)
    return fixed_source(
        mask.kind, decay=getattr(mask, "decay", 1.0), model=getattr(mask, "model", "reference"), **placing
    )


def make_objective(config: Config, source: MaskSource) -> Callable[..., LossOutput]:
    """objective(stats, masks, key_B) -> LossOutput, its settings bound: a pytree of them."""
    return _bound(config.objective, source.shared)


def _bound(objective: Any, shared: bool) -> Callable[..., LossOutput]:
    """A loss with its settings, and what is added to it."""
    l1 = {name: getattr(objective, name, 0.0) for name in ("l1_reward", "l1_kl")} | {"shared": shared}
    settings = objective.model_dump(exclude={"kind", "mask", "nll_weight", "policy_weight", "parts", *l1})
    if isinstance(objective, Mix):
        parts = [_bound(part.objective, shared) for part in objective.parts]
        loss = wrappers.mixed(parts, [part.weight for part in objective.parts])
    else:
        loss = Partial(LOSSES[objective.kind], **settings)
    if objective.policy_weight:  # of the preference alone, not of L1 and NLL
        loss = wrappers.weighted_by_policy(loss, aligned=objective.policy_weight == "aligned")
    if objective.mask is not None:
        loss = wrappers.with_l1(loss, **l1)
    return wrappers.with_nll(loss, objective.nll_weight)


def make_problem(
    config: Config,
    policy: DecoderSpec,
    reference: DecoderSpec,
    mesh: Mesh,
    lora: Lora | None = None,
    reference_lora: Lora | None = None,
) -> Problem:
    """The problem that a stage scores; `build.choices.with_choices` makes it one that trains.

    The two models, the masks, the loss, and how they are computed.

    Args:
        lora: the policy's adapters; None: all its weights are trained.
        reference_lora: the adapters that the reference keeps on the shared base.
    """
    dtype = compute_dtype(config, mesh)
    source = make_mask_source(config, reference, policy)
    choices = reading_choices(config, policy, reference, mesh)
    return Problem(
        policy_graph=decoder_graph(policy, dtype, remat=choices.remat.value, lora=lora),
        reference_graph=decoder_graph(reference, dtype, lora=reference_lora),
        mask_source=source,
        objective=make_objective(config, source),
        reads=_reads(config.objective),
        seed=config.seed,
        dtype=dtype,
        unroll=choices.unroll.value,
        attention=choose_attention(config, (policy, reference), mesh),
        constrain=make_constrain(mesh),
        dispatch=dispatch_on(platform_of(mesh), make_spread_experts(mesh), choose_experts(config, mesh)),
        replays_routing=_replays_routing(config, policy, reference),
        spread=make_spread(mesh),
        head_blocks=HeadBlocks(
            *choices.head.value,
            mesh.shape["tensor"],
            config.compute.head.keep_logits,
            *make_place_head(mesh),
        ),
        adapted=lora is not None,
    )


def _reads(objective: Any) -> frozenset[str]:
    """What the loss and its weights read beside log-probs and KL."""
    return frozenset((*objective.reads, *(["alignment"] if objective.reads_alignment else [])))


def _replays_routing(config: Config, policy: DecoderSpec, reference: DecoderSpec) -> bool:
    """Whether the policy sends tokens where the reference does. UserError: it cannot."""
    for mistake in replay_mistakes(config, policy, reference):
        raise UserError(mistake)
    return config.po.replay_routing


def brings_weights(config: Config) -> bool:
    """Whether the training pairs carry token weights.

    Given with the data, or activation masks computed before.
    """
    mask = config.objective.mask
    if mask is None:
        return False
    return mask.kind == "given" or (config.reference.cached and mask.kind == "activation")


def without_objective(problem: Problem) -> Problem:
    """The models alone: programs that need no more are shared by all objectives."""
    return problem._replace(objective=None, mask_source=None)


def cached_problem(problem: Problem, config: Config) -> Problem:
    """The same problem for batches that carry the reference's log-probs.

    If the masks are read off the reference's activations, the batches carry the masks, too.
    """
    source, mask = problem.mask_source, config.objective.mask
    if source.reads_activations:
        given = fixed_source("given", on=masked_terms(config.objective), normalised=mask.normalise)
        source = given._replace(init=source.init) if "baseline" in problem.reads else given
    return problem._replace(cached=True, mask_source=source)
