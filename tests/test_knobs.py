"""Every knob outside `objective` and `data` moves what is made of it, or at least is read where it is needed.

Kills: a knob that is left behind on its way from the config to the code. Knobs of `objective` are in
test_build, those of `data` in test_data_knobs.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.configs import make_config
from helpers.program import run
from helpers.tiny import GPT2, QWEN3_MOE, pair_table
from sparsepo_jax.build.compute import choose_attention, compute_dtype, set_precision
from sparsepo_jax.build.data import is_shared, make_training_plan
from sparsepo_jax.build.lora import make_lora
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.optimizer import make_optimizer
from sparsepo_jax.build.sampling import make_sampling
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.tokenizer import make_tokenizer
from sparsepo_jax.build.weights import abstract_frozen
from sparsepo_jax.config.schema.base import Section, members
from sparsepo_jax.config.schema.compute import Compute, Head, Mesh
from sparsepo_jax.config.schema.generation import Generation
from sparsepo_jax.config.schema.models import BpeTokenizer, Reference
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import (
    Adafactor,
    AdamW,
    Lion,
    Logging,
    LoraSettings,
    Muon,
    Optimizer,
    RmsProp,
    Schedule,
    Training,
)
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.sharding.mesh import make_mesh
from sparsepo_jax.stages import training
from sparsepo_jax.train.rounding import rounding_words
from sparsepo_jax.train.trackers import About

STEPS = 12


def updates(config: Config) -> Any:
    """Weights after each of a few steps; of the changing gradients the first exceeds the default norm."""
    numbers = jnp.linspace(-1.0, 1.0, 6)
    policy = {"embed.embedding": numbers.reshape(2, 3), "blocks.up.kernel": numbers.reshape(1, 3, 2)}
    weights = {"policy": policy, "masks": {}}
    optimizer, _ = make_optimizer(config, config.po, STEPS, 16)
    state = optimizer.init(weights)

    @jax.jit
    def update(weights, state, n, scale, words):
        gradient = {
            **weights,
            "policy": {path: scale * jnp.cos(3.0 * x + n) for path, x in weights["policy"].items()},
        }
        change, state = optimizer.update(gradient, state, weights, words=words)
        return jax.tree.map(jnp.add, weights, change), state

    path = []
    for n in range(STEPS):
        weights, state = update(weights, state, n, 3.0 if n == 0 else 0.1, rounding_words(0, n))
        path.append(np.concatenate([np.ravel(x) for x in weights["policy"].values()]))
    return np.stack(path).tolist()


def batches(config: Config) -> Any:
    table = pair_table([([1] * (1 + n % 5), [2] * (1 + n % 7), [3]) for n in range(40)])
    plan = make_training_plan(config, "po", table, make_mesh(1, 8, 1))
    return plan.steps, plan.batch_size, plan.rows, plan.micro_steps


def adapters(config: Config) -> Any:
    return make_lora(config.po, "po", spec_from_hf(GPT2))


def problem(config: Config) -> Any:
    spec, mesh = spec_from_hf(GPT2), make_mesh(None, 1, 1)
    return make_problem(config, spec, spec, mesh, lora=make_lora(config.po, "po", spec))


def frozen(config: Config) -> Any:
    spec, mesh = spec_from_hf(GPT2), make_mesh(None, 1, 1)
    return jax.tree.leaves(abstract_frozen(config, "po", problem(config), spec, spec, mesh))


def held_state(config: Config) -> Any:
    spec, mesh = spec_from_hf(GPT2), make_mesh(None, 1, 1)
    return jax.tree.leaves(make_step(config, "po", problem(config), spec, STEPS, mesh).like)


def routed(config: Config) -> Any:
    """What is compared of a step's problem, of a mixture of experts."""
    spec, mesh = spec_from_hf(QWEN3_MOE), make_mesh(None, 1, 1)
    step = make_step(config, "po", make_problem(config, spec, spec, mesh), spec, STEPS, mesh)
    return jax.tree.structure(step.numbers.problem)


def settings_of_problem(config: Config) -> Any:
    """What is compared of a problem: its models, kernel and blocks of logits."""
    return jax.tree.structure(problem(config))


def sampling(config: Config) -> Any:
    return make_sampling(config, ())


def computing(config: Config) -> Any:
    mesh, spec = make_mesh(None, 1, 1), spec_from_hf(GPT2)
    before = jax.config.jax_default_matmul_precision
    set_precision(config, "gpu")
    precision = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", before)
    attention = choose_attention(config, (spec, spec), mesh)
    return compute_dtype(config, mesh), precision, is_shared(config), attention


def mesh_shape(config: Config) -> Any:
    axes = config.compute.mesh
    return dict(make_mesh(axes.data, axes.fsdp, axes.tensor, axes.slices).shape)


def vocabulary(config: Config) -> Any:
    return make_tokenizer(config.model_copy(update={"stages": ["inspect"]})).get_vocab()  # and keeps nothing


