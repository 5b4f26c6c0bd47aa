"""From config to code: every objective, every mask and every knob of them reaches the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.configs import NEEDED, PATHS, made_stats, make_config
from helpers.quick import slow_but
from helpers.tiny import GEMMA2, GPT2, LLAMA, LONGROPE, NEOX, random_batch
from sparsepo_jax.build.compute import choose_attention, compute_dtype, start_jax
from sparsepo_jax.build.models import decoder_graph
from sparsepo_jax.build.objective import make_mask_source, make_objective
from sparsepo_jax.build.optimizer import make_optimizer, optimizer_rates
from sparsepo_jax.config.derive import length_limits
from sparsepo_jax.config.schema.base import members
from sparsepo_jax.config.schema.objectives import Objective
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.tree import split_module
from sparsepo_jax.losses.token_weighted import dpo_loss
from sparsepo_jax.models.decoder import Decoder
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.train.forward import forward
from sparsepo_jax.train.problem import Problem, pair_keys


def losses(objective, step=0):
    stats, masks = made_stats()
    stats = stats._replace(anchor=jnp.float32(0.3))
    config = make_config(objective=objective)
    source = make_mask_source(config, spec_from_hf(GPT2))
    keys = pair_keys(config.seed, jnp.int32(step), jnp.arange(stats.valid_BPT.shape[0]))
    return np.asarray(make_objective(config, source)(stats, masks, keys).loss_B)


@pytest.mark.parametrize("kind", members(Objective))
def test_every_objective_can_be_built_and_its_knobs_move_the_loss(kind):
    settings = {"kind": kind, **NEEDED.get(kind, {})}
    base = losses(settings)
    assert np.isfinite(base).all()
    objective = make_config(objective=settings).objective
    refused = {"policy_weight"} if kind.startswith("aot") else set()
    for knob, value in objective.model_dump(exclude={"kind", "mask", "l1_reward", "l1_kl", *refused}).items():
        if knob == "parts":
            other = [settings["parts"][0] | {"weight": 0.1}, settings["parts"][1]]
        else:
            other = (not value) if isinstance(value, bool) else 0.4 if value == 0 else 0.5 * value
        changed = losses(settings | {knob: other})
        assert (changed != base).any(), f"objective.{knob} changes nothing"
    for knob in {"l1_reward", "l1_kl"} & type(objective).model_fields.keys():
        if (knob == "l1_reward" or objective.weighs.kl) and objective.weighs.over != "mean":
            changed = losses(settings | {"mask": {"kind": "learned"}, knob: 0.4})
            assert (changed > base).all(), f"objective.{knob} adds nothing"


def test_no_two_objectives_are_the_same():
    loss_by_kind = {
        kind: losses(
            {"kind": kind, **NEEDED.get(kind, {}), **({"beta": 0.37} if kind not in ("orpo", "mix") else {})}
        )
        for kind in members(Objective)
    }
    same = [
        (a, b)
        for a in loss_by_kind
        for b in loss_by_kind
        if a < b and np.allclose(loss_by_kind[a], loss_by_kind[b], atol=1e-6)
    ]
    one_loss = [("mapo", "sparsepo"), ("mapo", "tdpo1"), ("sparsepo", "tdpo1")]
    assert sorted(same) == one_loss, "told apart by where their masks come from"


def test_policy_weight_is_of_the_preference_alone():
    """Kills: an L1 that shrinks with the probability of the responses."""
    stats, masks = made_stats()

    def output(policy_weight):
        objective = {"kind": "sparsepo", "l1_reward": 0.3, "l1_kl": 0.2, "policy_weight": policy_weight}
        config = make_config(objective=objective)
        return make_objective(config, make_mask_source(config, spec_from_hf(GPT2)))(stats, masks, None)

    plain, weighed = output(False), output(True)
    l1_B, weight_B = plain.metrics["loss/l1"], weighed.metrics["loss/policy_weight"]
    assert (l1_B > 0.1).all() and (weight_B < 0.5).all()
    np.testing.assert_allclose(weighed.metrics["loss/l1"], l1_B, rtol=1e-6)
    np.testing.assert_allclose(weighed.loss_B, weight_B * (plain.loss_B - l1_B) + l1_B, rtol=1e-5)


MASKS = {
    "learned": {
        "sharing": "independent",
        "net": "simple_last",
        "layer_activation": "none",
        "mixer_activation": "znorm",
        "init": "ones",
        "on": "kl",
        "normalise": True,
    },
    "activation": {
        "groups": ["resid"],
        "mapping": "sigmoid",
        "official": True,
        "on": "reward",
        "normalise": True,
    },
    "ones": {"on": "kl"},
    "random": {"on": "kl", "normalise": True},
    "positional": {"decay": 0.5, "normalise": True},
    "confidence": {"model": "policy", "on": "reward"},
    "given": {"on": "reward", "normalise": True},
}


def masks_of(mask, family=NEOX, training=False):
    """The masks of a batch whose tokens, weights and models are apart."""
    spec = spec_from_hf(family | {"initializer_range": 0.5})
    config = make_config(policy={"config": family}, objective={"kind": "sparsepo", "mask": mask})
    source = make_mask_source(config, spec)
    graph, policy = split_module(Decoder(spec, rngs=nnx.Rngs(0)))
    reference = split_module(Decoder(spec, rngs=nnx.Rngs(1)))[1]
    batch = random_batch(pairs=3)
    batch = batch._replace(
        weights_BPT=np.random.default_rng(3).uniform(0, 2, batch.valid_BPT.shape).astype(np.float32)
    )
    keys = pair_keys(0, jnp.int32(0), batch.row_B)
    problem = Problem(graph, graph, source, dpo_loss, 0, attention="xla")  # of which less is to compile
    masks = jax.jit(lambda *inputs: forward(problem, *inputs, training=training)[1])(
        policy, source.init(nnx.Rngs(5)), reference, batch, keys
    )
    return np.stack(masks), batch.valid_BPT


@pytest.mark.parametrize("kind", slow_but(MASKS.keys() - {"activation", "random"}, MASKS))
def test_every_mask_can_be_built_and_its_knobs_move_it(kind):
    """Official hooks differ from the paper's in GPT-2 only."""
    family = GPT2 if kind == "activation" else NEOX
    plain = {"kind": kind}
    if kind == "learned":  # where masks start as ones, some activations change nothing
        plain["init"] = "official"
    base, valid_BPT = masks_of(plain, family)
    assert np.isfinite(base).all() and (base[:, ~valid_BPT] == 0).all() and (base != 0).any()
    if kind != "learned":
        np.testing.assert_array_equal(base[0], base[1])
    for knob, value in MASKS[kind].items():
        changed, _ = masks_of(plain | {knob: value}, family)
        if (kind, knob) == ("ones", "on"):  # the mask is one, and so is what stands in its place
            np.testing.assert_array_equal(changed, base)
        else:
            assert (changed != base).any(), f"objective.mask.{knob} changes nothing"
        if knob == "normalise":
            sums, counts = changed[0].sum(-1), valid_BPT.sum(-1)
            np.testing.assert_allclose(sums[sums > 0], counts[sums > 0], rtol=1e-5)
        if knob == "on":
            np.testing.assert_array_equal(changed[0 if value == "kl" else 1], valid_BPT)


