"""What `--check` prints of how a run goes on and ends: rounds, early stopping, the push to the Hub."""

from collections.abc import Iterator

from sparsepo_jax.config.schema.root import Config

Line = tuple[str, str]  # name and text


def rounds_lines(config: Config) -> Iterator[Line]:
    if config.rounds is not None:
        reference = "the policy before it" if config.round_reference == "previous" else "the first policy"
        yield "rounds", f"{config.rounds}, each of pairs and po; reference: {reference}"


def ending_lines(config: Config) -> Iterator[Line]:
    """When po may end before its last step, and whose weights it leaves."""
    stopping, best = config.po.early_stopping, config.checkpoint.best
    if stopping is not None:
        yield (
            "",
            f"stops early when {stopping.metric} ({stopping.mode}) has not got better in "
            f"{stopping.patience} evaluations, one every {config.po.eval_every_steps} steps",
        )
    if config.po.keep == "best":
        yield "", f"leaves the weights of the best {(stopping or best).metric}"


def hub_lines(config: Config) -> Iterator[Line]:
    if config.export.hub is not None and "export" in config.stages:
        private = "private" if config.export.hub_private else "public"
        yield "hub", f"the export is pushed to {config.export.hub}, {private}"
