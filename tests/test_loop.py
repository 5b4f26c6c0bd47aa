"""The meter and clocks of the loop: rates, windows, checkpoints by time; optimizers made of a config."""

import struct
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.configs import make_config
from helpers.program import lines_of, run
from helpers.tiny import random_batch
from sparsepo_jax.build.optimizer import make_optimizer
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.stages.training import without_checkpoints
from sparsepo_jax.train.checkpoint import Checkpoints, SavePolicy
from sparsepo_jax.train.log import MetricsLog
from sparsepo_jax.train.progress import Checks, Meter, Reporting, count
from sparsepo_jax.train.step import TrainState
from sparsepo_jax.train.trackers import About


class Clock:
    """Seconds that pass when the test says so, and `tick` more at each look."""

    def __init__(self, tick_s: float = 0.0):
        self.now_s = 1000.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


@pytest.fixture
def checkpoint_clock(monkeypatch):
    """The clock of train/checkpoint alone: Orbax looks at the true one."""
    clock = Clock()
    monkeypatch.setattr("sparsepo_jax.train.checkpoint.time", SimpleNamespace(monotonic=clock))
    return clock


# ---------------------------------------------------------------- checkpoints by time


def test_a_checkpoint_is_due_when_its_minutes_have_passed_since_the_last_one(tmp_path, checkpoint_clock):
    """Two minutes. Kills: seconds for minutes; a clock that is not set back by a saved state; no clock at
    all."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", SavePolicy(every_minutes=2), {})
    checkpoint_clock.now_s += 119
    assert not checkpoints.is_due(1)
    checkpoint_clock.now_s += 2
    assert checkpoints.is_due(2)
    checkpoints.save({"x": jnp.ones(2)}, 2)
    assert not checkpoints.is_due(3)
    checkpoint_clock.now_s += 119
    assert not checkpoints.is_due(4)
    checkpoint_clock.now_s += 2
    assert checkpoints.is_due(5)
    checkpoints.close()


def test_with_several_processes_no_clock_decides(tmp_path, checkpoint_clock, monkeypatch):
    """Clocks differ: one process would begin to save a state alone, and wait for the others for ever."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", SavePolicy(every_steps=7, every_minutes=2), {})
    checkpoint_clock.now_s += 1000
    assert checkpoints.is_due(1)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "process_count", lambda: 2)
        assert not checkpoints.is_due(1) and checkpoints.is_due(7)
    checkpoints.close()


def test_several_processes_without_steps_between_checkpoints_are_told(monkeypatch):
    """The default, ten minutes, does not hold for them."""
    by_time, by_steps = (make_config(checkpoint={"every_steps": every_steps}) for every_steps in (None, 7))
    assert without_checkpoints(by_time, follows_best=False) is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "checkpoint.every_steps is not set" in without_checkpoints(by_time, follows_best=False)
    assert without_checkpoints(by_time, follows_best=True) is None
    assert without_checkpoints(by_steps, follows_best=False) is None


def test_a_run_saves_by_time(tmp_path, checkpoint_clock):
    """Each look at the clock takes 40 s, and a checkpoint a minute is wanted: of steps 1 to 6 the second is
    saved, the fourth, and the last. Kills: a setting that does not reach the loop."""
    checkpoint_clock.tick_s = 40.0
    output = run(tmp_path, "stages=[sft]", "sft.steps=6", checkpoint={"every_minutes": 1, "keep": 10})
    saved = {int(path.name) for path in (output / "sft" / "checkpoints").iterdir() if path.name.isdigit()}
    assert saved == {2, 4, 6}


# ---------------------------------------------------------------- the meter


@pytest.fixture
def meter_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("sparsepo_jax.train.progress.time", SimpleNamespace(perf_counter=clock))
    return clock


def make_meter(lines, **reporting):
    reporting = Reporting(**({"write": lambda *line: lines.append(line), "every_steps": 2} | reporting))
    state = TrainState({}, None, jnp.int32(0), jnp.int32(0))
    checks = Checks(may_skip=1, name_rows=lambda step, finite: f"rows of step {step}")
    return Meter("po", state, reporting, checks, total=5, programs=0)


def step_metrics(loss=1.0, skipped=0, weight=4.0, **more):
    numbers = {"loss": loss, "grad_norm": 1.0, "skipped": skipped, "weight": weight} | more
    return {name: jnp.float32(x) for name, x in numbers.items()}


