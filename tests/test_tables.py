# SPDX-License-Identifier: BSD-3-Clause
"""Real-world tables: reading, encoding and one-line errors."""

from __future__ import annotations

import bz2
import decimal
import gzip
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from linreg_ext.tables import Encoding, Options, Stream, Table, TableError, find_encoding, position, read_table

NUMBERS = {"a": [1.5, 0.1], "b": [-2.0, 1e-300], "c": [3.0, 7.0]}
nan = float("nan")

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="needs pyarrow")


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(table: Table) -> dict[str, list]:
    """The columns as Python values: floats, or texts with None if missing; other columns as their kind."""
    found = {}
    for name, column in table.columns.items():
        found[name] = column.kind if column.values is None else column.values.tolist()
        if column.levels:
            found[name] = [None if code < 0 else column.levels[code] for code in column.values]
    return found


def read(path: Path, content: bytes | str, **options: object) -> dict[str, list]:
    return cells(read_table(written(path, content), Options(**options)))


def same(found: object, expected: object) -> bool:
    """Whether two values are equal; nan equals nan."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and same(list(found.values()), list(expected.values()))
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected or (found != found and expected != expected)


PLAIN = "a,b,c\n1.5,-2,3\n0.1,1e-300,7\n"


GZIP = gzip.compress(PLAIN.encode(), mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.rstrip(),
        "\ufeff" + PLAIN.replace("\n", "\r\n") + "\r\n\r\n",
        PLAIN.replace("\n", "\r"),
        '"a","b",c\n"1.5",-2,3\n0.1, 1e-300 ,"7"\n  \n',
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "  a b    c\n 1.5   -2\t3\n0.1 1e-300   7  \n",
        "sep=;\n" + PLAIN.replace(",", ";"),
        "sep=,\n" + PLAIN,
        PLAIN.replace(",", ";").replace(".", ","),
        PLAIN.replace(",", "\t").replace(".", ","),
        'a,b,c\n"1,5",-2,3\n"0,1","1e-300",7\n',
        "# a comment, with commas\n# and more\n" + PLAIN,
        "# a,b,c\n" + PLAIN.partition("\n")[2],
        PLAIN.replace("0.1", "# in between\n0.1") + "# at the end",
        "The title of the table\n\n" + PLAIN,
        "a,b,c,\n1.5,-2,3\n0.1,1e-300,7\n",
        '"a" "b" "c"\n"x" 1.5 -2 3\n"y" 0.1 1e-300 7\n',
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        GZIP,
        bz2.compress(PLAIN.encode()),
    ],
    ids=range(24),
)
def test_texts_that_say_the_same(tmp_path: Path, content: bytes | str) -> None:
    for name in ("t.csv", "t.data", "t"):
        found = read(tmp_path / name, content)
        assert {name: found[name] for name in "abc"} == NUMBERS
        assert len(found) == 3 or list(found) == ["x0", "a", "b", "c"]  # the names of the rows, as R writes them


def test_zstd(tmp_path: Path) -> None:
    import pyarrow

    with pyarrow.CompressedOutputStream(str(tmp_path / "t.csv.zst"), "zstd") as file:
        file.write(PLAIN.encode())
    assert cells(read_table(tmp_path / "t.csv.zst")) == NUMBERS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1,2\n3,4\n", {"x0": [1, 3], "x1": [2, 4]}),
        ("0,1,2\n1.5,2,3\n", {"0": [1.5], "1": [2], "2": [3]}),  # pandas' names of columns without one
        (",0,1\n0,1.5,2\n1,2.5,3\n", {"x0": [0, 1], "0": [1.5, 2.5], "1": [2, 3]}),
        ("land,2019,2020,2021\nA,1.5,2,3\nB,1,1,1\n", {"land": ["A", "B"], "2019": [1.5, 1], "2020": [2, 1], "2021": [3, 1]}),
        ("0.1,NA,3\n0.2,5,6\n", {"x0": [0.1, 0.2], "x1": [nan, 5], "x2": [3, 6]}),
        ("0.1,?,3\n0.2,5,6\n", {"x0": [0.1, 0.2], "x1": [nan, 5], "x2": [3, 6]}),
        ("1,5;2,5\n3,5;4,5\n", {"x0": [1.5, 3.5], "x1": [2.5, 4.5]}),
        ("NA,?,3\n5,6,7\n", {"x0": [nan, 5], "x1": [nan, 6], "x2": [3, 7]}),
        ("M,0.4,15\nF,0.3,7\n", {"x0": ["M", "F"], "x1": [0.4, 0.3], "x2": [15, 7]}),
        ("a,b\n", None),
        (",TV,sales\n1,2.5,3\n2,3.5,4\n", {"x0": [1, 2], "TV": [2.5, 3.5], "sales": [3, 4]}),
        ("#,name\n1,x\n2,y\n", {"#": [1, 2], "name": ["x", "y"]}),
        ("a\n1\n\n2\n", {"a": [1, 2]}),
        ("a,b,\n1,2,\n3,4,\n", {"a": [1, 3], "b": [2, 4], "x2": "no values"}),
    ],
)  # fmt: skip
def test_headers(tmp_path: Path, content: str, expected: dict[str, list] | None) -> None:
    if expected is None:
        with pytest.raises(TableError, match="expected rows of data below the header, got none"):
            read(tmp_path / "t.csv", content)
    else:
        assert same(read(tmp_path / "t.csv", content), expected)


def test_headers_that_are_given(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", "1,2\n3,4\n", header=True) == {"1": [3], "2": [4]}
    assert read(tmp_path / "t.csv", "a,2\n3,4\n", header=False) == {"x0": ["a", "3"], "x1": [2, 4]}
    table = read_table(written(tmp_path / "t.csv", "1,2\n3,4\n"))
    assert table.notes == ("the first line contains numbers and is read as data; the columns are x0, x1, … (--header)",)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["1", "NA", "?", "", "nan", "NULL", "-", ".", " NA ", "2"], [1, *[nan] * 8, 2]),
        (
            ["red", "NA", "?", "", "nan", "NULL", "-", ".", "None"],
            ["red", None, None, None, None, None, "-", ".", "None"],
        ),
        (["NA", "", "?"], "no values"),
        (["True", "FALSE", "", "true"], [1, 0, nan, 1]),
        (["yes", "no", "yes"], ["yes", "no", "yes"]),
        (["2011-01-01", "2011-12-31", ""], "dates"),
        (["31.12.2011 23:59", "1.1.2012 0:00"], "dates"),
        (["1,234.5", "45,470.00", "7"], [1234.5, 45470, 7]),
        (["1 234", "12 345 678", "7.5"], [1234, 12345678, 7.5]),
        (["1_000", "2"], ["1_000", "2"]),
        (["+1", "1.", ".5", "-1E5", " 2 "], [1, 1, 0.5, -1e5, 2]),
        (["inf", "-inf", "1e999"], [float("inf"), -float("inf"), float("inf")]),
    ],
)
def test_kinds_of_columns(tmp_path: Path, column: list[str], expected: list | str) -> None:
    """Columns have the same kind in text and in Parquet, even if the first rows are unlike the rest."""
    import pyarrow
    import pyarrow.parquet as parquet

    text = "k;v\n" + "".join(f'{i};"{cell}"\n' for i, cell in enumerate(column))
    found = read(tmp_path / "t.csv", text, decimal=".")
    assert same(found["v"], expected)
    parquet.write_table(pyarrow.table({"v": column}), tmp_path / "t.parquet")
    assert same(cells(read_table(tmp_path / "t.parquet"))["v"], expected)


def test_what_the_first_rows_do_not_show(tmp_path: Path) -> None:
    """Text, other encodings, line breaks and long rows are read even after 300 kB of numbers."""
    rows = "".join(f"{i},{i % 7}.5,{i % 3}\n" for i in range(30_000))
    late = "a,b,c\n" + rows + '1,"one\ntwo é",3\n"1,000",5,' + " " * 3_000_000 + "6\n# end\n"
    for encoding in ("utf-8", "cp1252"):
        found = read(tmp_path / "t.csv", late.encode(encoding))
        assert found["a"][-2:] == [1, 1000]
        assert found["b"][0] == "0.5"
        assert found["b"][-2:] == ["one\ntwo é", "5"]
        assert found["c"][-2:] == [3, 6]
        assert len(found["a"]) == 30_002


def test_marks_of_missing_cells_that_are_given(tmp_path: Path) -> None:
    text = "a,b\n-200,x\n-200.0,-200\n3,y\n"
    assert same(read(tmp_path / "t.csv", text, missing=("-200",)), {"a": [nan, nan, 3], "b": ["x", None, "y"]})


def test_only_what_is_needed_is_parsed(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", 'a,b,c\n1,"' + "x" * 100_000 + '",3\n2,y,4\n')
    table = read_table(path, choose=lambda names: {names[2], names[0]})
    assert cells(table) == {"a": [1, 2], "c": [3, 4]}
    assert table.names == ("a", "b", "c")
    assert cells(read_table(path, text={"a"}, choose=lambda names: "a")) == {"a": ["1", "2"]}


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    columns = {
        "i": [2**60, -1, None],
        "f": pyarrow.array([0.5, 0.25, nan], pyarrow.float32()),
        "flag": [True, False, None],
        "d": [decimal.Decimal("1.25"), None, decimal.Decimal("-7")],
        "text": pyarrow.array(["x", "y", None]).dictionary_encode(),
        "code": pyarrow.array([7, 8, 7]).dictionary_encode(),
        "day": pyarrow.array([0, 1, 2], pyarrow.date32()),
        "list": [[1], [2], []],
        "void": pyarrow.nulls(3),
    }
    folder = tmp_path / "year=2020"  # must not become a column
    folder.mkdir()
    parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    assert same(
        cells(read_table(folder / "t.parquet")),
        {
            "i": [2.0**60, -1, nan], "f": [0.5, 0.25, nan], "flag": [1, 0, nan], "d": [1.25, nan, -7],
            "text": ["x", "y", None], "code": [7, 8, 7], "day": "dates", "list": "list<element: int64>", "void": "no values",
        },
    )  # fmt: skip
    assert cells(read_table(folder / "t.parquet", text=["i", "code"], choose=lambda _: ["code"])) == {
        "code": ["7", "8", "7"]
    }


def test_folders_of_parquet_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    for year, value in ((2019, 1.0), (2020, 2.0)):
        (tmp_path / "t" / f"year={year}").mkdir(parents=True)
        parquet.write_table(pyarrow.table({"a": [value, value]}), tmp_path / "t" / f"year={year}" / "part-0.parquet")
    written(tmp_path / "t" / "_SUCCESS", "")
    found = cells(read_table(tmp_path / "t"))
    assert found == {"a": [1, 1, 2, 2], "year": [2019, 2019, 2020, 2020]}


@pytest.mark.parametrize(("name", "labels"), [("house", ["house"]), (None, ["__index_level_0__"]), ("range", [])])
def test_the_index_of_a_pandas_frame(tmp_path: Path, name: str | None, labels: list[str]) -> None:
    """The index comes last in the file, in the default target's place."""
    import pyarrow
    import pyarrow.parquet as parquet

    index = {"kind": "range", "start": 0, "stop": 2, "step": 1} if name == "range" else (name or "__index_level_0__")
    columns = {"a": [1.5, 2.5], "price": [3.0, 4.0]} | ({} if name == "range" else {index: [7, 3]})
    metadata = {b"pandas": json.dumps({"index_columns": [index]}).encode()}
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.parquet").labels) == labels


