# SPDX-License-Identifier: BSD-3-Clause
"""Random tables in random formats: read as docs/tables.md says or rejected in one line, without partial folders."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import cases
from test_cli import draw_nothing

from linreg_ext.cli import main
from linreg_ext.tables import TableError, read_table

pytest.importorskip("pyarrow")

MISSING = ["", "NA", "?", "nan", "NULL", "N/A"]
WORDS = ["red", "blue", "Größe", "a b", "x,y", "1;2", 'say "so"', "it's", "#1", "two\nlines", "−5", "", "12 mm", "e5"]


def random_table(rng: random.Random) -> tuple[list[str], list[list], list[str]]:
    """The names, the columns (floats or texts, None if missing), and the kind of each column."""
    rows, names, columns, kinds = rng.randint(3, 40), [], [], []
    for j in range(rng.randint(2, 7)):
        kind = rng.choice(["number", "number", "whole", "text", "boolean", "date"]) if j else "number"
        gaps = rng.choice([0, 0, 0.2])
        names.append(rng.choice(["", "Länge ", "price, €", "a b", "_"]) + f"c{j}")
        kinds.append(kind)
        levels = rng.sample([word for word in WORDS if word], 3)
        cell = {
            "number": lambda: round(rng.gauss(0, 10 ** rng.randint(-2, 5)), rng.randint(1, 6)),
            "whole": lambda: float(rng.randint(-10000, 10000)),
            "text": lambda levels=levels: rng.choice(levels),
            "boolean": lambda: float(rng.random() < 0.5),
            "date": lambda: f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        }[kind]
        columns.append([None if i and rng.random() < gaps else cell() for i in range(rows)])
    return names, columns, kinds


def as_text(rng: random.Random, names: list[str], columns: list[list], kinds: list[str]) -> tuple[bytes, str]:
    """The contents and suffix of a file that holds the table in a random format."""
    delimiter = rng.choice([",", ";", "\t", "|", " "])
    if delimiter == " " and any(
        "two\nlines" in column for column in columns
    ):  # cells between blanks cannot contain line breaks
        delimiter = ";"
    decimal = rng.choice([".", ","]) if delimiter != "," or rng.random() < 0.3 else "."
    grouped, marks = rng.random() < 0.2, rng.sample(MISSING[delimiter == " " :], 2)

    def cell(value: object, kind: str) -> str:
        if value is None:
            return rng.choice(marks)
        if kind == "boolean":
            return str(bool(value))
        if isinstance(value, str):
            return value
        text = (
            f"{value:,.6f}" if grouped and abs(value) >= 1000 else repr(value) if kind == "number" else f"{value:.0f}"
        )
        return text.translate(str.maketrans(".,", ",.")) if decimal == "," else text

    file = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]) if delimiter != " " else csv.QUOTE_ALL
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"]))
    for comment in range(rng.choice([0, 0, 0, 2])):
        file.write(f"# comment {comment} of this file\n")
    writer.writerow(names)
    for row in zip(*columns, strict=True):
        writer.writerow([cell(value, kind) for value, kind in zip(row, kinds, strict=True)])
    text = file.getvalue()
    encodings = ["utf-8", "utf-8-sig", "utf-16"] + (["cp1252"] if "−" not in text else [])
    raw = text.encode(rng.choice(encodings))
    squeeze, suffix = rng.choice([(bytes, ".csv"), (bytes, ".dat"), (gzip.compress, ".csv.gz"), (bz2.compress, ".bz2")])
    return squeeze(raw), suffix


def check(path: Path, names: list[str], columns: list[list], kinds: list[str]) -> None:
    found = read_table(path)
    assert list(found.names) == [name.strip() for name in names]
    for name, values, kind in zip(found.names, columns, kinds, strict=True):
        column = found.columns[name]
        if kind == "date":
            assert column.kind == "dates"
        elif kind == "text":
            levels = [None if code < 0 else column.levels[code] for code in column.values]
            assert levels == values
        else:
            np.testing.assert_allclose(column.values, np.array(values, dtype=float), rtol=1e-12)


@pytest.mark.parametrize("seed", cases(range(12), range(12, 2000)))
def test_random_tables(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_nothing(monkeypatch)
    rng = random.Random(seed)
    names, columns, kinds = random_table(rng)
    raw, suffix = as_text(rng, names, columns, kinds)
    path = Path(f"t{suffix}")
    path.write_bytes(raw)
    check(path, names, columns, kinds)
    for damage in range(3):  # truncated, scrambled and overwritten files give an error line or a table
        if damage:
            at, raw = rng.randrange(len(raw)), bytearray(raw)
            raw[at : at + rng.choice([1, 1, 100])] = rng.choice([b"", b'"', b"\xff", b"\0", b"\n", b",;", b"NA\n\n"])
            path.write_bytes(bytes(raw))
            with contextlib.suppress(TableError):
                read_table(path)
        if damage == 0 or seed % 8 == 0:
            code = main(["fit", str(path), "--epochs", "2", "--out", "run"])
            err = capsys.readouterr().err
            assert code in (0, 2)
            assert err.count("\n") == (code == 2)
            assert not Path("run").exists() or {"encoding.json", "model.json", "history.csv"} < {
                p.name for p in Path("run").iterdir()
            }
            assert [p.name for p in tmp_path.iterdir() if p.name not in ("run", path.name)] == []
