"""The stage inspect: the first rows of each source, token by token, at the terminal."""

from sparsepo_jax.build.data import load_data
from sparsepo_jax.config.derive import evaluation_lists, is_unpaired
from sparsepo_jax.stages.context import Run, say


def inspect(run: Run) -> None:
    """Shows data.inspect_rows rows of each source that the config names. Trains and writes nothing."""
    from sparsepo_jax.data.inspect import format_rows

    data = run.config.data
    has_model = run.config.policy.path or run.config.policy.config
    for kind, sources, name in (
        ("sft", data.sft, "sft"),
        ("unpaired" if is_unpaired(run.config.objective) else "pairs", data.train, "train"),
        *((run.evaluation_kind(sources), sources, name) for name, sources in evaluation_lists(data).items()),
        ("prompts", data.prompts, "prompts"),
    ):
        if not sources:
            continue
        spec = run.spec if has_model else None
        table = load_data(run.config, kind, sources, name, run.tokenizer, spec)
        say(f"data.{name}: {len(table)} rows")
        say(format_rows(table, run.tokenizer, range(min(data.inspect_rows, len(table)))))
