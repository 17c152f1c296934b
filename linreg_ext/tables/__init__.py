# SPDX-License-Identifier: BSD-3-Clause
"""Tables as people have them: read from files, and encoded as numbers for a linear model."""

from .dialect import BLANKS, Options
from .encoding import Encoding, Feature, find_encoding
from .reading import kind_of, read_table
from .stream import Stream, bytes_in_memory
from .table import (
    DATE,
    EMPTY,
    NUMBER,
    TEXT,
    Column,
    Table,
    TableError,
    available_memory,
    first_line,
    listing,
    position,
)

__all__ = [
    "BLANKS",
    "DATE",
    "EMPTY",
    "NUMBER",
    "TEXT",
    "Column",
    "Encoding",
    "Feature",
    "Options",
    "Stream",
    "Table",
    "TableError",
    "available_memory",
    "bytes_in_memory",
    "find_encoding",
    "first_line",
    "kind_of",
    "listing",
    "position",
    "read_table",
]
