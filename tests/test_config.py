"""Strict YAML, overrides, mistakes said together, the plan, and the command line around them."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparsepo_jax.config.load import ConfigError, json_schema, load_config, save_config
from sparsepo_jax.config.schema.base import Section
from sparsepo_jax.config.schema.data import Data, FileSource, Holdout, ReviewsSource
from sparsepo_jax.config.schema.masks import ActivationMask, LearnedMask, OnesMask, RandomMask
from sparsepo_jax.config.schema.models import Policy
from sparsepo_jax.config.schema.objectives import Dpo, MaPO, SparsePO
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.config.schema.training import AdamW, Lion, PairTraining
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.batching import BatchPlan
from sparsepo_jax.data.packing import Sizes
from sparsepo_jax.main import main
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.run.differences import drop_added
from sparsepo_jax.run.resume import Marks

ROOT = Path(__file__).parent.parent
GPT2 = {"model_type": "gpt2", "vocab_size": 10, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
# Embeddings 10*8 + 16*8. A block: attention 4*(64 + 8), MLP 8*32 + 32 + 32*8 + 8, two norms 4*8.
# The final norm 2*8.
GPT2_PARAMETERS = 80 + 128 + 2 * (288 + 552 + 32) + 16
REVIEWS = {"train": [{"kind": "reviews"}]}


@pytest.fixture
def load(tmp_path):
    def load_text(text, *overrides):
        file = tmp_path / "config.yaml"
        file.write_text("stages: [report]\noutput_dir: runs/x\n" + text)
        return load_config(file, overrides)

    return load_text


@pytest.fixture
def mistakes(load):
    def lines(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return caught.value.lines

    return lines


# ---------------------------------------------------------------- YAML


def test_numbers_and_words_are_read_as_yaml_1_2(load):
    text = (
        "po: {optimizer: {learning_rate: 1e-6}}\nobjective: {mask: {on: reward}}\nlogging: "
        "{project: 2024-01-01}"
    )
    config, notes = load(text)
    assert config.po.optimizer.learning_rate == 0.000001
    assert config.objective.mask.on == "reward"  # in YAML 1.1 the key `on` is true
    assert config.logging.project == "2024-01-01"
    assert notes == []


def test_a_duplicate_key_names_its_line(mistakes):
    (line,) = mistakes("seed: 1\npo: {}\nseed: 2")
    assert line == "line 5: the key seed is there twice"


@pytest.mark.parametrize(
    "text, line",
    [
        ("a: [1\nb: 2\n", "line 2: "),
        ("- 1\n- 2\n", "line 1: expected a mapping"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("a:\n\tb: 1\n", "line 2: a tab: indent with spaces"),
        ("a: %HOME%\n", "line 1: no text begins with %: quote it"),
        ("a: {{ x }}\n", "line 1: a list or mapping as a key: quote a text"),
        ("a: 1\n---\nb: 1\n", "line 2: a second document begins here"),
        ("a: *b", "line 1: "),
    ],
)
def test_a_file_that_is_no_yaml_mapping_gives_one_line_with_its_number(tmp_path, text, line):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert len(caught.value.lines) == 1 and caught.value.lines[0].startswith(line)


def test_a_missing_or_unreadable_file_gives_one_line(tmp_path):
    (tmp_path / "latin1.yaml").write_bytes(b"a: \xe9")
    (tmp_path / "utf16.yaml").write_bytes("seed: 1\n".encode("utf-16-le"))
    for name, said in {
        "none.yaml": "cannot read",
        "": "cannot read",
        "latin1.yaml": "not UTF-8",
        "utf16.yaml": "null bytes",
    }.items():
        with pytest.raises(ConfigError, match=said) as caught:
            load_config(tmp_path / name)
        assert len(caught.value.lines) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path):
    load_config(path)


def test_the_config_in_the_readme_loads(tmp_path):
    block = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(block)
    config, _ = load_config(tmp_path / "my.yaml")
    assert config.data.holdout.share == 0.1


# ---------------------------------------------------------------- mistakes


def test_all_mistakes_come_at_once_with_path_expectation_and_nearest_name(mistakes):
    lines = mistakes(
        """
