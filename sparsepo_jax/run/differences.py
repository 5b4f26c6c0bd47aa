"""Where the settings of two runs differ, also those of a run that an older version wrote."""

from typing import Any

# Settings that were added later, with the value at which a stage is what it was before them.
_ADDED = {
    "sft.optimizer.moments": "float32",
    "po.optimizer.moments": "float32",
    "reference.dtype": "auto",
    "data.train_on": "last",
    "data.holdout.prompts": None,
    "data.ranked.rule": "best_worst",
    "data.ranked.margin": 0.0,
    "data.ranked.score": None,
    "compute.weights": "float32",
    "objective.mask": None,
    "objective.mask.budget": 0.3,
    "objective.mask.temperature": 1.0,
    "objective.mask.sees": "prefix",
    "objective.l1_reward": 0.0,
    "objective.l1_kl": 0.0,
    "objective.policy_weight": False,
    "evaluation.main": None,
    "po.early_stopping": None,
    "po.keep": "last",
    "data.sft.exchanged": False,
    "data.train.exchanged": False,
    "data.eval.exchanged": False,
    "data.prompts.exchanged": False,
    "scorer.train.exchanged": False,
    "scorer.test.exchanged": False,
}


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested mappings differ.

    Args:
        before: the settings of one run.
        now: those of the other. What only one of them has counts as None in the other.
        path: of both within the config.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted(before.keys() | now.keys())
            for difference in differences(
                _value(before, key, now), _value(now, key, before), f"{path}.{key}" if path else key
            )
        ]
    return [] if before == now else [path]


def _value(settings: dict[str, Any], key: str, others: dict[str, Any]) -> Any:
    """None where there is none, or no section where the others have one."""
    return settings.get(key, {} if isinstance(others.get(key), dict) else None)


def drop_added(depends: dict[str, Any]) -> None:
    """Takes settings out that were added later, where a stage is what it was before them."""
    for path, before in _ADDED.items():
        _drop(depends, path.split("."), before)


def _drop(settings: dict[str, Any], path: list[str], value: Any) -> None:
    """Takes a setting out where it has this value, and a section that it leaves empty.

    Of a list, or of lists by name, all entries are gone through.
    """
    name, *rest = path
    if rest:
        for entry in _entries(settings.get(name)):
            _drop(entry, rest, value)
    if rest and isinstance(settings.get(name), dict):
        _drop(settings[name], rest, value)
        if not settings[name]:
            del settings[name]
    elif not rest and name in settings and settings[name] == value:
        del settings[name]


def _entries(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list, or of the lists that a mapping holds."""
    lists = value.values() if isinstance(value, dict) else [value]
    return [entry for each in lists if isinstance(each, list) for entry in each if isinstance(entry, dict)]