@pytest.mark.parametrize(
    ("first", "labels"),
    [(["0", "1", "2"], True), (["7", "3", "5"], True), (["a", "b", "b"], True), (["1", "1", "2"], False), (["0.5", "1", "2"], False)],
)  # fmt: skip
def test_the_index_of_a_frame_in_text(tmp_path: Path, first: list[str], labels: bool) -> None:
    rows = "".join(f"{cell},{i * i}\n" for i, cell in enumerate(first))
    assert read_table(written(tmp_path / "t.csv", ",y\n" + rows)).labels == (("x0",) if labels else ())


def test_numpy(tmp_path: Path) -> None:
    matrix = np.array([*NUMBERS.values()]).T
    np.save(tmp_path / "m.npy", np.asfortranarray(matrix).astype(">f8"))
    np.savez(tmp_path / "m.npz", matrix)
    np.savez(tmp_path / "columns.npz", b=matrix[:, 1], s=np.array(["u", "v"]), d=np.array(["2020-01-01"] * 2, "M8[D]"))
    structured = np.array([(1, nan, True), (3, 4.5, False)], dtype=[("n", "i4"), ("v", "f8"), ("flag", "?")])
    np.save(tmp_path / "s.npy", structured)
    for name in ("m.npy", "m.npz"):
        assert list(cells(read_table(tmp_path / name)).items()) == [
            (f"x{i}", v) for i, v in enumerate(NUMBERS.values())
        ]
    assert cells(read_table(tmp_path / "columns.npz")) == {"b": [-2, 1e-300], "s": ["u", "v"], "d": "dates"}
    assert same(cells(read_table(tmp_path / "s.npy")), {"n": [1, 3], "v": [nan, 4.5], "flag": [1, 0]})