objective: {betta: 1, mask: {net: simple_al}}
data: {train: [{path: 1}, {}], buckets: 9}
po: {batch_size: x, learning_rate: 1.0}
sft: {steps: 3, epochs: 2}
report: 3
"""
    )
    assert sorted(lines) == sorted(
        [
            "objective.betta: unknown key for kind sparsepo; did you mean beta?",
            "objective.mask.net: expected one of simple_all, simple_last, ml_all, ml_last, "
            "binary_all, binary_last; "
            "got 'simple_al'; did you mean simple_all?",
            'data.train.0.path: expected a string, got 1; quote it to give a string: "1"',
            "data.train.1.path: required, but missing",
            "data.buckets: expected less than or equal to 8, got 9",
            "po.batch_size: expected an integer, got 'x'",
            "po.learning_rate: unknown key; did you mean po.optimizer.learning_rate?",
            "sft: `epochs` and `steps` exclude each other: set one of them to null",
            "report: expected a mapping (key: value), got 3; its keys are pairs",
        ]
    )


def test_a_key_like_none_gets_the_known_ones_nearest_first(mistakes):
    assert mistakes("report: {zzz: 1}") == ["report.zzz: unknown key; known, the nearest first: pairs"]


def test_an_entry_of_a_list_is_checked_by_its_index(load, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "stages: [po, exprt]\nobjective: {kind: mapo, mask: {groups: [mlp, atn]}}"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert caught.value.lines == [
        "stages.1: expected one of inspect, sft, weigh, po, score, eval, generate, pairs, measure, harness, "
        "report, export; got 'exprt'; did you mean export?",
        "output_dir: required, but missing",
        "objective.mask.groups.1: expected one of mlp, attn, resid, logits; got 'atn'; did you mean attn?",
    ]


def test_a_wrong_kind_is_said_and_the_rest_is_checked_against_the_nearest(mistakes):
    objective = "objective: {kind: sparspo, l1_rewad: 1, mask: {kind: activatoin, mapping: 3, groops: []}}"
    lines = mistakes(objective + "\ndata: {train: [{kind: reviws, rws: 1}]}")
    nearest = {line.split(": ")[0]: line.partition("did you mean ")[2] for line in lines}
    assert nearest == {
        "objective.kind": "sparsepo?",
        "objective.l1_rewad": "l1_reward?",
        "objective.mask.kind": "activation?",
        "objective.mask.mapping": "",
        "objective.mask.groops": "groups?",
        "data.train.0.kind": "reviews?",
        "data.train.0.rws": "rows?",
    }


@pytest.mark.parametrize("kind", ["null", "[1]", "{a: 1}", "3", "true"])
def test_a_kind_that_is_no_word_is_a_mistake(mistakes, kind):
    (line,) = mistakes(f"tokenizer: {{kind: {kind}}}")
    assert line.startswith("tokenizer.kind: expected one of auto, pretrained, bytes, bpe, reviews; got ")


@pytest.mark.parametrize("path", ["po.steps", "seed", "objective.beta", "po.optimizer.learning_rate"])
def test_true_is_no_number(mistakes, path):
    """Kills: `steps: true` as one step."""
    assert mistakes("", f"{path}=true") == [f"{path}: expected a number, got true"]


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    for section in of.__subclasses__():
        yield section
        yield from sections(section)


def types_in(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(types_in, get_args(annotation)))


def test_true_is_no_number_in_any_section():
    """Kills: `weight_decay: true` as a weight decay of 1. Labels of a classifier may be texts, too."""
    numbers = {
        (section, name)
        for section in sections()
        for name, field in section.model_fields.items()
        if types_in(field.annotation) & {int, float} and not types_in(field.annotation) & {bool, str}
        if get_origin(field.annotation) is not list
    }
    assert len(numbers) > 100
    for section, name in numbers:
        with pytest.raises(ValidationError) as caught:
            section.model_validate({name: True})
        found = [error["msg"] for error in caught.value.errors() if error["loc"][0] == name]
        assert any(text.endswith("got true") for text in found), f"{section.__name__}.{name}: {found}"


def test_what_the_stages_lack_is_said_a_line_each(mistakes):
    lines = mistakes("", "stages=[po, sft, eval]")
    assert [line.split(": ")[0] for line in lines] == [
        "stages",
        "policy",
        "data.sft",
        "data.train",
        "data.eval",
    ]


def test_a_run_cannot_take_its_own_sft(mistakes):
    assert mistakes("", "sft.taken_from=runs/../runs/x/") == [
        "sft.taken_from: this is the run's own output_dir; name that of another run, or leave it out"
    ]


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    "override, value",
    [
        ("po.optimizer.learning_rate=1e-6", lambda c: c.po.optimizer.learning_rate == 1e-6),
        ("po.clip_norm=null", lambda c: c.po.clip_norm is None),
        ("po.clip_norm=", lambda c: c.po.clip_norm is None),
        (
            "data.train=[{path: b}, {path: c}]",
            lambda c: [source.path for source in c.data.train] == ["b", "c"],
        ),
        ("data.train.0.path=x=y", lambda c: c.data.train == [FileSource(path="x=y", split="dev")]),
        ("data.train.1.path=b", lambda c: [source.path for source in c.data.train] == ["a", "b"]),
        ("data.eval.0.path=b", lambda c: [source.path for source in c.data.eval] == ["b"]),
        ("data.holdout.share=0.5", lambda c: c.data.holdout.share == 0.5),
        ("objective={kind: dpo, beta: 2}", lambda c: c.objective == Dpo(kind="dpo", beta=2)),
        ("stages.0=inspect", lambda c: c.stages == ["inspect"]),
        ("policy.config.n_layer=3", lambda c: c.policy.config == {"n_layer": 3}),
    ],
)
def test_an_override_is_yaml_put_at_its_path(load, override, value):
    config, _ = load("data: {train: [{path: a, split: dev}]}\nobjective: {l1_kl: 1.0}", override)
    assert value(config)


def test_of_one_path_given_twice_the_last_holds(load):
    assert load("", "seed=1", "seed=2")[0].seed == 2


def test_an_aliased_section_is_overridden_alone(load):
    config, _ = load("sft: &t {batch_size: 8}\npo: *t", "po.batch_size=4")
    assert (config.sft.batch_size, config.po.batch_size) == (8, 4)


@pytest.mark.parametrize(
    "override, said",
    [
        ("seed", "seed: expected section.field=value"),
        ("=1", "=1: expected section.field=value"),
        ("po..steps=1", "po..steps=1: expected section.field=value"),
        ("data.train=[", "data.train: '[' is not YAML"),
        (
            "data.train.path=b",
            "data.train.path: data.train is a list: give an index, as in data.train.0.path",
        ),
        ("data.train.2.path=b", "data.train.2.path: data.train has 1 entries, so the highest index is 1"),
        ("seed.x=1", "seed.x: seed is 3, not a mapping"),
        ("objektive.beta=1", "objektive: unknown key; did you mean objective?"),
        ("output_dir=2024", 'output_dir: expected a string, got 2024; quote it to give a string: "2024"'),
    ],
)
def test_an_override_that_fits_nowhere_is_a_mistake(mistakes, override, said):
    (line,) = mistakes("seed: 3\ndata: {train: [{path: a}]}", override)
    assert line.startswith(said)


def test_mistakes_of_overrides_and_file_come_together(mistakes):
    assert len(mistakes("sed: 1", "b", "po.stepps=1", "objective.kind=dppo")) == 4


SPARSEPO = "objective: {l1_reward: 1e-3, beta: 0.5, mask: {init: ones, on: kl}}"


def test_an_overridden_kind_drops_what_the_new_kind_lacks_and_says_so(load):
    config, notes = load(SPARSEPO, "objective.kind=dpo")
    assert config.objective == Dpo(kind="dpo", beta=0.5)
    assert notes == [
        "objective.kind=dpo: dropped l1_reward, mask, meant for sparsepo; give as overrides what dpo should "
        "keep",
        "objective.kind=dpo: kept from the config: beta=0.5; by default dpo has beta=0.1",
    ]


def test_a_number_that_goes_over_to_a_kind_with_another_default_is_said(load):
    """Kills: the weight of a KL term that becomes, unsaid, a reward for each token of length."""
    text = "objective: {kind: tdpo2, beta: 0.1, alpha: 0.5}"
    config, notes = load(text, "objective.kind=rdpo")
    assert (config.objective.beta, config.objective.alpha) == (0.1, 0.5)
    assert notes == ["objective.kind=rdpo: kept from the config: alpha=0.5; by default rdpo has alpha=0.01"]
    assert load(text, "objective.kind=rdpo", "objective.alpha=0.01")[1] == []
    _, notes = load("po: {optimizer: {learning_rate: 1e-4, eps: 1e-8}}", "po.optimizer.kind=lion")
    assert "po.optimizer.kind=lion: kept from the config: learning_rate=0.0001" in notes[1]
    assert load("scorer: {path: here}", "scorer.kind=hf", "data.train.0.path=a")[1] == []


def test_a_mask_that_dpo_was_given_goes_over_to_any_objective(load):
    """Only the masks of sparsepo and mapo, which belong to these, stay behind."""
    config, notes = load("objective: {kind: dpo, l1_reward: 0.1, mask: {init: ones}}", "objective.kind=hinge")
    assert (config.objective.mask, config.objective.l1_reward, notes) == (LearnedMask(init="ones"), 0.1, [])
    config, _ = load(SPARSEPO, "objective.kind=dpo", "objective.mask.kind=ones")
    assert config.objective == Dpo(kind="dpo", beta=0.5, mask=OnesMask(kind="ones"))


def test_masks_and_l1_that_an_objective_cannot_use_are_refused_by_name(mistakes):
    """Weights of a KL term that is not there, L1 of no mask, and an objective that declares nothing."""
    assert mistakes("objective: {kind: simpo, l1_reward: 1}") == [
        "objective.l1_reward: there is no mask to be made sparse: set objective.mask"
    ]
    lines = mistakes("objective: {kind: simpo, l1_kl: 1, mask: {on: kl}}")
    assert [line.split(":")[0] for line in lines] == ["objective.mask.on", "objective.l1_kl"]
    assert all("objective simpo has no KL term" in line for line in lines)


@pytest.mark.parametrize(
    "objective, said",
    [
        ("kind: ipo, mask: {}", "l1_reward: objective ipo averages over the mask"),
        (
            "kind: mix, mask: {}, parts: [{objective: {kind: ipo}}, {weight: 0, objective: {}}]",
            "l1_reward: objective mix averages",
        ),
        ("mask: {mixer_activation: top_k}", "l1_reward: the mean of gate top_k is set by the gate"),
        ("kind: dpo, mask: {kind: ones}", "l1_reward: a mask of kind ones is not trained"),
        (
            "kind: dpo, mask: {normalise: true}",
            "l1_reward: with objective.mask.normalise the mask's mean is 1",
        ),
        ("kind: tdpo1, mask: {on: kl}", "l1_reward: with objective.mask.on=kl there is no such mask"),
    ],
)
def test_l1_that_has_no_mask_to_push_is_refused(mistakes, load, objective, said):
    """Kills: a mask that L1 shrinks to nothing under a mean, and L1 that only adds to the loss."""
    (line,) = mistakes(f"objective: {{{objective}, l1_reward: 1e-3}}")
    assert line.startswith(f"objective.{said}")
    load(f"objective: {{{objective}}}")
    load("objective: {kind: dpo, mask: {}, l1_reward: 1e-3}")
    load("objective: {kind: mix, l1_reward: 1, mask: {}, parts: [{objective: {}}, {objective: {kind: ipo}}]}")
    load("objective: {mask: {normalise: true}, l1_reward: 1e-3}")  # settings of sparsepo load as ever


def test_a_sum_of_objectives_refuses_what_is_not_its_parts(mistakes, load):
    """Masks and L1 of a part, weights of pairs for quantiles, and masks of parts that would take none."""
    parts = "[{objective: {mask: {}}}, {objective: {kind: aot}}]"
    lines = mistakes(f"objective: {{kind: mix, policy_weight: true, parts: {parts}}}")
    assert [line.split(": ")[0] for line in lines] == [
        "objective.parts.1.objective",
        "objective.parts.0.objective.mask",
    ]
    (line,) = mistakes("objective: {kind: mix, parts: [{objective: {kind: sparsepo}}]}")
    assert line.startswith("objective.parts.0.objective.kind: ")
    config, _ = load(
        "objective: {kind: mix, mask: {}, parts: [{objective: {kind: tdpo2}}, {objective: {}, weight: 2}]}"
    )
    assert config.objective.weighs.kl and config.objective.parts[1].objective == Dpo(kind="dpo")


def test_an_objective_that_says_nothing_about_token_weights_takes_no_mask(mistakes, monkeypatch):
    monkeypatch.setattr(Dpo, "weighs", "its tokens are counted, not summed")
    assert mistakes("objective: {kind: dpo, mask: {}}") == [
        "objective.mask: dpo takes no token mask: its tokens are counted, not summed; leave it out"
    ]


def test_an_overridden_kind_within_a_section_drops_only_there(load):
    config, notes = load(SPARSEPO, "objective.mask.kind=activation")
    assert config.objective == SparsePO(l1_reward=1e-3, beta=0.5, mask=ActivationMask(on="kl"))
    assert notes == ["objective.mask.kind=activation: dropped init, which activation does not have"]


@pytest.mark.parametrize(
    ("of_file", "changed", "mask"),
    [
        ("kind: sparsepo, mask: {kind: learned}", "mapo", ActivationMask()),
        (
            "kind: sparsepo, mask: {kind: learned, sharing: common, official: true}",
            "mapo",
            ActivationMask(official=True),
        ),
        ("kind: mapo, mask: {kind: activation, groups: [mlp], on: kl}", "sparsepo", LearnedMask(on="kl")),
        ("kind: sparsepo, mask: {kind: random}", "mapo", RandomMask(kind="random")),
    ],
)
def test_an_objective_that_is_known_by_its_mask_gets_it(load, of_file, changed, mask):
    """Kills: objective.kind=mapo, as the recipes write it, that trains a learned mask under MaPO's name."""
    config, notes = load(f"objective: {{{of_file}}}", f"objective.kind={changed}")
    assert config.objective.kind == changed and config.objective.mask == mask
    said = [note for note in notes if "becomes" in note]
    assert len(said) == (mask.kind != "random") and all(f"becomes {mask.kind}" in note for note in said)


