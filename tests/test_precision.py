"""float32 means float32, although JAX by default rounds the factors of a product on GPUs and TPUs."""

import re

import jax
import pytest

from helpers.tiny import GPT2, random_batch
from sparsepo_jax.build.compute import set_precision
from sparsepo_jax.build.models import weight_shapes
from sparsepo_jax.build.objective import make_problem
from sparsepo_jax.build.step import make_step
from sparsepo_jax.build.weights import abstract
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.sharding.mesh import make_mesh


@pytest.fixture(autouse=True)
def precision_as_it_was():
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


def make_config(**compute) -> Config:
    return Config.model_validate(
        {
            "stages": ["po"],
            "output_dir": "unused",
            "policy": {"config": GPT2},
            "compute": compute,
            "data": {"train": [{"kind": "reviews", "rows": 8}]},
            "tokenizer": {"kind": "reviews"},
        }
        | {"policy": {"config": GPT2 | {"vocab_size": 400}}}
    )


def float32_products(config: Config, platform: str) -> list[str]:
    """The lines of the train step, as handed to XLA, that multiply float32 matrices."""
    set_precision(config, platform)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    spec = spec_from_hf(config.policy.config)
    problem = make_problem(config, spec, spec, mesh)
    step = make_step(config, "po", problem, spec, 10, mesh)
    reference = abstract(weight_shapes(spec), None, mesh, lambda weights: weights["policy"])
    with jax.set_mesh(mesh):
        text = step.program.lower(
            step.numbers, step.like, reference, jax.tree.map(lambda x: x[None], random_batch())
        ).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    return [line for line in products if re.search(r":\s*\(tensor<[\dx]*f32>, tensor<[\dx]*f32>\)", line)]


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_every_float32_product_of_a_float32_step_keeps_all_digits(platform):
    """Kills: a product that names another precision of its own, in the forward pass or a written gradient."""
    products = float32_products(make_config(dtype="float32"), platform)
    assert len(products) > 20
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_tf32_is_there_for_those_who_ask_for_it():
    """All products but those of the mask net, whose zeros hang on the last digits."""
    masked = make_config(dtype="float32", precision="tf32")
    plain = Config.model_validate(masked.model_dump() | {"objective": {"kind": "dpo"}})
    exact = {}
    for name, config in (("masked", masked), ("plain", plain)):
        products = float32_products(config, "gpu")
        exact[name] = sum("HIGHEST" in line for line in products)
        assert len(products) - exact[name] > 20
    assert exact["plain"] == 0 < exact["masked"]


@pytest.mark.parametrize(
    "compute, platform, expected",
    [
        ({}, "cpu", "highest"),
        ({}, "gpu", None),
        ({}, "tpu", None),
        ({"dtype": "bfloat16"}, "gpu", None),
        ({"dtype": "float32"}, "gpu", "highest"),
        ({"dtype": "bfloat16", "precision": "float32"}, "gpu", "highest"),
        ({"dtype": "float32", "precision": "tf32"}, "gpu", "tensorfloat32"),
    ],
)
def test_auto_goes_by_the_type_of_activations(compute, platform, expected):
    set_precision(make_config(**compute), platform)
    assert jax.config.jax_default_matmul_precision == expected


@pytest.mark.parametrize(
    "compute, words",
    [
        (
            {},
            "activations float32 on CPU, bfloat16 on GPU and TPU; "
            "products of float32 arrays: float32 on CPU, rounded first",
        ),
        ({"dtype": "float32"}, "activations float32; products of float32 arrays: float32 everywhere"),
        (
            {"dtype": "float32", "precision": "tf32"},
            "activations float32; products of float32 arrays: TF32 on GPU",
        ),
    ],
)
def test_check_says_what_precision_products_have(compute, words):
    assert words in make_plan_text(make_config(**compute))
