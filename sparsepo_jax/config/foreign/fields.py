"""Settings of another program on their way to ours: each is translated, put aside, or refused by name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sparsepo_jax.config.shown import shown

Refusals = list[str]

_TRUE = ("true", "yes", "on", "1", "t", "y", "auto")
_FALSE = ("false", "no", "off", "0", "f", "n", "none", "null", "")


class Fields:
    """The settings of another program's config, of which every one must be dealt with.

    Attributes:
        devices: on how many the file was run.
        config: ours, as nested mappings.
        notes: what has no meaning here, a line each.
        differences: what is not quite the same here, a line each.
        refusals: what cannot be translated, a line each.
        evaluates: whether the other program would evaluate while it trains.
    """

    def __init__(self, content: Mapping[str, Any], program: str):
        """What the file sets; a null counts as not set."""
        self._left = {name: value for name, value in content.items() if value is not None}
        self._nulls = content.keys() - self._left.keys()
        self.program, self.devices = program, 1
        self._called: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.evaluates = False
        self.notes: list[str] = []
        self.differences: list[str] = []
        self.refusals: Refusals = []

    def is_null(self, name: str) -> bool:
        """Whether the file sets it to null."""
        return name in self._nulls

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, *names: str, default: Any = None) -> Any:
        """The value of the first of the names that is set, all of which are dealt with then."""
        values = [self._left.pop(name) for name in names if name in self._left]
        return values[0] if values else default

    def peek(self, name: str) -> Any:
        """The value of a setting that is dealt with later; None if it is not set."""
        return self._left.get(name)

    def put_back(self, name: str, value: Any, was: str | None = None) -> None:
        """A value under another name, to be dealt with there.

        Args:
            was: what the file calls it, for messages.
        """
        self._left[name] = value
        if was is not None:
            self._called[name] = was

    def number(self, *names: str, default: float) -> Any:
        """A number; one that YAML has read as text (5e-7) becomes one."""
        value = self.take(*names, default=default)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                remedy = ": write out what the shell puts there" if "$" in value else ""
                self.refuse(f"{names[0]}: expected a number, got {shown(value)}{remedy}")
                return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(f"{names[0]}: expected a number, got {shown(value)}")
            return default
        return int(value) if float(value).is_integer() and isinstance(default, int) else value

    def text(self, *names: str, default: str) -> str:
        """One name, such as that of a loss or an optimizer."""
        value = self.take(*names, default=default)
        if isinstance(value, str):
            return value
        self.refuse(f"{names[0]}: expected a name, got {shown(value)}")
        return default

    def entries(self, name: str) -> list[dict[str, Any]]:
        """A list of mappings."""
        value = self.take(name, default=[])
        if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            return value
        self.refuse(f"{name}: expected a list of mappings, got {shown(value)}")
        return []

    def texts(self, *names: str, default: list[str]) -> list[str]:
        """A list of texts, or of one that stands alone, with commas or without."""
        value = self.take(*names, default=default)
        value = value.split(",") if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
            return [str(entry).strip() for entry in value]
        self.refuse(f"{names[0]}: expected a list of names, got {shown(value)}")
        return default

    def flag(self, *names: str, default: bool = False) -> bool:
        """A truth value, which a command line may have written as text."""
        value = self.take(*names, default=default)
        if isinstance(value, str) and value.casefold() in (*_TRUE, *_FALSE):
            return value.casefold() in _TRUE
        if not isinstance(value, bool | int | float):
            self.refuse(f"{names[0]}: expected true or false, got {shown(value)}")
        return bool(value)

    def share_devices(self, *names: str) -> None:
        """Divides the devices by degrees of parallelism, by which several of them work on the same rows."""
        for name in names:
            degree = self.number(name, default=1)
            if degree > 1:
                self.devices = max(1, self.devices // int(degree))
                self.notes.append(f"{name}: {degree}: so many devices share their rows there, and count once")

    def quantised_bits(self) -> int | None:
        """In how many bits the base is held, by load_in_4bit and load_in_8bit; None: it is not quantised."""
        in_4_bits, in_8_bits = self.flag("load_in_4bit"), self.flag("load_in_8bit")
        return 4 if in_4_bits else 8 if in_8_bits else None

    def only(self, name: str, values: Iterable[Any], reason: str) -> None:
        """Refuses any other value of a setting than these, with which nothing has to be done."""
        if name in self._left:
            value = self._left.pop(name)
            if value not in values:
                self.refuse(f"{name}: {shown(value)}: {reason}")

    def aside(self, reasons: Mapping[str, str]) -> None:
        """Notes settings that have no meaning here, each with the reason."""
        for name, reason in reasons.items():
            if name in self._left:
                self.notes.append(f"{name}: {shown(self._left.pop(name))}: {reason}")

    def aside_all(self, reasons: Mapping[str, str]) -> None:
        """The same for all settings whose names begin as the keys of `reasons` say."""
        for beginning, reason in reasons.items():
            names = [name for name in self._left if name.startswith(beginning)]
            self.aside(dict.fromkeys(names, reason))

    def set(self, path: str, value: Any) -> None:
        """Puts a value of ours at its dotted place."""
        *above, last = path.split(".")
        section = self.config
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value

    def differs(self, line: str) -> None:
        self.differences.append(line)

    def refuse(self, line: str) -> None:
        name, colon, rest = line.partition(":")
        self.refusals.append(self._called.get(name, name) + colon + rest)

    def end(self) -> None:
        """Refuses what nobody has dealt with."""
        for name, value in self._left.items():
            self.refuse(
                f"{name}: {shown(value)}: what this setting of {self.program} would be here is not known; "
                "take it out of the file if it does not matter"
            )
        self._left = {}