def test_a_learned_mask_is_kept_under_mapo_by_its_name(load):
    text = "objective: {l1_kl: 1, mask: {kind: learned, init: official}}"
    config, notes = load(text, "objective.kind=mapo", "objective.mask.kind=learned")
    assert config.objective == MaPO(kind="mapo", mask=LearnedMask(init="official"))
    assert notes == ["objective.kind=mapo: dropped l1_kl, which mapo does not have"]
    written_out, said = load(text, "objective.kind=mapo", "objective.mask={kind: learned, init: official}")
    assert written_out.objective == config.objective and said == notes


def test_a_mask_of_no_kind_follows_the_default_of_its_objective(load):
    assert load("objective: {kind: mapo, mask: {official: true}}")[0].objective.mask == ActivationMask(
        official=True
    )
    config, notes = load(SPARSEPO, "objective.kind=mapo", "objective.mask.official=true")
    assert config.objective == MaPO(kind="mapo", beta=0.5, mask=ActivationMask(on="kl", official=True))
    assert notes[1] == "objective.mask.kind=activation: dropped init, which activation does not have"


def test_an_overridden_kind_in_a_list_drops_too(load):
    config, notes = load(
        "data: {train: [{path: a}, {path: b, weight: 2}]}", "data.train.1.rows=9", "data.train.1.kind=reviews"
    )
    assert config.data.train == [FileSource(path="a"), ReviewsSource(kind="reviews", rows=9, weight=2)]
    assert notes == ["data.train.1.kind=reviews: dropped path, which reviews does not have"]


