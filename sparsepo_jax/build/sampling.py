"""Drawing responses from the policy."""

from jax.sharding import Mesh

from sparsepo_jax.build.compute import choose_experts, compute_dtype
from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.generate.sampler import Sampler, Sampling, make_sampler
from sparsepo_jax.train.problem import Problem


def make_sampling(config: Config, ends: tuple[int, ...]) -> Sampling:
    """As config.generation says."""
    chosen = config.generation
    return Sampling(
        chosen.max_new_tokens,
        chosen.temperature,
        chosen.top_k,
        chosen.top_p,
        chosen.samples,
        config.seed,
        ends,
        tuple(chosen.stop),
    )


def make_policy_sampler(problem: Problem, config: Config, mesh: Mesh, sampling: Sampling) -> Sampler:
    dtype, experts = compute_dtype(config, mesh), choose_experts(config, mesh)
    return make_sampler(problem.policy_graph, dtype, mesh, sampling, experts)
