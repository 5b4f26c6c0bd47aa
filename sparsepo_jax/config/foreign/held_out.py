"""The part of the rows that other programs keep out of training, a share or a number of them."""

import math
from typing import Any

from sparsepo_jax.config.foreign.fields import Fields
from sparsepo_jax.config.shown import shown


def hold_out(fields: Fields, section: str, name: str, size: Any) -> None:
    """Sets data.holdout.

    Args:
        section: `sft` or `po`.
        name: what the other program calls the setting.
        size: a share of the rows below 1, or a number of rows; 0: none.
    """
    is_number = isinstance(size, int | float) and not isinstance(size, bool) and math.isfinite(size)
    if not is_number or size < 0 or (size >= 1 and size != int(size)):
        fields.refuse(f"{name}: expected a share or a number of rows, got {shown(size)}")
    elif size == 0:
        return
    elif section == "sft":
        fields.differs(f"{name}: {size:g}: all rows are trained on here, as nothing is evaluated in sft")
    elif size < 1:
        fields.set("data.holdout", {"share": size})
        fields.differs(f"{name}: held out by prompts here, so that no prompt is on both sides")
    else:
        fields.set("data.holdout", {"prompts": int(size)})
        fields.differs(f"{name}: {size:g} prompts are held out, with all their rows, instead of so many rows")
