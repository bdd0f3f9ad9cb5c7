"""A JSON object whose fields are asked for by type: every error names file, field, expected and found."""

import dataclasses
import math
import sys
from typing import Any

from paceline._core import ModelFileError
from paceline.loading.strict_json import shown

LARGEST = sys.float_info.max  # an integer of a file may be larger


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    values: dict[str, Any]
    where: str
    """File and, inside it, object: for messages."""

    def error(self, name: str, expected: str, found: object) -> ModelFileError:
        return ModelFileError(f"{self.where}: {name}: expected {expected}, found {shown(found)}")

    def of(self, values: dict[str, Any], name: str) -> "Fields":
        return Fields(values, f"{self.where}: {name}")

    def object(self, name: str) -> "Fields | None":
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "an object or null", value)
        return None if value is None else self.of(value, name)

    def integer(self, name: str, default: int | None = None, most: int = 2**31 - 1, least: int = 1) -> int:
        """A positive integer; null counts as absent."""
        value = self.values.get(name)
        if value is None:
            value = default
        if type(value) is not int or not least <= value <= most:
            raise self.error(name, f"an integer in [{least}, {most}]", "nothing" if value is None else value)
        return value

    def number(self, name: str, default: float | None = None, above: float = -math.inf) -> float:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None or type(value) not in (int, float) or not above < value <= LARGEST:
            raise self.error(name, "a finite number" + (f" above {above:g}" if above > -math.inf else ""), "nothing" if value is None else value)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(name, "true or false", value)
        return value