def test_the_same_kind_again_drops_nothing(load):
    assert load(SPARSEPO, "objective.kind=sparsepo")[0] == load(SPARSEPO)[0]
    assert load(SPARSEPO, "objective.kind=sparsepo")[1] == []


def test_keys_of_the_command_line_are_never_dropped_whatever_their_order(load, mistakes):
    for first, second in (
        ("objective.kind=dpo", "objective.l1_kl=1"),
        ("objective.l1_kl=1", "objective.kind=dpo"),
    ):
        (line,) = mistakes(SPARSEPO, first, second)
        assert line.startswith("objective.l1_kl: there is no mask")
    for overrides in (
        ["objective.kind=tdpo2", "objective.alpha=0.25"],
        ["objective.alpha=0.25", "objective.kind=tdpo2"],
    ):
        assert load(SPARSEPO, *overrides)[0].objective.alpha == 0.25
    for overrides in (
        ["objective.kind=ipo", "objective={kind: dpo}"],
        ["objective={kind: dpo}", "objective.kind=ipo"],
    ):
        config, notes = load(SPARSEPO, *overrides)
        assert (config.objective.kind, config.objective.beta, notes) == ("ipo", 0.1, [])


def test_a_misspelt_key_of_the_file_is_not_dropped(mistakes):
    (line,) = mistakes("objective: {l1_reward: 1, betta: 2}", "objective.kind=dpo")
    assert line == "objective.betta: unknown key for kind dpo; did you mean beta?"


# ---------------------------------------------------------------- saving, schema

words = st.sampled_from(
    ["null", "\x85", "a\u2028b", "on", "1e-6", "2024-01-01", "0o7", "~", "a: b", "- x", " #"]
) | st.text(max_size=8)
# Refused: names of users and of variables that are not there, commands of the shell, line ends and the like.
refused = {"$", "`", *map(chr, range(ord(" ")))}
paths = words.filter(lambda path: path == "~" or not (path.startswith("~") or refused & set(path)))
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False) | st.sampled_from(
    [1e-6, 5e-7, 1e22]
)
rates = positive.filter(lambda rate: rate <= 10)


@settings(max_examples=40, deadline=None)  # no deadline: the machine may be busy
@given(
    objective=st.builds(SparsePO, beta=positive, mask=st.builds(LearnedMask, learning_rate=rates | st.none()))
    | st.builds(Dpo, kind=st.just("dpo"), beta=positive),
    optimizer=st.builds(AdamW, learning_rate=rates)
    | st.builds(Lion, kind=st.just("lion"), learning_rate=rates),
    source=st.builds(
        FileSource, path=paths, columns=st.dictionaries(words, words, max_size=2), weight=positive
    ),
    content=st.none()
    | st.dictionaries(words, positive | words | st.booleans() | st.integers() | st.none(), max_size=3),
    name=paths,
)
def test_a_saved_config_reloads_equal(tmp_path_factory, objective, optimizer, source, content, name):
    config = Config(
        stages=["report"],
        output_dir=name,
        objective=objective,
        po=PairTraining(optimizer=optimizer),
        policy=Policy(config=content),
        data=Data(train=[source]),
    )
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    save_config(config, path)
    assert load_config(path) == (config, [])


def test_the_schema_knows_every_section_and_forbids_others():
    schema = json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)
    assert "A Hugging Face directory" in json.dumps(schema["$defs"]["Policy"])
    assert json.loads(json.dumps(schema)) == schema


def test_every_field_of_the_schema_has_a_description():
    schema = json_schema()
    bare = {
        f"{name}.{field}"
        for name, section in {"": schema, **schema["$defs"]}.items()
        for field, about in section.get("properties", {}).items()
        if not about.get("description", "").strip()
    }
    assert not bare


# ---------------------------------------------------------------- the plan


def plan_of(**sections):
    """The lines of the plan by their names; the second line of a stage is called `po bytes`."""
    defaults = {"stages": ["sft", "po", "eval"], "output_dir": "runs/x", "policy": {"config": GPT2}}
    lines, name = {}, ""
    for line in make_plan_text(Config.model_validate(defaults | sections)).split("\n"):
        name = line[:12].strip() or f"{name} bytes"
        lines[name] = line[12:]
    return lines


