"""The stage report: report.html, and what the terminal shows of a finished run."""

import jax

from sparsepo_jax.report.doctor import diagnose
from sparsepo_jax.report.evidence import read_evidence
from sparsepo_jax.report.files import outdated, read_evaluation
from sparsepo_jax.report.outcome import outcome
from sparsepo_jax.stages.context import Run, say


def report(run: Run) -> None:
    """Writes report.html from the run's files."""
    from sparsepo_jax.report.page import write_report

    if jax.process_index() != 0:
        return
    path = write_report(run.output_dir, pairs=run.config.report.pairs)
    say_summary(run)
    say(f"report: {path}")


def say_summary(run: Run) -> None:
    """Says what happened in words, the table of figures, and what the doctor makes of the run's files."""
    from sparsepo_jax.report.sets import sets_table
    from sparsepo_jax.report.table import summary_table

    if jax.process_index() != 0:
        return
    summary = read_evaluation(run.output_dir) or {}
    if line := outdated(run.output_dir):
        say(f"note: {line}")
    words = summary.get("words") or outcome(summary)
    for text in (words, summary_table(summary), sets_table(summary)):
        if text:
            say(text)
    say_doctor(run, evaluated=True)


def say_doctor(run: Run, *, evaluated: bool) -> None:
    """Says the doctor's lines. evaluated: whether summary.json is of this run."""
    if jax.process_index() != 0:
        return
    evidence = read_evidence(run.output_dir)
    if not evaluated:
        evidence = evidence._replace(summary={})
    for line in diagnose(evidence):
        say(f"doctor: {line}")
