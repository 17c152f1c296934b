# SPDX-License-Identifier: BSD-3-Clause
"""Detects the dialect of a text file: encoding, delimiter, decimal mark and header."""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .cells import MISSING_NUMBER, decimal_mark, is_number, number
from .table import TableError, names_of

BLANKS = " "  # the delimiter that denotes any run of blanks and tabs
_DELIMITERS = "\t;|,"  # in order of preference: a comma may be a decimal mark
_SAMPLE = 1 << 18  # bytes
_LONGEST_LINE = 1 << 26  # bytes
_ROWS, _CELLS = 200, 50_000  # the most that the sample contains
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Options:
    """The format of a text file; fields that are None are detected."""

    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None
    missing: tuple[str, ...] = ()  # additional marks of missing cells


@dataclass(frozen=True)
class Dialect:
    """The format of one file.

    Attributes:
        encoding, delimiter, decimal: as in `Options`, but never None.
        names: of the columns; x0, x1, … without a header.
        skip: the number of lines before the first row of data.
        numbers: [columns], whether the column's sample contains only plain numbers and missing cells.
        labelled: the header has no name for the first column.
        irregular: pyarrow cannot parse the file as it is, because of blanks as delimiters or comments between rows.
        notes: one line for each decision that the user may want to change.
    """

    encoding: str
    delimiter: str
    decimal: str
    names: tuple[str, ...]
    skip: int
    numbers: tuple[bool, ...]
    labelled: bool
    irregular: bool
    notes: tuple[str, ...]