def test_what_a_stage_has_no_use_for_is_not_in_its_plan():
    sft = [{"kind": "reviews", "rows": 5, "seed": 0}]
    compared = {"reference", "objective", "mask"}
    assert compared.isdisjoint(plan_of(stages=["sft"], data={"sft": sft}))
    assert compared <= plan_of(stages=["sft", "po"], data={"sft": sft, "train": sft}).keys()


def test_a_directory_under_a_file_is_a_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    sft = {"stages": ["sft"], "data": {"sft": [{"kind": "reviews", "rows": 5, "seed": 0}]}}
    for sections in (
        {"output_dir": str(tmp_path / "file" / "run")},
        {"export": {"path": str(tmp_path / "file")}},
    ):
        with pytest.raises(ConfigError, match=r"file is a file: take another path"):
            plan_of(**sft, **sections)
    plan_of(**sft, output_dir=str(tmp_path / "not" / "yet"))


@pytest.fixture
def data(tmp_path):
    """Rows: sft 3 + half of 4, train 10, eval 7.

    Two files of three kinds end without a newline or with an empty line.
    """
    (tmp_path / "three.jsonl").write_text("{}\n{}\n{}")
    with gzip.open(tmp_path / "four.jsonl.gz", "wt") as file:
        file.write("{}\n{}\n{}\n{}\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": list("abcdefghij")}), tmp_path / "ten.parquet")
    shard = tmp_path / "seven" / "test"
    shard.mkdir(parents=True)
    table = pyarrow.table({"prompt": list("abcdefg")})
    with (
        pyarrow.OSFile(str(shard / "data.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=3)
    (shard / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (tmp_path / "seven" / "dataset_dict.json").write_text('{"splits": ["test"]}')

    def path(name):
        return str(tmp_path / name)

    return {
        "sft": [{"path": path("three.jsonl")}, {"path": path("four.jsonl.gz"), "weight": 0.5}],
        "train": [{"path": path("ten.parquet")}],
        "eval": [{"path": path("seven"), "split": "test"}],
    }


def test_the_plan_counts_rows_steps_tokens_parameters_and_bytes(data):
    plan = plan_of(data=data, sft={"batch_size": 2, "epochs": 1.5}, po={"batch_size": 4, "steps": 1000})
    mask = 2 * (8 + 1) + 2 + 2 * 8
    assert f"gpt2, {GPT2_PARAMETERS:,} parameters" in plan["policy"]
    assert f"{mask} parameters" in plan["mask"]
    # ceil(1.5 * ceil(5 / 2)) steps; 2 rows of 16 positions; 4 pairs of two responses of 16
    assert plan["sft"] == "5 rows an epoch, 5 steps of 2 rows, at most 32 tokens a step"
    assert plan["po"] == "10 pairs an epoch, 1,000 steps of 4 pairs, at most 128 tokens a step"
    assert plan["evaluation"] == "7 pairs"
    kb = 4 * GPT2_PARAMETERS / 1e3
    cast = kb - 2 * (2 * 12 * 8 * 8) / 1e3  # the matrices of blocks; a tied head is an embedding
    assert plan["sft bytes"] == (
        f"bytes per device: weights {kb:.1f} kB, gradient {kb:.1f} kB (GPU, TPU: {cast:.1f} kB), "
        f"optimizer {2 * kb:.1f} kB"
    )


def test_an_sft_of_another_run_is_said_in_the_plan_and_must_be_there(data, tmp_path):
    finished = {
        "stages": ["sft", "po", "eval"],
        "output_dir": str(tmp_path / "first"),
        "policy": {"config": GPT2},
        "data": data,
    }
    sections = {
        "data": data,
        "sft": {"taken_from": str(tmp_path / "first"), "batch_size": 9},
        "compute": {"mesh": {"fsdp": 2}},
        "po": {"batch_size": 8},
    }
    with pytest.raises(
        ConfigError,
        match=(
            "sft.taken_from: expected the output_dir of a run that has finished its stage sft, found none in"
        ),
    ):
        plan_of(**sections)
    (tmp_path / "first/sft/final").mkdir(parents=True)
    Marks(Config.model_validate(finished)).mark("sft", 1.0)
    with pytest.raises(
        ConfigError,
        match=(
            "holds stage sft with other settings: sft.batch_size; set them back, or leave out sft.taken_from"
        ),
    ):
        plan_of(**sections)
    Marks(Config.model_validate(finished | {"sft": {"batch_size": 9}})).mark("sft", 1.0)
    plan = plan_of(
        **sections
    )  # a batch that the mesh cannot cut is nothing to a run that does not train on it
    assert plan["sft"] == f"that of {tmp_path / 'first'}" and "sft bytes" not in plan


def test_the_plan_counts_bytes_per_device():
    wide = {
        **GPT2,
        "n_embd": 1000,
        "n_positions": 1,
        "vocab_size": 976_000,
    }  # 976 M embeddings, 24 M in the blocks
    weights = 976e6 + 1000 + 2 * (12 * 1e6 + 13 * 1000) + 2000

    def mb(number):
        return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"

    sections = {"stages": ["po"], "policy": {"config": wide}, "data": REVIEWS, "objective": {"kind": "dpo"}}
    float32 = {"compute": {"dtype": "float32"}}
    for optimizer, held in (
        ("adamw", 2 * weights),
        ("lion", weights),
        ("rmsprop", weights),
        ("muon", 2 * weights - 24e6),
    ):
        said = plan_of(**sections, **float32, po={"optimizer": {"kind": optimizer}})["po bytes"]
        assert said == (
            f"bytes per device: weights {mb(4 * weights)}, gradient {mb(4 * weights)}, "
            f"optimizer {mb(4 * held)}, reference {mb(4 * weights)}"
        )
    assert (
        "optimizer about 8.0 MB" in plan_of(**sections, po={"optimizer": {"kind": "adafactor"}})["po bytes"]
    )
    matrices, adapters = 24e6, 2 * 4 * 2 * (1000 + 1000)  # 2 layers, rank 4, queries and values
    for base, held in (
        ("float32", weights),
        ("bfloat16", weights / 2),
        ("int8", weights - matrices + matrices / 4),
        ("nf4", weights - matrices + matrices / 8),
    ):
        lora = {"lora": {"targets": ["query", "value"], "rank": 4, "base": base}}
        said = plan_of(**sections, **float32, po=lora)["po bytes"]
        assert said.startswith(
            f"bytes per device: weights {4 * adapters / 1e3:.1f} kB, gradient {4 * adapters / 1e3:.1f} kB, "
            f"optimizer {8 * adapters / 1e3:.1f} kB, base ({base}) "
        )
        assert said.endswith(mb(4 * held)) and ("about" in said) == (base in ("int8", "nf4"))
    plan = plan_of(**sections, compute={"mesh": {"data": 3, "fsdp": 4, "tensor": 2}}, po={"batch_size": 48})
    assert plan["devices"] == "24 (data 3 x fsdp 4 x tensor 2)"
    assert f"weights {mb(4 * weights / 8)}," in plan["po bytes"] and plan["po bytes"].endswith(
        "(sharded over fsdp x tensor = 8)"
    )
    plan = plan_of(**sections, compute={"mesh": {"data": 1, "fsdp": None}})
    assert plan["devices"] == "unknown (data 1 x fsdp free x tensor 1)"
    assert f"weights {mb(4 * weights)}," in plan["po bytes"] and plan["po bytes"].endswith(
        "(as if fsdp, which is free, were 1)"
    )


def test_the_plan_counts_the_bytes_of_what_is_held_in_bfloat16():
    """2 bytes for matrices, 4 for norms and biases. With one micro-step the gradient has the type of
    activations, with several float32."""
    matrices = 2 * 12 * 8 * 8 + 26 * 8  # of blocks, tokens and positions
    vectors = GPT2_PARAMETERS - matrices
    sections = {"stages": ["po"], "data": REVIEWS, "objective": {"kind": "dpo"}}

    def kb(number):
        return f"{number / 1e3:.1f} kB"

    half, full = 2 * matrices + 4 * vectors, 4 * GPT2_PARAMETERS
    held = {"compute": {"weights": "bfloat16", "dtype": "bfloat16"}, "reference": {"dtype": "float32"}}
    said = plan_of(**sections, **held, po={"optimizer": {"moments": "bfloat16"}})["po bytes"]
    assert said == (
        f"bytes per device: weights {kb(half)}, gradient {kb(half)}, optimizer {kb(2 * half)}, "
        f"reference {kb(full)}"
    )
    said = plan_of(**sections, compute={"dtype": "bfloat16"}, po={"accumulation": 2})["po bytes"]
    assert said == (
        f"bytes per device: weights {kb(full)}, gradient {kb(full)}, optimizer {kb(2 * full)}, "
        f"reference {kb(half)}"
    )
    said = plan_of(**sections)["po bytes"]
    assert said.endswith(f"reference {kb(full)} (GPU, TPU: {kb(half)})")
    lora = {"lora": {"rank": 2}, "optimizer": {"moments": "bfloat16"}}
    adapters = 2 * 2 * (4 * 16 + 2 * 40)
    assert (
        f"weights {kb(4 * adapters)}, gradient {kb(4 * adapters)}, optimizer {kb(4 * adapters)}"
        in (plan_of(**sections, compute={"weights": "bfloat16", "dtype": "float32"}, po=lora)["po bytes"])
    )


@pytest.mark.parametrize(
    "mask, parameters",
    [
        ({"net": "simple_all"}, 2 * 9 + 2 + 16),
        ({"net": "binary_all"}, 2 * 9 + 2 + 16),
        ({"net": "simple_last"}, 9),
        ({"net": "binary_last"}, 9),
        ({"net": "ml_last"}, 8 * 200 + 200 + 200 + 1),
        ({"net": "ml_all"}, 2 * 2001 + 2 + 16),
        ({"net": "simple_last", "sharing": "independent"}, 18),
        ({"net": "simple_last", "sharing": "independent", "on": "kl"}, 9),
    ],
)
def test_the_plan_counts_learned_masks(mask, parameters):
    assert (
        f": {parameters:,} parameters"
        in plan_of(stages=["po"], data=REVIEWS, objective={"mask": mask})["mask"]
    )


@pytest.mark.parametrize(
    "sources", [[(11, 1.5)], [(5, 0.5), (5, 0.5)], [(7, 0.1), (35, 0.1), (4, 1.0)], [(5, 0.3), (3, 2.5)]]
)
def test_the_rows_of_an_epoch_are_those_that_its_batches_have(tmp_path, sources):
    """Kills: each source rounded by itself, or with the rows that it has in full."""
    files = [
        {"path": str(tmp_path / f"{n}.jsonl"), "weight": weight} for n, (_, weight) in enumerate(sources)
    ]
    for file, (rows, _) in zip(files, sources, strict=True):
        Path(file["path"]).write_text("{}\n" * rows)
    weights = np.repeat([weight for _, weight in sources], [rows for rows, _ in sources])
    plan = BatchPlan(
        Sizes(*np.ones((4, len(weights)), np.int64)),
        weights.astype(np.float32),
        **{"batch_size": 1, "rows": 1, "strata": 1, "buckets": 1, "seed": 0, "shuffle": True},
    )
    said = plan_of(stages=["po"], data={"train": files}, po={"batch_size": 1})["po"]
    assert said.startswith(f"{plan.steps} pairs an epoch, {plan.steps} steps of 1 pairs")


def test_weights_count_only_where_rows_are_trained_on_and_rows_that_may_be_left_out_make_counts_about(data):
    twice = [source | {"weight": 2} for source in data["train"]]
    plan = plan_of(data={**data, "train": twice, "eval": twice}, po={"batch_size": 4})
    assert plan["po"].startswith("20 pairs an epoch") and plan["evaluation"] == "10 pairs"
    halves = [source | {"weight": 0.5} for source in data["train"]]  # 5 of 10 rows an epoch
    for holdout, kept, held_out in (({"share": 0.4}, 3, 4), ({"prompts": 6}, 2, 6)):
        plan = plan_of(data={"train": halves, "sft": data["sft"], "holdout": holdout}, po={"batch_size": 1})
        assert plan["po"].startswith(f"about {kept} pairs an epoch")
        assert plan["evaluation"] == f"about {held_out} pairs"
    plan = plan_of(data={**data, "on_bad_row": "skip"}, po={"batch_size": 4})
    assert plan["po"].startswith("about 10 pairs an epoch, about 3 steps of 4 pairs")
    assert plan["evaluation"].startswith("about ")


def test_a_holdout_makes_the_rows_about_and_gives_evaluation_its_share(data):
    plan = plan_of(data={**data, "holdout": {"share": 0.2}}, po={"batch_size": 4})
    assert plan["po"].startswith("about 8 pairs an epoch, about 2 steps of 4 pairs")
    assert plan["evaluation"] == "about 9 pairs"
    assert plan_of(data=data, evaluation={"max_pairs": 3})["evaluation"] == "3 pairs"
    plan = plan_of(data={**data, "holdout": {"prompts": 3}}, po={"batch_size": 4})
    assert plan["po"].startswith("about 7 pairs an epoch") and plan["evaluation"] == "about 10 pairs"
    with pytest.raises(
        ConfigError, match=r"holdout.prompts: 10 leaves nothing of data.train's 10 rows to train"
    ):
        plan_of(data={**data, "holdout": {"prompts": 10}})


@pytest.mark.parametrize("holdout", [{}, {"seed": 1}, {"share": 0.1, "prompts": 5}])
def test_a_holdout_is_a_share_or_a_number(mistakes, holdout):
    written = json.dumps(holdout)
    assert mistakes(f"data: {{holdout: {written}}}") == [
        "data.holdout: expected share or prompts, and null for the other"
    ]


@pytest.mark.parametrize("name, opened", [("a.json", open), ("a.JSON.gz", gzip.open)])
def test_a_json_file_is_a_list_or_lines(tmp_path, name, opened):
    for text in ('[{"text": "a"},\n {"text": "b"}]', '{"text": "a"}\n\n{"text": "b"}\n'):
        with opened(tmp_path / name, "wt") as file:
            file.write(text)
        assert plan_of(stages=["sft"], data={"sft": [{"path": str(tmp_path / name)}]})["sft"].startswith(
            "2 rows an epoch"
        )


def test_rows_of_a_large_file_are_estimated(data, monkeypatch):
    monkeypatch.setattr("sparsepo_jax.run.row_counts._READ_AT_MOST_BYTES", 4)
    assert plan_of(data={**data, "sft": data["sft"][:1]})["sft"].startswith(
        "about 3 rows an epoch, about 1 steps"
    )


def test_what_only_network_or_data_tell_is_unknown(data):
    plan = plan_of(
        policy={"path": "owner/name"}, data={**data, "train": [{"path": "owner/data"}, {"kind": "reviews"}]}
    )
    assert plan["policy"] == "owner/name: family unknown, unknown parameters"
    assert (
        plan_of(stages=["export"], policy={"path": "gpt2"})["policy"]
        == "gpt2: family unknown, unknown parameters"
    )
    assert "unknown parameters" in plan["mask"]
    assert plan["devices"].startswith("unknown")
    assert plan["po"].startswith("unknown pairs an epoch, unknown steps of 64 pairs, at most 262,144 tokens")
    assert plan["po bytes"] == (
        "bytes per device: weights unknown, gradient unknown, optimizer unknown, reference unknown"
    )


@pytest.mark.parametrize(
    "tokenizer, size",
    [
        ({"kind": "bytes"}, 257),
        ({"kind": "bpe", "vocab_size": 300}, 300),
        ({"kind": "pretrained", "path": "owner/name"}, None),
    ],
)
def test_a_shape_without_vocabulary_takes_the_tokenizers(tokenizer, size):
    shape = {key: value for key, value in GPT2.items() if key != "vocab_size"}
    plan = plan_of(stages=["po"], policy={"config": shape}, tokenizer=tokenizer, data=REVIEWS)
    parameters = "unknown" if size is None else f"{GPT2_PARAMETERS + (size - 10) * 8:,}"
    assert f"gpt2, {parameters} parameters" in plan["policy"]


def test_the_reviews_tokenizer_gives_its_vocabulary():
    from sparsepo_jax.data.reviews import reviews_vocabulary

    shape = {key: value for key, value in GPT2.items() if key != "vocab_size"}
    plan = plan_of(stages=["po"], policy={"config": shape}, tokenizer={"kind": "reviews"}, data=REVIEWS)
    assert f"{GPT2_PARAMETERS + (len(reviews_vocabulary()) - 10) * 8:,} parameters" in plan["policy"]


def test_a_local_model_is_read_and_the_reference_counted_apart(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, "n_layer": 1}))
    plan = plan_of(stages=["po"], data=REVIEWS, reference={"path": str(tmp_path)})
    assert (
        f"{GPT2_PARAMETERS:,} parameters" in plan["policy"]
        and f"{GPT2_PARAMETERS - 872:,} parameters" in plan["reference"]
    )
    assert f": {9 + 1 + 16} parameters" in plan["mask"]  # masks read the reference, of one layer here


def test_all_that_lacks_or_does_not_fit_on_disk_is_said_together(tmp_path, data):
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl.gz", "c.parquet")]
    for path in paths:
        path.write_text("no such format\n")
    with pytest.raises(ConfigError) as caught:
        plan_of(
            policy={"path": str(tmp_path / "empty")},
            reference={"path": "./absent"},
            tokenizer={"kind": "pretrained", "path": "./absent/tokenizer"},
            data={
                "sft": [{"path": str(path)} for path in paths],
                "train": [{"path": "owner/name.jsonl"}],
                "eval": [{**data["eval"][0], "split": "train"}],
            },
        )
    expected = {
        "policy.path": "config.json",
        "reference.path": "no such file",
        "tokenizer.path": "no such file",
        "data.sft.0.path": "expected a file ending in .jsonl",
        "data.sft.1.path": "not a whole gzip file",
        "data.sft.2.path": "not a readable parquet file",
        "data.train.0.path": "no such file",
        "data.eval.0.path": "no split 'train', only test",
    }
    said = dict(line.split(": ", 1) for line in caught.value.lines)
    assert said.keys() == expected.keys()
    assert all(part in said[place] for place, part in expected.items())


def test_a_model_that_cannot_run_or_hold_the_length_is_a_mistake():
    with pytest.raises(ConfigError, match="policy.config: model_type: unknown architecture 'gpt9'"):
        plan_of(stages=["export"], policy={"config": {**GPT2, "model_type": "gpt9"}})
    with pytest.raises(ConfigError, match="data.max_length: 17 tokens do not fit the model's 16 positions"):
        plan_of(stages=["export"], data={"max_length": 17})
    with pytest.raises(
        ConfigError, match="data.max_prompt_length: 16 leaves no room for a response within 16 tokens"
    ):
        plan_of(stages=["export"], data={"max_prompt_length": 16})


def test_a_batch_that_cannot_be_cut_over_the_mesh_is_a_mistake():
    with pytest.raises(
        ConfigError, match=r"^po.batch_size: 64 rows in 2 micro-step\(s\) .* take a multiple of 24"
    ):
        plan_of(stages=["po"], data=REVIEWS, compute={"mesh": {"data": 3, "fsdp": 4}}, po={"accumulation": 2})


def test_vocabularies_that_do_not_fit_are_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="policy.config.vocab_size: needed where there is no tokenizer"):
        plan_of(stages=["export"], policy={"config": {"model_type": "gpt2"}})
    with pytest.raises(ConfigError, match="tokenizer: it has 257 tokens, the policy only 10"):
        plan_of(stages=["export"], tokenizer={"kind": "bytes"})
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, "vocab_size": 11}))
    with pytest.raises(ConfigError, match="reference.path: a vocabulary of 11, but the policy has one of 10"):
        plan_of(stages=["export"], reference={"path": str(tmp_path)})