def test_rates_are_those_of_all_processes(monkeypatch, meter_clock):
    """Windows of two steps of 2.5 s each, in one of four processes. A step is measured when the next one
    has been handed over: 2.5 s late, so that the first window lasts 7.5 s. Kills: rates of this process
    alone; a window whose clock is never set back; means over steps of an earlier window."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    batch = random_batch()
    pairs, tokens = 4, int((batch.packing.sequence_RS >= 0).sum())
    lines = []
    meter = make_meter(lines)
    for step in range(1, 6):
        meter_clock.now_s += 2.5
        meter.add(step, step_metrics(loss=step), jnp.ones((1, 4), bool), count(batch))
    meter_clock.now_s += 2.5
    meter.catch_up()
    meter.close()
    assert [(stage, step) for stage, step, _ in lines] == [("po", 2), ("po", 4), ("po", 5)]
    assert [metrics["loss"] for *_, metrics in lines] == [1.5, 3.5, 5.0]
    pairs_per_s = [metrics["pairs_per_s"] for *_, metrics in lines]
    np.testing.assert_allclose(pairs_per_s, [4 * 2 * pairs / 7.5, 4 * 2 * pairs / 5.0, 4 * pairs / 2.5])
    tokens_per_s = [metrics["tokens_per_s"] for *_, metrics in lines]
    np.testing.assert_allclose(tokens_per_s, [4 * 2 * tokens / 7.5, 4 * 2 * tokens / 5.0, 4 * tokens / 2.5])


def test_a_step_that_was_left_out_counts_in_the_rates_and_not_in_the_means(meter_clock, capsys):
    """Its numbers are no numbers; the second one is refused, since one may be left out."""
    lines = []
    meter = make_meter(lines, every_steps=3)
    finite = jnp.ones((1, 4), bool)
    for step, (loss, skipped) in enumerate([(1.0, 0), (np.nan, 1), (3.0, 1)], start=1):
        meter_clock.now_s += 1.0
        meter.add(step, step_metrics(loss, skipped), finite, count(random_batch()))
    meter.catch_up()
    ((_, step, metrics),) = lines
    assert (step, metrics["loss"], metrics["pairs_per_s"]) == (3, 2.0, 4.0)
    assert (
        "po: step 2 has loss nan and gradient norm 1.0, from rows of step 2: left out (1 of at most 1)"
        in (capsys.readouterr().err)
    )
    meter.add(4, step_metrics(np.nan, 2), finite, count(random_batch()))
    with pytest.raises(UserError, match="po: step 4 has loss nan .* from rows of step 4; look at these rows"):
        meter.catch_up()
    meter.close()


def test_a_window_says_the_learning_rate_and_the_updates_left_out_as_they_are_at_its_step():
    """A mean of counts is no count: of one update left out in the middle of four it would be 2/3."""
    lines = []
    meter = make_meter(lines, every_steps=4)
    steps = [(0.1, 1.0, 0), (0.2, 1.0, 0), (0.3, np.nan, 1), (0.3, 1.0, 1)]
    for step, (rate, loss, skipped) in enumerate(steps, start=1):
        meter.add(
            step,
            step_metrics(loss, skipped, learning_rate=rate),
            jnp.ones((1, 4), bool),
            count(random_batch()),
        )
    meter.catch_up()
    ((_, _, metrics),) = lines
    assert metrics["skipped"] == 1
    np.testing.assert_allclose(metrics["learning_rate"], 0.3, rtol=1e-6)


def test_a_class_is_averaged_over_the_rows_of_all_processes():
    """A full batch of 8, and the last 2 rows of an epoch, where the other processes have fillers alone.

    Kills: weights that are estimated from this process's part, in which both batches look the same.
    """
    lines = []
    meter = make_meter(lines)
    for step, (weight, share, reward) in enumerate([(8.0, 0.5, 1.0), (2.0, 1.0, 4.0)], start=1):
        classes = {
            "share/chosen": share,
            "share/rejected": 1 - share,
            "rewards/chosen": reward,
            "rewards/rejected": 0.0,
        }
        metrics = step_metrics(weight=weight, **classes)
        meter.add(step, metrics, jnp.ones((1, 4), bool), count(random_batch()))
    meter.catch_up()
    ((_, _, means),) = lines
    np.testing.assert_allclose(means["rewards/chosen"], (4 * 1.0 + 2 * 4.0) / 6)
    assert "weight" not in means


def test_rates_leave_out_the_time_of_what_is_no_training(meter_clock):
    """Two steps of 1 s and an evaluation of 100 s between them. The step before it is fetched first."""
    lines = []
    meter = make_meter(lines)
    meter_clock.now_s += 1.0
    meter.add(1, step_metrics(), jnp.ones((1, 4), bool), count(random_batch()))
    with meter.paused():
        meter_clock.now_s += 100.0
    meter_clock.now_s += 1.0
    meter.add(2, step_metrics(), jnp.ones((1, 4), bool), count(random_batch()))
    meter.catch_up()
    ((_, _, metrics),) = lines
    assert metrics["pairs_per_s"] == 2 * 4 / 2.0


@pytest.mark.slow
def test_the_rates_of_a_run_do_not_depend_on_how_long_its_evaluations_take(tmp_path, monkeypatch):
    """Each takes 2 s more than it does; the steps of this run take milliseconds."""
    from sparsepo_jax.stages import po

    def slow(*arguments):
        time.sleep(2.0)
        return evaluate(*arguments)

    evaluate = po._evaluate
    monkeypatch.setattr(po, "_evaluate", slow)
    output = run(tmp_path, stages=["po"], po={"eval_every_steps": 2}, logging={"every_steps": 2})
    rows = [row for row in lines_of(output / "metrics.jsonl") if "pairs_per_s" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(16 / row["pairs_per_s"] < 2.0 for row in rows), rows


# ---------------------------------------------------------------- optimizers and schedules of a config


@pytest.mark.parametrize(
    ("optimizer", "second_update"),
    [
        # moment after step 1: (1 - 0.5) 1 = 0.5; step 2 goes by the sign of 0.9 * 0.5 + 0.1 * -2 = 0.25
        ({"kind": "lion", "b1": 0.9, "b2": 0.5}, -1.0),
        # mean (0.5 * 0.5 * 1 + 0.5 * -2) / (1 - 0.5^2) = -1; square (0.9 * 0.1 * 1 + 0.1 * 4) / (1 - 0.9^2)
        ({"kind": "adamw", "b1": 0.5, "b2": 0.9, "eps": 1e-12}, 1 / np.sqrt((0.9 * 0.1 + 0.1 * 4) / 0.19)),
    ],
    ids=["lion", "adamw"],
)
def test_both_decay_rates_of_an_optimizer_reach_their_place(optimizer, second_update):
    """Gradient 1, then -2, learning rate 1: the second update by hand. Kills: b1 and b2 exchanged, which
    turns the sign of Lion's (0.5 * 0.1 - 0.5 * 2 < 0)."""
    training = {
        "steps": 10,
        "clip_norm": None,
        "optimizer": {"learning_rate": 1.0, "weight_decay": 0.0} | optimizer,
        "schedule": {"kind": "constant", "warmup_steps": 0},
    }
    config = make_config(po=training)
    rule, _ = make_optimizer(config, config.po, 10, 16)
    weights = {"policy": {"x": jnp.ones(1)}, "masks": {}}
    state = rule.init(weights)
    for gradient in (1.0, -2.0):
        updates, state = rule.update(jax.tree.map(lambda x: gradient * x, weights), state, weights)  # noqa: B023
    np.testing.assert_allclose(updates["policy"]["x"], second_update, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_rates_are_those_of_transformers_but_one_step_ahead_in_the_warm_up(kind):
    """As docs/guides/trl.md says. Kills: a fall that begins or ends a step early."""
    import torch
    from transformers import get_scheduler

    steps, warmup = 17, 5
    theirs = get_scheduler(
        f"{kind}_with_warmup" if kind == "constant" else kind,
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0),
        num_warmup_steps=warmup,
        num_training_steps=steps,
    ).lr_lambdas[0]
    schedule = {"kind": kind, "warmup_steps": warmup}
    optimizer = {"kind": "adamw", "learning_rate": 2.0}
    config = make_config(po={"optimizer": optimizer, "schedule": schedule})
    _, rate = make_optimizer(config, config.po, steps, 16)
    ours = [float(rate(n)) for n in range(steps)]
    expected = [2.0 * theirs(n + 1 if n < warmup else n) for n in range(steps)]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert theirs(0) == 0 < ours[0]