def metrics_log(config: Config) -> Any:
    """What trackers are told."""
    told: list[tuple[str, str, str]] = []

    def open_tracker(name: str, about: About) -> Any:
        told.append((name, about.project, about.name))
        return SimpleNamespace(close=lambda **ending: None)

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsepo_jax.train.log.open_tracker", open_tracker)
        run = SimpleNamespace(config=config, output_dir=Path(directory) / "run")
        run.output_dir.mkdir()
        with training._metrics_log(run, "po", SimpleNamespace(step=0), None, 1):
            pass
    return told


# A knob of a section: the section as it is, the knob's other value, what it moves.
Knob = tuple[dict[str, Any], Any, Callable[[Config], Any]]
OPTIMIZERS: dict[type[Section], dict[str, Knob]] = {
    AdamW: {
        "learning_rate": ({}, 0.5, updates),
        "b1": ({}, 0.5, updates),
        "b2": ({}, 0.5, updates),
        "eps": ({}, 1.0, updates),
        "weight_decay": ({}, 0.5, updates),
        "moments": ({}, "bfloat16", updates),
    },
    Adafactor: {"learning_rate": ({}, 0.5, updates), "weight_decay": ({}, 0.5, updates)},
    Lion: {
        "learning_rate": ({}, 0.5, updates),
        "b1": ({}, 0.2, updates),
        "b2": ({}, 0.2, updates),
        "weight_decay": ({}, 0.5, updates),
        "moments": ({}, "bfloat16", held_state),
    },
    Muon: {
        "learning_rate": ({}, 0.5, updates),
        "beta": ({}, 0.2, updates),
        "b1": ({}, 0.2, updates),
        "b2": ({}, 0.2, updates),
        "eps": ({}, 1.0, updates),
        "weight_decay": ({}, 0.5, updates),
        "moments": ({}, "bfloat16", updates),
    },
    RmsProp: {
        "learning_rate": ({}, 0.5, updates),
        "b2": ({}, 0.2, updates),
        "eps": ({}, 1.0, updates),
        "weight_decay": ({}, 0.5, updates),
        "moments": ({}, "bfloat16", updates),
    },
}
SECTIONS: dict[type[Section], tuple[str, dict[str, Knob]]] = {
    Schedule: (
        "po.schedule",
        {
            "kind": ({}, "linear", updates),
            "warmup_share": ({}, 0.5, updates),
            "warmup_steps": ({}, 7, updates),
            "end": ({}, 0.5, updates),
        },
    ),
    Training: (
        "po",
        {
            "epochs": ({}, 2.0, batches),
            "steps": ({}, 4, batches),
            "batch_size": ({}, 8, batches),
            "accumulation": ({}, 2, batches),
            "clip_norm": ({}, 0.5, updates),
            "lora": ({}, {}, adapters),
            "router_aux_coefficient": ({}, 0.1, routed),
            "optimizer": ({}, {"kind": "lion", "learning_rate": 0.1}, updates),
            "schedule": ({}, {"kind": "constant"}, updates),
        },
    ),
    LoraSettings: (
        "po.lora",
        {
            "targets": ({}, ["query"], adapters),
            "rank": ({}, 2, adapters),
            "alpha": ({}, 3.0, adapters),
            "dropout": ({}, 0.5, adapters),
            "rslora": ({}, True, adapters),
            "base": ({}, "bfloat16", frozen),
        },
    ),
    Reference: ("reference", {"dtype": ({}, "bfloat16", frozen)}),
    Generation: (
        "generation",
        {
            "max_new_tokens": ({}, 3, sampling),
            "temperature": ({}, 0.5, sampling),
            "top_k": ({}, 3, sampling),
            "top_p": ({}, 0.5, sampling),
            "samples": ({}, 3, sampling),
            "stop": ({}, ["."], sampling),
        },
    ),
    Compute: (
        "compute",
        {
            "dtype": ({}, "bfloat16", computing),
            "weights": ({}, "bfloat16", held_state),
            "offload": ({}, "optimizer", held_state),
            "precision": ({"dtype": "bfloat16"}, "tf32", computing),
            "remat": ({}, True, settings_of_problem),
            "unroll": ({}, True, settings_of_problem),
            "layout": ({}, "plain", computing),
            "attention": ({}, "xla", computing),
            "experts": ({}, "dense", settings_of_problem),
        },
    ),
    Head: (
        "compute.head",
        {
            "tokens": ({}, 64, settings_of_problem),
            "vocabulary": ({}, 64, settings_of_problem),
            "keep_logits": ({}, True, settings_of_problem),
        },
    ),
    BpeTokenizer: (
        "tokenizer",
        {
            "vocab_size": ({"kind": "bpe", "vocab_size": 300}, 280, vocabulary),
            "max_rows": ({"kind": "bpe", "vocab_size": 300}, 1, vocabulary),
        },
    ),
    Logging: (
        "logging",
        {
            "trackers": ({}, ["mlflow"], metrics_log),
            "project": ({"trackers": ["wandb"]}, "b", metrics_log),
            "name": ({"trackers": ["wandb"]}, "b", metrics_log),
        },
    ),
    Mesh: (
        "compute.mesh",
        {
            "data": ({"data": 1, "fsdp": None}, 2, mesh_shape),
            "fsdp": ({}, 4, mesh_shape),
            "tensor": ({}, 2, mesh_shape),
        },
    ),
}
MOVED = [
    ("po.optimizer", {"kind": kind}, name, knob)
    for kind, section in members(Optimizer).items()
    for name, knob in OPTIMIZERS[section].items()
] + [(place, {}, name, knob) for place, knobs in SECTIONS.values() for name, knob in knobs.items()]