def test_files_of_stages_that_do_not_run_may_lack(data):
    absent = [{"path": "absent.jsonl"}]
    evaluated = plan_of(
        stages=["eval"], objective={"kind": "dpo"}, data={**data, "sft": absent, "train": absent}
    )
    assert evaluated["evaluation"] == "7 pairs"
    with pytest.raises(ConfigError, match="data.train.0.path: no such file"):
        plan_of(stages=["inspect"], data={"train": absent})


# ---------------------------------------------------------------- the command

COMPLETE = f"""
stages: [sft, po]
output_dir: runs/x
policy: {{config: {json.dumps(GPT2)}}}
data: {{sft: [{{kind: reviews}}], train: [{{kind: reviews, rows: 128}}]}}
"""


@pytest.fixture
def complete(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(COMPLETE)
    return str(path)


def test_check_prints_the_plan_and_the_notes(complete, capsys):
    assert (
        main(["--config", complete, "data.train.0.kind=file", "--check", "data.train.0.path=owner/name"]) == 0
    )
    out = capsys.readouterr().out
    assert out.startswith(
        "note: data.train.0.kind=file: dropped rows, which file does not have\nstages      sft, po\n"
    )
    assert "unknown pairs an epoch" in out


def test_mistakes_go_to_stderr_one_a_line_and_exit_2(complete, capsys):
    for options in ([], ["--check"]):
        assert main(["--config", complete, "sed=1", *options, "po.stepps=2"]) == 2
        out, err = capsys.readouterr()
        assert (
            out == ""
            and err.split("\n")[0] == f"{complete}: 2 mistakes"
            and len(err.strip().split("\n")) == 3
        )
    assert main(["--config", complete, "data.train.0={path: absent.jsonl}", "--check"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f"{complete}: 1 mistake\ndata.train.0.path: no such file or directory: absent.jsonl"
    )


def test_schema_prints_json(capsys):
    assert main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_without_a_config_the_command_line_is_wrong(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2 and "--config FILE is required" in capsys.readouterr().err


@pytest.fixture
def run_with(monkeypatch, complete):
    """The command, with something else in place of the stages."""

    def run(run_stages):
        stages = ModuleType("sparsepo_jax.stages.runner")
        stages.run_stages = run_stages
        monkeypatch.setitem(sys.modules, "sparsepo_jax.stages.runner", stages)
        return main(["--config", complete, "objective.kind=dpo"])

    return run


def test_the_stages_get_the_config_and_give_the_exit_status(run_with):
    configs = []
    assert run_with(lambda config, stop, began_s: configs.append(config) or 7) == 7
    assert [config.objective.kind for config in configs] == ["dpo"]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("no data; mend it"), 1, "error: no data; mend it\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues the run\n"),
    ],
)
def test_a_failed_and_an_interrupted_run_end_in_one_line(run_with, capsys, error, code, said):
    def run_stages(config, stop, began_s):
        raise error

    assert run_with(run_stages) == code
    assert capsys.readouterr().err == said