def test_a_warm_up_longer_than_the_run_ends_with_it():
    """100 steps of warm-up in a run of 10: all of the learning rate is reached at its last step. Kills: a
    run that is over when a tenth is reached."""
    config = make_config(
        po={
            "optimizer": {"kind": "adamw", "learning_rate": 2.0},
            "schedule": {"kind": "linear", "warmup_steps": 100},
        }
    )
    _, rate = make_optimizer(config, config.po, 10, 16)
    np.testing.assert_allclose([rate(n) for n in range(10)], np.arange(1, 11) / 10 * 2.0, rtol=1e-6)


# ---------------------------------------------------------------- TensorBoard


def events_of(directory):
    """The events of all files of a directory, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.glob("events*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]


def points_shown(directory):
    """[(tag, step)] as TensorBoard shows them: where a session starts at a step, it forgets that step and all
    later ones of what came before."""
    points = []
    for event in events_of(directory):
        if event.session_log.status == event.session_log.START:
            points = [(tag, step) for tag, step in points if step < event.step]
        points += [(value.tag, event.step) for value in event.summary.value]
    return points


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    """Steps 2, 4 and 6, then again from the checkpoint at 2. Kills: steps that are shown twice; a stage that
    continues and takes the points of another one along."""

    def log(stage, after_step, steps):
        about = About(tmp_path, stage, after_step, project="p", name="n", config={})
        with MetricsLog(about, ["tensorboard"]) as metrics_log:
            for step in steps:
                metrics_log.write(stage, step, {"loss": 1.0})
        time.sleep(1.1)  # a file is named by its second

    log("sft", 0, (2, 4, 6))
    log("po", 0, (2, 4, 6))
    log("po", 2, (4, 6, 8))
    board = tmp_path / "tensorboard"
    assert points_shown(board / "sft") == [("sft/loss", step) for step in (2, 4, 6)]
    assert points_shown(board / "po") == [("po/loss", step) for step in (2, 4, 6, 8)]
