"""SQL text with a name: registered, so that one test can PREPARE every statement."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STATEMENTS: dict[str, str] = {}

Columns: TypeAlias = "Mapping[str, str]"  # Names and types of the columns of a table.

_PLACE = re.compile(r"\{(\w+)(?:\.(\w+))?\}")


def statement(name: str, text: str) -> str:
    """Register a statement and return its text."""
    if name in STATEMENTS:
        raise ValueError(f"two statements are named {name}")
    STATEMENTS[name] = text
    return text


def array_literal(values: Sequence[object]) -> str:
    """Return the text form of an array: for arrays of arrays, which `unnest` would flatten."""
    quoted = ('"' + str(v).replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values)
    return "{" + ",".join(quoted) + "}"


class BatchStatement:
    """A statement that is given whole tables, so that it costs about the same for many rows.

    In its text `{members}` stands for a table of that name, `{members.user_id}` for one of its
    columns as an array, and the name of a single value for that. PostgreSQL gets a table as one
    array for each column: `unnest($1::bigint[], $2::text[]) AS members (room_nid, user_id)`.
    """

    def __init__(self, name: str, text: str, parameters: Mapping[str, Columns | str]) -> None:
        self._parameters = parameters
        places: dict[str, str] = {}
        count = 0
        for parameter, columns in parameters.items():
            if isinstance(columns, str):
                count += 1
                places[parameter] = f"${count}::{columns}"
                continue
            arrays = []
            for column, column_type in columns.items():
                count += 1
                arrays.append(f"${count}::{column_type}[]")
                places[f"{parameter}.{column}"] = arrays[-1]
            places[parameter] = f"unnest({', '.join(arrays)}) AS {parameter} ({', '.join(columns)})"
        self.text = statement(name, _PLACE.sub(lambda place: places[place[0][1:-1]], text))

    def columns(self, table: str) -> list[str]:
        """Return the names of the columns of a table, in the order in which rows have them."""
        return list(self._parameters[table])

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """Return what the statement is executed with: of a table, its rows."""
        arguments: list[object] = []
        for parameter, columns in self._parameters.items():
            if isinstance(columns, str):
                arguments.append(values[parameter])
            else:
                arguments += _transposed(values[parameter], len(columns))
        return arguments


def _transposed(rows: object, width: int) -> Sequence[Sequence[object]]:
    if not isinstance(rows, list):
        raise TypeError(f"a table is a list of rows, not {type(rows).__name__}")
    return list(zip(*rows, strict=True)) if rows else [()] * width