def test_check_takes_no_accelerator_runtime(complete):
    program = f"""
import sys
from sparsepo_jax.main import main
code = main(["--config", {complete!r}, "--check", "tokenizer.kind=bytes", "policy.config.vocab_size=257"])
heavy = {{"jax", "jaxlib", "flax", "optax", "orbax", "grain"}}
heavy |= {{"transformers", "datasets", "torch", "tokenizers"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(code)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def test_help_shows_examples_without_loading_even_the_schema():
    program = """
import sys
from sparsepo_jax.main import main
try:
    main(["--help"])
except SystemExit:
    assert "pydantic" not in sys.modules and "ruamel" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "examples:" in done.stdout and "objective.kind=dpo" in done.stdout


def test_settings_that_were_added_later_are_taken_out_however_often():
    """Of a stage's mark they are taken out when it is written and when it is read: what is not there is not
    taken for a setting of value null."""
    depends = {"objective": {"kind": "dpo", "mask": None}, "data": {"train_on": "last", "holdout": None}}
    for _ in range(2):
        drop_added(depends)
        assert depends == {"objective": {"kind": "dpo"}, "data": {"holdout": None}}
    earlier = {"data": {"holdout": {"share": 0.1, "seed": 0}}}
    now = {"data": {"holdout": Holdout(share=0.1).model_dump()}}
    drop_added(now)
    assert now == earlier
