"""A run that dies in the middle of training."""


class Interrupted(BaseException):
    """Nothing that the program knows, as a crash is."""


def stop_before(monkeypatch, stage_steps: int):
    """The run dies as it fetches the batch after that many steps."""
    from sparsepo_jax.train import loop

    class Dying:
        def __init__(self, batches):
            self.batches, self.left = iter(batches), stage_steps

        def __iter__(self):
            return self

        def __next__(self):
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            return next(self.batches)

    run_training = loop.run_training
    monkeypatch.setattr(
        "sparsepo_jax.stages.training.run_training",
        lambda work, *rest, **parts: run_training(work._replace(batches=Dying(work.batches)), *rest, **parts),
    )
