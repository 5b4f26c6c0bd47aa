"""What the other programs do with a training's outcome: best weights, early stopping, trackers, the Hub."""

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.shown import shown

_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_METRICS = (
    "loss",
    *(f"rewards/{name}" for name in ("accuracies", "margins", "chosen", "rejected")),
)  # of their evaluations, as ours are called
_ELSEWHERE = {
    **dict.fromkeys(
        (
            "logging_dir",
            "logging_strategy",
            "logging_first_step",
            "log_level",
            "log_level_replica",
            "log_on_each_node",
            "logging_nan_inf_filter",
            "disable_tqdm",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "plot_loss",
        ),
        "how metrics are shown is set in the section logging",
    ),
    "hub_strategy": "the export is pushed once, when all stages are done",
    "hub_always_push": "the export is pushed once, when all stages are done",
    "hub_token": "the token comes from the environment (HF_TOKEN)",
    "hub_revision": "the main branch is pushed to",
    "hub_model_revision": "the main branch is pushed to",
}


def translate_outcome(fields: Fields, section: str) -> None:
    """Which weights are kept, when training stops early, and where metrics and the model go.

    Args:
        section: `sft` or `po`, of which translate_training has translated the evaluations.
    """
    _translate_best(fields, section)
    translate_trackers(fields)
    _translate_hub(fields)
    fields.aside(_ELSEWHERE)


def _translate_best(fields: Fields, section: str) -> None:
    keeps_best = fields.flag("load_best_model_at_end")
    patience = fields.take("early_stopping_patience", "early_stopping_steps")
    least = fields.number("early_stopping_threshold", default=0.0)
    name = "load_best_model_at_end" if keeps_best else "early_stopping_patience"
    if not keeps_best and patience is None:
        off = "belongs to load_best_model_at_end, which is off"
        fields.aside({"metric_for_best_model": off, "greater_is_better": off})
        return
    metric = str(fields.take("metric_for_best_model", default="loss")).removeprefix("eval_")
    is_greater = fields.flag("greater_is_better", default=not metric.endswith("loss"))
    if section == "sft":
        fields.refuse(f"{name}: nothing is evaluated while responses are trained on (sft) here: take it out")
        return
    if "eval_every_steps" not in fields.config.get("po", {}):
        fields.refuse(
            f"{name}: it goes by evaluations of preference pairs every so many steps here: set eval_steps "
            "(with eval_strategy: steps), or take it out"
        )
        return
    if metric not in _METRICS:
        fields.refuse(f"metric_for_best_model: {shown(metric)}: expected one of {', '.join(_METRICS)}")
    watched = {"metric": f"eval/{metric}", "mode": "max" if is_greater else "min"}
    if patience is not None:
        fields.set("po.early_stopping", watched | {"patience": patience, "min_delta": least})
    if keeps_best:
        fields.set("po.keep", "best")
        fields.set("checkpoint.best", watched)


def translate_trackers(fields: Fields) -> None:
    """Where metrics go, and under which name."""
    name, project = fields.take("run_name"), fields.take("project")
    if "report_to" in fields:
        asked = fields.texts("report_to", default=[])
        fields.set("logging.trackers", [tracker for tracker in _TRACKERS if tracker in asked])
        for tracker in asked:
            if tracker not in ("none", *_TRACKERS):
                fields.notes.append(
                    f"report_to: {shown(tracker)}: logging.trackers takes {', '.join(_TRACKERS)}"
                )
        if project is not None:
            fields.set("logging.project", project)
    if name is not None:
        fields.set("logging.name", name)


def _translate_hub(fields: Fields) -> None:
    """Axolotl pushes wherever hub_model_id is set, and privately."""
    is_axolotl = fields.program == "Axolotl"
    repository = fields.take("hub_model_id")
    pushes = fields.flag("push_to_hub", default=is_axolotl and repository is not None)
    is_private = fields.flag("hub_private_repo", default=is_axolotl)
    if not pushes:
        if repository is not None:
            fields.notes.append(f"hub_model_id: {shown(repository)}: belongs to push_to_hub, which is off")
    elif repository is None or "/" not in str(repository):
        fields.differs(
            "push_to_hub: there account and directory name the repository: set export.hub to "
            f"OWNER/{repository or 'NAME'}"
        )
    else:
        fields.set("export.hub", repository)
        fields.set("export.hub_private", is_private)
