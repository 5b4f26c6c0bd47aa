"""The data of alignment-handbook's and SimPO's configs: dataset_mixer and dataset_mixture.

Their other settings are those of TRL's trainers.
"""

from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.foreign.held_out import hold_out
from sparsepo_jax.config.shown import shown

_NAMES = {"id": "path", "config": "subset", "split": "split", "weight": "weight"}


def translate_mixture(fields: Fields, section: str) -> list[dict[str, Any]]:
    """The sources of dataset_mixer or dataset_mixture; [] if the file has neither.

    Args:
        section: `sft` or `po`.
    """
    fields.aside(
        {"text_column": "columns are set beside the path of the data", "shuffle": "rows are shuffled"}
    )
    mixer, mixture = fields.take("dataset_mixer"), fields.take("dataset_mixture")
    if mixer is not None:
        return _from_mixer(fields, section, mixer)
    if mixture is not None:
        return _from_mixture(fields, section, mixture)
    return []


def _from_mixer(fields: Fields, section: str, mixer: Any) -> list[dict[str, Any]]:
    """{name: share of its rows}, with the splits of all and a configuration of each."""
    splits = fields.texts("dataset_splits", default=["train", "test"])
    if not isinstance(mixer, dict):
        fields.refuse(f"dataset_mixer: expected names with their shares, got {shown(mixer)}")
        return []
    subsets = fields.texts("dataset_configs", default=[])
    if subsets and len(subsets) != len(mixer):
        fields.refuse("dataset_configs: expected one for each name of dataset_mixer")
        subsets = []
    if fields.flag("auto_insert_empty_system_msg", default=True):
        fields.differs(
            "dataset_mixer: an empty system message stands there before prompts that have none, if the chat "
            "template has a place for it; here prompts stay as they are"
        )
    train, held = [], []
    for number, (path, share) in enumerate(mixer.items()):
        subset = {"subset": subsets[number]} if subsets else {}
        for split in splits:
            if "train" in split:
                train.append({"path": path, "split": _first(fields, path, split, share)} | subset)
            else:
                held.append({"path": path, "split": split} | subset)
    if held and section == "po" and fields.evaluates:
        fields.set("data.eval", held)
    return train


def _first(fields: Fields, path: str, split: str, share: Any) -> str:
    """The first part of a split: train_prefs and 0.5 give train_prefs[:50%]."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        fields.refuse(f"dataset_mixer: {path}: expected a share of its rows from 0 to 1, got {shown(share)}")
        return split
    return split if share == 1 else f"{split}[:{round(100 * share, 6):g}%]"


def _from_mixture(fields: Fields, section: str, mixture: Any) -> list[dict[str, Any]]:
    """{datasets: [{id, config, split, columns, weight}], test_split_size, seed}."""
    entries = mixture.get("datasets") if isinstance(mixture, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        fields.refuse(f"dataset_mixture: expected datasets, a list of mappings, got {shown(mixture)}")
        return []
    sources = []
    for entry in entries:
        if extra := [name for name in entry if name not in (*_NAMES, "columns")]:
            fields.refuse(f"dataset_mixture: {', '.join(extra)}: not translated")
        named = {ours: entry[theirs] for theirs, ours in _NAMES.items() if entry.get(theirs) is not None}
        if named.get("weight") == 1:
            named.pop("weight")
        sources.append({"split": "train"} | named)
    if any("weight" in source for source in sources):
        fields.differs(
            "dataset_mixture: weight: a random part of the rows, drawn once there, in each epoch here"
        )
    if (size := mixture.get("test_split_size")) is not None:
        hold_out(fields, section, "test_split_size", size)
    return sources