def test_a_schedule_warms_up_and_ends_where_it_is_told():
    def schedule_of(peak, **schedule):
        config = make_config(
            po={"steps": 100, "optimizer": {"kind": "adamw", "learning_rate": peak}, "schedule": schedule}
        )
        return make_optimizer(config, config.po, 100, 16)[1]

    rate = schedule_of(2.0, kind="linear", warmup_steps=10, end=0.2)
    np.testing.assert_allclose(
        [rate(n) for n in (0, 4, 9, 10, 55, 100)], [0.2, 1.0, 2.0, 2.0, 1.2, 0.4], rtol=1e-6
    )
    cosine = schedule_of(1.0)
    np.testing.assert_allclose([cosine(9), cosine(55), cosine(100)], [1.0, 0.5, 0.0], atol=1e-6)
    constant = schedule_of(3.0, kind="constant", warmup_share=0.0)
    assert constant(0) == constant(99) == 3.0


def test_a_mask_moves_at_a_rate_that_suits_its_width_or_as_released_or_as_told():
    def mask_rates(**mask):
        config = make_config(
            objective={"kind": "sparsepo", "mask": {"kind": "learned", **mask}},
            po={"optimizer": {"kind": "adamw", "learning_rate": 1e-6}},
        )
        again = Config.model_validate(config.model_dump(mode="json"))  # as config.yaml of the run has it
        assert again.objective.mask == config.objective.mask
        return config.objective.mask.init, [
            optimizer_rates(config, config.po, 10, width).mask_peak for width in (30, 3000)
        ]

    assert mask_rates() == ("ones", [pytest.approx(1e-2), pytest.approx(1e-4)])
    assert mask_rates(official=True) == ("official", [1e-6, 1e-6])
    assert mask_rates(official=True, learning_rate=0.5, init="ones") == ("ones", [0.5, 0.5])
    assert mask_rates(learning_rate=0.5) == ("ones", [0.5, 0.5])


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "lion"])
def test_policy_and_masks_have_their_own_rate_and_decay(kind):
    """A mask rate of zero leaves masks still and moves the policy; decay reaches mask matrices alone."""
    weights = {
        "policy": {"embed.embedding": jnp.ones((4, 3))},
        "masks": {"common.weight": jnp.ones((2, 3)), "common.bias": jnp.ones(2)},
    }
    gradient = jax.tree.map(jnp.ones_like, weights)

    def moved(**mask):
        config = make_config(
            objective={"kind": "sparsepo", "mask": {"kind": "learned", **mask}},
            po={
                "steps": 10,
                "optimizer": {"kind": kind, "learning_rate": 0.1},
                "schedule": {"kind": "constant", "warmup_steps": 0},
            },
        )
        optimizer, _ = make_optimizer(config, config.po, 10, 16)
        updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        return updates

    still = moved(learning_rate=0.0)
    assert (still["policy"]["embed.embedding"] < 0).all() and not still["masks"]["common.weight"].any()
    mild, strong = moved(weight_decay=0.0), moved(weight_decay=0.5)
    assert (strong["masks"]["common.weight"] < mild["masks"]["common.weight"]).all()
    np.testing.assert_array_equal(strong["masks"]["common.bias"], mild["masks"]["common.bias"])
    np.testing.assert_array_equal(strong["policy"]["embed.embedding"], mild["policy"]["embed.embedding"])