def with_section(place: str, section: dict[str, Any]) -> Config:
    """A config with a section put at a dotted place.

    Its data make 5 batches; its learning rate moves weights.
    """
    changes: dict[str, Any] = section
    for name in reversed(place.split(".")):
        changes = {name: changes}
    po = {"batch_size": 8 if place != "po" else 16, "optimizer": {"kind": "adamw", "learning_rate": 0.1}}
    changes["po"] = {**po, **changes.get("po", {})}
    if place == "po.optimizer":
        changes["po"]["optimizer"] = {"learning_rate": 0.1, **section}
    defaults = {
        "tokenizer": {"kind": "bytes"},
        "data": {"train": [{"kind": "reviews", "rows": 20}]},
    }
    changes["logging"] = {"trackers": [], **changes.get("logging", {})}
    return make_config(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("place", "kind", "name", "knob"),
    MOVED,
    ids=["-".join([place, *kind.values(), name]) for place, kind, name, _ in MOVED],
)
def test_a_knob_moves_what_is_made_of_it(place, kind, name, knob):
    section, value, made = knob
    before, again, after = (
        made(with_section(place, {**kind, **section, **more})) for more in ({}, {}, {name: value})
    )
    assert before == again and before != after


# ---------------------------------------------------------------- the others are read

# Sections of which a small run has none, and the tests that move their knobs.
ELSEWHERE = {
    "PretrainedTokenizer": "test_checkpoint_directory",
    "Lexicon": "test_which_tokens",
    "HuggingFaceScorer": "test_pairs",
    "FunctionScorer": "test_pairs",
    "TestsScorer": "test_pairs",
    "CodeMeasure": "test_measures",
    "BertScore": "test_measures",
    "Harness": "test_harness",
    "Config.harness": "test_harness",
    "Reference.cache_dir": "test_reference_cache",
    "BestSettings": "test_best",
    "Config.round_reference": "test_rounds",
    "Evaluation.main": "test_evaluation_sets",
    "Export.hub_private": "test_hub",
    "Config.weigh": "test_weigh",
}
OTHER_TESTS = {
    f"sparsepo_jax.config.schema.{name}"
    for name in ("objectives", "objective_base", "unpaired", "masks", "data", "token_weights")
}


@pytest.fixture
def reads(monkeypatch):
    """(section, field) of every knob that code outside of the config room has read by name."""
    names: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def recording(self: Section, name: str) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("sparsepo_jax.") and not caller.startswith("sparsepo_jax.config.schema"):
            names.add((type(self).__name__, name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", recording, raising=False)
    return names


def all_sections(section: type[Section] = Section) -> set[type[Section]]:
    below = set(section.__subclasses__())
    return below.union(*(all_sections(each) for each in below)) if below else set()


def test_every_other_knob_is_read(tmp_path, reads):
    """By a run that has all optional parts.

    A field that is only copied with its section does not count as read.
    """
    reviews = {"kind": "reviews", "rows": 20}
    run(
        tmp_path,
        stages=["inspect", "sft", "po", "score", "eval", "generate", "pairs", "export", "measure", "report"],
        data={"prompts": [reviews], "holdout": {"share": 0.2}},
        po={"lora": {"rank": 2}, "eval_every_steps": 3, "steps": 3, "early_stopping": {}},
        checkpoint={"best": {}},
        scorer={"train": [reviews], "test": [reviews]},
        generation={"samples": 2, "max_new_tokens": 4},
        measure={"text": {"reference": None}},
    )
    moved = {(section.__name__, name) for section, knobs in OPTIMIZERS.items() for name in knobs}
    for section, (_, knobs) in SECTIONS.items():
        names = ("TextTraining", "PairTraining") if section is Training else (section.__name__,)
        moved |= {(name, knob) for name in names for knob in knobs}
    expected = {
        (section.__name__, name)
        for section in all_sections()
        if section.__module__ not in OTHER_TESTS and section.__name__ not in ELSEWHERE
        for name in section.model_fields.keys() - {"kind"}
        if section is not Training and f"{section.__name__}.{name}" not in ELSEWHERE
    }
    assert sorted(expected - moved - reads) == []