def find_dialect(path: Path, file: BinaryIO, options: Options) -> Dialect:
    """Detect the dialect of an open file.

    Raises:
        TableError: the file contains no table.
    """
    encoding, lines = _sample(path, file, options.encoding)
    delimiter = options.delimiter
    if re.fullmatch("sep=.", lines[0], re.I):  # Excel's first line
        delimiter, lines[0] = delimiter or lines[0][4], ""
    body = [line for line in lines if line.strip() and not is_comment(line)]
    if not body:
        raise TableError(f"{path}: expected a table, got an empty file")
    delimiter = delimiter or _delimiter(body[:30])
    rows = list(itertools.islice(split(lines, delimiter), _ROWS))
    width = Counter(len(cells) for _, cells in rows[1:] or rows).most_common(1)[0][0]
    top = next(i for i, (_, cells) in enumerate(rows) if len(cells) == width)
    rows = rows[: top + max(3, _CELLS // width)]
    header, titles = _commented_header(lines[: rows[0][0] - 1], delimiter, width), rows[:top]
    if titles and not header:
        header = _other_header(titles[-1][1], [cells for _, cells in rows[top:] if len(cells) == width])
        titles = titles[:-1] if header else titles
    for line, cells in titles:
        if len(cells) != 1 or options.header is False:
            raise TableError(
                f"{path}, row {line}: expected {width} values as in row {rows[top][0]}, got {len(cells)} "
                f"(the delimiter is {delimiter!r}; --delimiter names another)"
            )
    data = [cells for _, cells in rows[top:] if len(cells) == width]
    decimal = options.decimal or decimal_mark([cell for cells in data for cell in cells], delimiter)
    if not header and (_is_header(data, decimal) if options.header is None else options.header):
        header, top, data = data[0], top + 1, data[1:]
    if not data:
        raise TableError(f"{path}: expected rows of data below the header, got none (--no-header reads it as data)")
    notes = []
    if not header and options.header is None and any(is_number(cell, decimal) for cell in data[0]):
        notes.append("the first line contains numbers and is read as data; the columns are x0, x1, … (--header)")
    if titles:
        notes.append(f"the table begins on line {rows[top][0]}; the lines above it are skipped")
    return Dialect(
        encoding,
        delimiter,
        decimal,
        names=names_of(path, header or [""] * width),
        skip=rows[top][0] - 1,
        numbers=tuple(_all_plain(column, decimal, options.missing) for column in zip(*data, strict=True)),
        labelled=bool(header) and not header[0].strip(),
        irregular=delimiter == BLANKS or any(map(is_comment, lines[rows[top][0] :])),
        notes=tuple(notes),
    )


def is_comment(line: str) -> bool:
    """Whether a line is a comment."""
    return line.lstrip().startswith("#")


def split(lines: Iterable[str], delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's first line, from 1, and the row's cells; skips comments and empty lines."""
    plain = ("" if is_comment(line) else line.rstrip("\r\n") + "\n" for line in lines)
    if delimiter == BLANKS:
        plain = (blanks_to_tabs(line) for line in plain)
    reader = csv.reader(plain, delimiter="\t" if delimiter == BLANKS else delimiter, strict=strict)
    line = 1
    for cells in reader:
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield line, cells
        line = reader.line_num + 1


_QUOTED_OR_BLANKS = re.compile(r'"(?:[^"]|"")*"|[ \t]+')


def blanks_to_tabs(text: str) -> str:
    """Replace each run of blanks within a line with a tab, and strip those at its ends."""
    if '"' not in text:
        return "\n".join(["\t".join(line.split()) for line in text.split("\n")])
    tabbed = _QUOTED_OR_BLANKS.sub(lambda m: m[0] if m[0][0] == '"' else "\t", text)
    return re.sub(r"(?m)^\t+|\t+$", "", tabbed)


def _sample(path: Path, file: BinaryIO, encoding: str | None) -> tuple[str, list[str]]:
    """The encoding and the first lines of a file."""
    raw = file.read(_SAMPLE)
    whole = len(raw) < _SAMPLE
    while raw.count(b"\n") + raw.count(b"\r") < 3 and not whole:
        if len(raw) >= _LONGEST_LINE:
            raise TableError(f"{path}, row 1: expected a row of cells, got {len(raw):,} bytes without a line break")
        more = file.read(len(raw))
        whole, raw = not more, raw + more
    encoding = encoding or _encoding(raw)
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(raw, final=whole)
    except (UnicodeError, LookupError):
        raise TableError(f"{path}: expected {encoding} text, got other bytes; --encoding names another") from None
    if "\0" in text:
        raise TableError(f"{path}: expected text, got binary data (CSV, Parquet and NumPy files are read)")
    lines = re.split("\r\n|\n|\r", text.removeprefix("\ufeff"))
    return encoding, lines if whole or len(lines) == 1 else lines[:-1]  # the last line may be truncated


def _encoding(raw: bytes) -> str:
    for bom, encoding in _BOMS.items():
        if raw.startswith(bom):
            return encoding
    for encoding, nuls in (("utf-16-le", raw[1:1000:2]), ("utf-16-be", raw[:1000:2])):
        if nuls and nuls.count(0) > 0.8 * len(nuls):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(raw)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _delimiter(lines: Sequence[str]) -> str:
    """The delimiter that splits most lines into the same number of cells."""
    blanks = _rows(lines, BLANKS, strict=True)
    for strict in (True, False):  # the delimiter follows a closing quote, unless quotes are stray
        best, share, width = ",", 0.0, 1
        for delimiter in _DELIMITERS:
            cells, part = _commonest(_rows(lines, delimiter, strict))
            if cells > 1 and part > 1.05 * share:
                best, share, width = delimiter, part, cells
        cells, part = _commonest(blanks[1:] or blanks)
        if cells > 1 and share < 1 and all(len(row) == cells for row in blanks):
            return BLANKS
        numbers = [is_number(c, ".") or is_number(c, ",") or c in MISSING_NUMBER for row in blanks[1:] for c in row]
        if cells > width and part >= 0.8 and sum(numbers) > 0.5 * len(numbers):
            return BLANKS
        if share:
            break
    return best


def _rows(lines: Sequence[str], delimiter: str, strict: bool) -> list[list[str]]:
    """The cells of each row; [] if text follows a closing quote."""
    rows = []
    try:
        for _, cells in split(lines, delimiter, strict):
            rows.append(cells)
    except csv.Error as error:
        return rows if "end of data" in str(error) else []  # the sample ends inside a quoted cell
    return rows


def _commonest(rows: Sequence[Sequence[str]]) -> tuple[int, float]:
    """The most common number of cells in a row, and the share of rows with that number."""
    cells, times = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    return cells, times / max(1, len(rows))


def _commented_header(before: Sequence[str], delimiter: str, width: int) -> list[str]:
    """The names in a comment above the table, as numpy.savetxt writes them; [] if there are none."""
    for line in before[-1:]:
        for _, cells in split([line.lstrip().removeprefix("#")], delimiter):
            if is_comment(line) and len(cells) == width > 1 and not any(is_number(c.strip(), ".") for c in cells):
                return [cells[0].strip() or "#", *cells[1:]]
    return []


def _other_header(header: list[str], data: list[list[str]]) -> list[str]:
    """The names in a header with one cell more or fewer than the rows; [] if it is not a header."""
    width, labels = len(data[0]), [cells[0].strip() for cells in data]
    if any(is_number(cell.strip(), ".") for cell in header):
        return []
    if len(header) == width + 1 and not header[-1].strip():
        return header[:-1]
    if len(header) == width - 1 and not any(cells[-1].strip() for cells in data):
        return [*header, ""]
    running = labels == [str(i) for i in range(1, len(labels) + 1)]
    if len(header) == width - 1 > 0 and (running or not any(is_number(label, ".") for label in labels)):
        return ["", *header]  # as R's write.table writes it
    return []


def _numeric(cells: Sequence[str], decimal: str) -> bool:
    """Whether most of a column's non-missing cells are numbers."""
    present = [cell.strip() for cell in cells if cell.strip() not in MISSING_NUMBER]
    return sum(number(cell, decimal) is not None for cell in present) > 0.5 * len(present)


def _all_plain(cells: Sequence[str], decimal: str, marks: Collection[str]) -> bool:
    return all(is_number(c, decimal) or c in MISSING_NUMBER or c in marks for c in map(str.strip, cells))


def _is_header(rows: Sequence[Sequence[str]], decimal: str) -> bool:
    """Whether the first row is a header.

    It is if its cells are 0, 1, … n - 1, as pandas writes unnamed columns; if, above the columns of numbers, more of
    its cells are text than numbers; or if its numbers are consecutive, like years, and those of the second row are
    not.
    """
    first, *rest = ([cell.strip() for cell in row] for row in rows)
    width = len(first)
    rest = [row for row in rest if len(row) == width]
    named = first[1:] if not first[0] else first
    if len(named) > 1 and named == [str(i) for i in range(len(named))]:
        return True
    if not rest:
        return not any(is_number(cell, decimal) for cell in first)
    numeric = [j for j, column in enumerate(zip(*rest, strict=True)) if _numeric(column, decimal)]
    numbers = [j for j in numeric if number(first[j], decimal) is not None]
    texts = [j for j in numeric if j not in numbers and first[j] not in MISSING_NUMBER]
    if not numeric:
        return not any(is_number(cell, decimal) for cell in first)
    if len(texts) != len(numbers) or not texts:
        return len(texts) > len(numbers) or _consecutive([first[j] for j in numbers], [rest[0][j] for j in numbers])
    return False


def _consecutive(first: Sequence[str], second: Sequence[str]) -> bool:
    def steps(cells: Sequence[str]) -> set[int]:
        whole = [int(cell) for cell in cells if cell.isdecimal()]
        return {b - a for a, b in itertools.pairwise(whole)} if len(whole) == len(cells) > 2 else set()

    return steps(first) == {1} != steps(second)