def test_weight_decay_spares_biases_and_norms():
    policy = {
        "embed.embedding": jnp.ones((4, 3)),
        "blocks.up.bias": jnp.ones(3),
        "final_norm.scale": jnp.ones(3),
        "head_bias": jnp.ones(4),
        "blocks.up.lora.lora_a": jnp.ones((3, 2)),
    }
    weights = {"policy": policy, "masks": {}}
    config = make_config(
        po={
            "optimizer": {"kind": "adamw", "learning_rate": 0.1, "weight_decay": 0.5},
            "schedule": {"kind": "constant", "warmup_steps": 0},
        }
    )
    optimizer, _ = make_optimizer(config, config.po, 10, 16)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, weights), optimizer.init(weights), weights)
    assert {path for path, x in updates["policy"].items() if x.any()} == {
        "embed.embedding",
        "blocks.up.lora.lora_a",
    }


def test_lengths_default_to_what_the_model_holds():
    spec = spec_from_hf(GPT2)
    assert length_limits(make_config().data, spec.max_positions) == (32, 16)
    assert length_limits(make_config().data, None) == (2048, 1024)
    with pytest.raises(UserError, match="data.max_length: 40 tokens do not fit the model's 32 positions"):
        length_limits(make_config(data=PATHS["data"] | {"max_length": 40}).data, spec.max_positions)
    with pytest.raises(UserError, match="leaves no room for a response"):
        length_limits(
            make_config(data=PATHS["data"] | {"max_length": 20, "max_prompt_length": 20}).data,
            spec.max_positions,
        )


def test_longrope_says_why_it_has_fewer_positions_than_its_config():
    """The stretches of longer sequences hold for their prompts, too, which responses may share."""
    spec = spec_from_hf(LLAMA | {"rope_parameters": LONGROPE})
    assert length_limits(make_config().data, spec.max_positions, spec.positions_note) == (24, 12)
    with pytest.raises(UserError, match="do not fit the model's 24 positions .LongRoPE: .* set it to 24"):
        data = make_config(data=PATHS["data"] | {"max_length": 25}).data
        length_limits(data, spec.max_positions, spec.positions_note)


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_weights_and_stays_near():
    spec, mesh = spec_from_hf(GPT2), make_mesh(None, 1, 1)
    weights = split_module(Decoder(spec, rngs=nnx.Rngs(0)))[1]
    logp_by_dtype = {}
    for dtype in ("float32", "bfloat16"):
        config = make_config(compute={"dtype": dtype})
        graph = decoder_graph(spec, compute_dtype(config, mesh))
        problem = Problem(
            graph, graph, make_mask_source(make_config(objective={"kind": "dpo"}), spec), dpo_loss, 0
        )
        logp_by_dtype[dtype] = forward(problem, weights, {}, weights, random_batch(), None, training=False)[
            0
        ].logp_BPT
    assert logp_by_dtype["bfloat16"].dtype == jnp.float32
    assert (logp_by_dtype["bfloat16"] != logp_by_dtype["float32"]).any()
    np.testing.assert_allclose(logp_by_dtype["bfloat16"], logp_by_dtype["float32"], atol=0.05)


def test_attention_that_does_not_fit_is_refused():
    mesh = make_mesh(None, 1, 1)

    def choose(family, **compute):
        return choose_attention(make_config(compute=compute), (spec_from_hf(family),), mesh)

    assert choose(GPT2) == "blocks" and choose(GPT2, attention="xla") == "xla"
    for family, compute, message in (
        (
            GPT2,
            {"dtype": "float32"},
            "cudnn does not fit a model that computes in float32; take auto or xla, "
            "or compute.dtype=bfloat16",
        ),
        (GEMMA2, {"dtype": "bfloat16"}, "cudnn does not fit a model that caps its scores; take auto or xla"),
        (GPT2, {"dtype": "bfloat16"}, "cudnn runs on GPU, and these devices are cpu; take auto"),
    ):
        with pytest.raises(UserError, match=message):
            choose(family, attention="cudnn", **compute)
    for kernel, runs_on in (("splash", "TPU"), ("triton", "GPU")):
        problem = f"compute.attention: {kernel} runs on {runs_on}, and these devices are cpu; take auto"
        with pytest.raises(UserError, match=problem):
            choose(GPT2, attention=kernel)


def test_programs_of_several_cpu_devices_are_not_kept_on_disk(monkeypatch):
    """Read back, they wait for each other. Kills: a second run that hangs where the first did not."""
    for devices, is_kept in ((8, False), (1, True)):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        start_jax(make_config())
        assert jax.config.jax_enable_compilation_cache == is_kept
    jax.config.update("jax_enable_compilation_cache", False)