def test_x_and_y_of_numpy(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", y=np.array([5.0, 6]), X=np.array([[1.0, 2], [3, 4]]))
    table = read_table(tmp_path / "t.npz")
    assert cells(table) == {"y": [5, 6], "x0": [1, 3], "x1": [2, 4]}
    assert table.targets == ("y",)
    np.savez(tmp_path / "t.npz", X=np.ones((2, 1)), Y=np.ones((2, 2)))
    assert read_table(tmp_path / "t.npz").targets == ("y0", "y1")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.csv"):
        monkeypatch.setitem(sys.modules, name, None)
    for content in (
        PLAIN,
        "# comment\n" + PLAIN.replace(",", ";"),
        PLAIN.replace(",", "  "),
        GZIP,
    ):
        assert read(tmp_path / "t.csv", content) == NUMBERS
    for name, content in (("t.csv", "a,b\n1,x\n"), ("t.csv", b"\x28\xb5\x2f\xfd"), ("t.parquet", b"PAR1")):
        with pytest.raises(TableError, match="pip install pyarrow"):
            read_table(written(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "expected a table, got an empty file"),
        ("t.csv", "\n\n# only a comment\n", "expected a table, got an empty file"),
        ("t.csv", "a,b\n1,2\n3\n", ", row 3: expected 2 values, got 1 (the delimiter is ',';"),
        ("t.csv", "a,b\n\n1,2\n\n#\n3,4,5\n6,7\n", ", row 6: expected 2 values, got 3"),
        ("t.csv", "a,b\n1,2,3\n4,5,6\n", ", row 1: expected 3 values as in row 2, got 2"),
        ("t.csv", "a,b,a\n1,2,3\n", ": expected distinct column names, got 'a' 2 times"),
        ("t.csv", "a,\x1b]0;b\n1,2\n", "expected column names without control characters, got '\\x1b]0;b'"),
        ("t.csv", b"a,b\n1,\0\0\0\n", "expected text, got binary data"),
        ("t.csv", b"a,\x81\n1,2\n", "expected cp1252 text, got other bytes; --encoding names another"),
        ("t.gz", GZIP[:-12], "cannot be read (Compressed file ended"),
        ("t.gz", GZIP[:-12] + b"12345678 and more", "cannot be read ("),
        ("t.xlsx", "PK\3\4 and more", "expected NumPy arrays of numbers"),
        ("t.npy", "", "expected NumPy arrays of numbers"),
        ("t.npy", b"\x80\x04K\x01.", "expected NumPy arrays of numbers (not a NumPy file)"),
        ("t.npz", b"PK\x03\x04 cut off", "expected NumPy arrays of numbers"),
        ("t.parquet", "", "expected a Parquet file"),
        ("t.parquet", b"PAR1 and then something else PAR1", "expected a Parquet file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(TableError, match=re.escape(str(path)) + ".*" + re.escape(message)) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda p: np.save(p, np.array([[1, None]], dtype=object)), "Object arrays cannot be loaded"),
        (lambda p: np.save(p, np.ones(3)), "expected a 2-D array, got shape [3]"),
        (lambda p: np.save(p, np.ones((0, 2))), "expected rows of data, got none"),
        (lambda p: np.save(p, np.ones((2, 0))), "expected rows of data, got none"),
        (lambda p: np.savez(p, a=np.ones(2), b=np.ones(3)), "'b': expected 2 rows as in the first, got 3"),
        (lambda p: np.savez(p, a=np.ones(2), b=np.ones((2, 2, 2))), "'b': expected shape [rows] or [rows, columns]"),
        (lambda p: np.savez(p, a=np.array(["x", None], dtype=object)), "Object arrays cannot be loaded"),
    ],
)  # fmt: skip
def test_bad_arrays(tmp_path: Path, save: Callable[[Path], None], message: str) -> None:
    base = tmp_path / "t"
    with open(base, "wb") as file:
        save(file)
    path = base.rename(tmp_path / ("t.npz" if base.read_bytes()[:2] == b"PK" else "t.npy"))
    with pytest.raises(TableError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        read_table(path)


def test_bad_paths_and_encodings(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing\.csv: no such file"):
        read_table(tmp_path / "nothing.csv")
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    with pytest.raises(TableError, match=r"endless\.csv: expected a file, got a device"):
        read_table(tmp_path / "endless.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TableError, match="folder: expected "):
        read_table(tmp_path / "folder")
    for encoding in ("ascii", "no-such"):
        with pytest.raises(TableError, match=f"expected {encoding} text, got other bytes; --encoding names another"):
            read(tmp_path / "t.csv", "a,é\n1,2\n", encoding=encoding)
    assert read(tmp_path / "t.csv", "a,é\n1,2\n".encode("latin-1"), encoding="latin-1") == {"a": [1], "é": [2]}


@pytest.mark.extended
def test_a_file_that_is_one_endless_line(tmp_path: Path) -> None:
    written(tmp_path / "t.csv.gz", gzip.compress(b"1," * (1 << 26)))
    with pytest.raises(TableError, match="row 1: expected a row of cells, got 67,108,864 bytes without a line break"):
        read_table(tmp_path / "t.csv.gz")


def test_files_that_unfold_beyond_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if columns are read before their size is checked."""
    import pyarrow
    import pyarrow.parquet as parquet

    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    zeros = np.zeros(300_000)
    np.savez_compressed(tmp_path / "t.npz", a=zeros)
    parquet.write_table(pyarrow.table({"a": zeros}), tmp_path / "t.parquet")
    assert (tmp_path / "t.npz").stat().st_size < 10_000
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    monkeypatch.setattr(np.lib.format, "read_array", None)
    monkeypatch.setattr(parquet.ParquetFile, "read", None)
    for name in ("t.npz", "t.parquet"):
        with pytest.raises(
            TableError, match=rf"{re.escape(name)}: expected a table that fits in memory, got 0\.0 GiB; fit --stream"
        ):
            read_table(tmp_path / name)


def test_columns_by_name_or_number() -> None:
    assert position(["x0", "x1", "7"], "1") == 1
    assert position(["x0", "x1", "7"], "7") == 2
    assert position(["x0", "x1", "7"], "2") is None


def encoded(path: Path, content: str, targets: list[str], **options: object) -> tuple[Encoding, list, list[str]]:
    """The encoding of all columns except the targets, the encoded rows, and the notes."""
    table = read_table(written(path, content), text=options.get("categories", ()))
    features = [name for name in table.columns if name not in (*targets, *options.get("others", ()))]
    encoding, rows, notes = find_encoding(table, features, targets, **options)
    return encoding, encoding.encode(table, rows).tolist(), notes


def test_categories_are_treatment_coded(tmp_path: Path) -> None:
    text = "color,flag,size,y\nred,True,1,1\nblue,False,2,2\nred,True,,3\ngreen,True,4,4\n"
    encoding, x, notes = encoded(tmp_path / "t.csv", text, ["y"])
    assert encoding.names == ("color[green]", "color[red]", "flag", "size")
    assert x == [[0, 1, 1, 1], [0, 0, 0, 2], [1, 0, 1, 4]]
    assert notes == ["dropped 1 of 4 rows with missing cells (size 1); --missing mean keeps them"]
    assert Encoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
    encoding, x, _ = encoded(tmp_path / "t.csv", text, ["y"], categories=("size",), missing="mean")
    assert encoding.names == ("color[green]", "color[red]", "flag", "size[2]", "size[4]")
    assert np.isnan(x[2][3:]).all()
    assert x[3] == [1, 0, 1, 0, 1]


def test_levels_are_those_of_the_rows_that_are_used(tmp_path: Path) -> None:
    text = "c,d,y\nu,1,1\nv,2,2\nw,,3\nx,4,\nu,4,5\n"
    encoding, _, _ = encoded(tmp_path / "t.csv", text, ["y"])
    assert encoding.features[0].levels == ("u", "v")
    table = read_table(tmp_path / "t.csv")
    with pytest.raises(
        TableError, match=r"column 'c': the model does not know 'x' \(1 rows\); it knows u, v \(--unseen"
    ):
        encoding.encode(table)  # w is in a row without a prediction
    assert encoding.encode(table, unseen="base")[3].tolist() == [0, 4]


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ([f"id{i}" for i in range(30)], "text with 30 distinct values; --categories v makes it a category"),
        (["2020-01-01"] * 30, "dates; --categories v makes each a level"),
        (["7"] * 30, "7 in every row"),
        (["u"] * 29 + ["NA"], "'u' in every row"),
        ([""] * 30, "no values"),
        ([*map(str, range(1, 30)), "two"], "text in row 31, 'two', among numbers; --na 'two' treats it as missing"),
    ],
)
def test_columns_that_are_left_out(tmp_path: Path, column: list[str], why: str) -> None:
    text = "v,a,y\n" + "".join(f"{cell},{i},{i % 4}\n" for i, cell in enumerate(column))
    encoding, x, notes = encoded(tmp_path / "t.csv", text, ["y"])
    assert encoding.names == ("a",)
    assert notes == [f"left out v: {why}"]
    assert len(x) == 30
    encoding, _, _ = encoded(tmp_path / "t.csv", text, ["y"], categories=("v",))
    assert len(encoding.names) == max(1, len({*column} - {"NA", ""}))


def test_a_text_among_numbers_makes_a_category(tmp_path: Path) -> None:
    text = "v,y\n" + "".join(f"{i % 4 if i != 7 else 'x'},{i}\n" for i in range(20))
    encoding, _, notes = encoded(tmp_path / "t.csv", text, ["y"])
    assert encoding.features[0].levels == ("0", "1", "2", "3", "x")
    assert notes == ["v is a category: text in row 9, 'x', among numbers; --na 'x' treats it as missing"]
    assert encoded(tmp_path / "t.csv", text, ["y"], categories=("v",))[2] == []


def test_how_many_levels_are_too_many(tmp_path: Path) -> None:
    for levels, rows, taken in ((20, 50, True), (21, 50, False), (30, 300, True), (31, 300, False)):
        text = "v,a,y\n" + "".join(f"u{i % levels},{i},{i % 4}\n" for i in range(rows))
        assert len(encoded(tmp_path / "t.csv", text, ["y"])[0].names) == (levels if taken else 1)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,y\n1,2\n3,x\n", {}, ", row 3, column 'y': expected a number, got 'x' (--na 'x' treats it as missing)"),
        ("a,y\n1,2\n3,inf\n", {}, ", row 3, column 'y': expected a finite number, got inf"),
        ("a,y\n1,2\ninf,3\n", {}, ", row 3, column 'a': expected a finite number, got inf"),
        ("a,y\n1,2020-01-01\n3,2021-01-01\n", {}, ", column 'y': expected numbers, got dates"),
        ("a,y\n1,\n3,NA\n", {}, ": no row has values for y"),
        (
            "a,b,y\n1,,1\n2,,1\n,3,2\n,4,2\n,,3\n",
            {},
            "each of 5 rows has missing cells: a in 3, b in 3; --missing mean keeps",
        ),
        (
            "a,b,y\n1,2,1\n3,NA,2\n4,5,6\n",
            {"missing": "error"},
            ", row 3, column 'b': expected a value, got none (--missing drop or mean)",
        ),
        ("a,y\n1,2\n1,3\n", {}, ": no feature is left (a: 1 in every row)"),
    ],
)
def test_tables_that_cannot_be_encoded(tmp_path: Path, content: str, options: dict, message: str) -> None:
    with pytest.raises(TableError, match=re.escape(message)):
        encoded(tmp_path / "t.csv", content, ["y"], **options)


def test_what_does_not_fit_an_encoding(tmp_path: Path) -> None:
    encoding, _, _ = encoded(tmp_path / "t.csv", "c,a,y\nu,1,1\nv,2,2\nu,4,5\n", ["y"])
    for content, message in (
        ("c,y\nu,1\n", "expected a column 'a', got c, y"),
        ("c,a\nu,1\nv,2 m\n", ", row 3, column 'a': expected a number, got '2 m'"),
        ("c,a\n1,1\n1,2\n", "column 'c': expected text, got numbers"),
    ):
        with pytest.raises(TableError, match=re.escape(message)):
            encoding.encode(read_table(written(tmp_path / "t.csv", content)))
    written(tmp_path / "t.csv", "a,c\n5,\n,v\n6,v\n")
    x = encoding.encode(read_table(tmp_path / "t.csv", text=["c"]))
    assert same(x.tolist(), [[nan, 5], [1, nan], [1, 6]])
    filled = Encoding(encoding.features, encoding.targets, fill=(0.25, 7))
    assert filled.encode(read_table(tmp_path / "t.csv", text=["c"])).tolist() == [[0.25, 5], [1, 7], [1, 6]]


@pytest.mark.parametrize(
    "change", [{"features": 5}, {"fill": [1, 2, 3]}, {"targets": "y"}, {"features": [{}]}, {"missing": [1]}]
)
def test_broken_encodings(change: dict) -> None:
    saved = Encoding((), ("y",)).to_json()
    assert Encoding.from_json(saved).targets == ("y",)
    with pytest.raises((ValueError, TypeError, KeyError)):
        Encoding.from_json(saved | change)


@pytest.mark.parametrize("form", ["csv", "csv.gz", "blanks", "parquet", "folder"])
def test_progress_adds_up_to_the_bytes_of_the_file(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.setattr("linreg_ext.tables.stream._ROWS", 5000)
    path, lines = tmp_path / f"t.{form}", "a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(30_000))
    if form in ("csv", "csv.gz", "blanks"):
        lines = lines.replace(",", "   ") if form == "blanks" else lines
        written(path, gzip.compress(lines.encode()) if form == "csv.gz" else lines)
        parts = [(0, 1)]
    else:
        path.mkdir() if form == "folder" else None
        table = pyarrow.table({"a": np.arange(30_000), "b": np.random.default_rng(0).random(30_000)})
        for file in (path / "1.parquet", path / "2.parquet") if form == "folder" else (path,):
            pyarrow.parquet.write_table(table, file, row_group_size=7000)
        parts = [(0, 2), (1, 2)]
    for shard in parts:
        stream, read = Stream(path, Options(), lambda names: names, (), shard), []
        assert sum(block.rows for block in stream.blocks(progress=read.append)) > 0
        assert len(read) > 1
        assert sum(read) == pytest.approx(stream.bytes, abs=len(read))
