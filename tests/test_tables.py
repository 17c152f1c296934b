# SPDX-License-Identifier: BSD-3-Clause
"""Tables from files: what is read, and the line that says why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from linreg_ext.tables import TableError, read_table

NUMBERS = [[1.5, -2.0, 3.0], [0.1, 1e-300, 7.0]]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", "a,b,c\n1.5,-2,3\n0.1,1e-300,7\n"),
        ("no_last_newline.csv", "a,b,c\n1.5,-2,3\n0.1,1e-300,7"),
        ("windows.csv", "\ufeffa,b,c\r\n1.5,-2,3\r\n0.1,1e-300,7\r\n\r\n\r\n"),
        ("quoted.csv", '"a","b",c\n"1.5",-2,3\n0.1, 1e-300 ,"7"\n  \n'),
        ("tabs.tsv", "a\tb\tc\n1.5\t-2\t3\n0.1\t1e-300\t7\n"),
        ("UPPER.CSV", "a,b,c\n1.5,-2,3\n0.1,1e-300,7\n"),
    ],
)
def test_text_tables_read_the_same(tmp_path: Path, name: str, content: str) -> None:
    table = read_table(written(tmp_path / name, content))
    assert table.columns == ("a", "b", "c")
    assert table.values.dtype == torch.float64
    assert table.values.tolist() == NUMBERS
    assert table.values.is_contiguous()


def test_a_first_row_of_numbers_is_data(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "t.csv", "1,2\n3,4\n"))
    assert table.columns == ("x0", "x1")
    assert table.values.tolist() == [[1, 2], [3, 4]]


def test_names_may_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", '"price, €","two\nlines"\n1,2\n3,x\n')
    with pytest.raises(TableError, match=re.escape(f"{path}, row 4, column 'two\nlines': expected a finite number")):
        read_table(path)
    written(path, '"price, €","say ""x"""\n1,2\n')
    assert read_table(path).columns == ("price, €", 'say "x"')


def test_numpy_tables(tmp_path: Path) -> None:
    matrix = np.array(NUMBERS)
    np.save(tmp_path / "m.npy", np.asfortranarray(matrix).astype(">f8"))
    np.savez(tmp_path / "m.npz", matrix)
    np.savez(tmp_path / "columns.npz", b=matrix[:, 1], a=matrix[:, 0].astype(np.float32))
    structured = np.array([(1, 2.5, True), (3, 4.5, False)], dtype=[("n", "i4"), ("v", "f8"), ("flag", "?")])
    np.save(tmp_path / "s.npy", structured)
    for name in ("m.npy", "m.npz"):
        table = read_table(tmp_path / name)
        assert table.columns == ("x0", "x1", "x2")
        assert table.values.tolist() == NUMBERS
    table = read_table(tmp_path / "columns.npz")
    assert table.columns == ("b", "a")
    assert table.values[:, 0].tolist() == matrix[:, 1].tolist()
    table = read_table(tmp_path / "s.npy")
    assert table.columns == ("n", "v", "flag")
    assert table.values.tolist() == [[1, 2.5, 1], [3, 4.5, 0]]


def test_parquet_tables(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import decimal

    import pyarrow.parquet as parquet

    columns = {
        "i": [2**60, -1],
        "f": pyarrow.array([0.5, 0.25], pyarrow.float32()),
        "flag": [True, False],
        "d": [decimal.Decimal("1.25"), decimal.Decimal("-7")],
    }
    folder = tmp_path / "year=2020"  # must not become a column
    folder.mkdir()
    parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    table = read_table(folder / "t.parquet")
    assert table.columns == ("i", "f", "flag", "d")
    assert table.values.tolist() == [[2.0**60, 0.5, 1, 1.25], [-1, 0.25, 0, -7]]


def test_pandas_row_labels_are_no_column(tmp_path: Path) -> None:
    """Fails where a filtered or sorted DataFrame's old row numbers become a column, and the last: fit's target."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    for labels in ([7, 3], ["x", "y"]):
        columns = {"a": [1.5, 2.5], "b": [3, 4], "__index_level_0__": labels, "__index_level_1__": labels}
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        table = read_table(tmp_path / "t.parquet")
        assert table.columns == ("a", "b")
        assert table.values.tolist() == [[1.5, 3], [2.5, 4]]


def test_bad_parquet_tables(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    tables = {
        "text": (pyarrow.table({"a": [1.0], "b": ["x"]}), "column 'b': expected numbers, got string"),
        "null": (
            pyarrow.table({"a": [1, 2, None]}),
            "row 3, column 'a': expected a finite number, got an empty cell",
        ),
        "nan": (
            pyarrow.table({"a": [1.0, float("nan")]}),
            "row 2, column 'a': expected a finite number, got 'nan'",
        ),
        "list": (pyarrow.table({"a": [[1.0]]}), "column 'a': expected numbers, got list"),
        "none": (
            pyarrow.table({"a": pyarrow.array([], pyarrow.float64())}),
            "expected rows of numbers, got none",
        ),
        "twice": (
            pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"]),
            "expected different column names, got 'a' 2 times",
        ),
    }
    for name, (table, message) in tables.items():
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        with pytest.raises(TableError, match=re.escape(f"{name}.parquet") + ".*" + re.escape(message)):
            read_table(tmp_path / f"{name}.parquet")
    for content in (b"", b"PAR1 and then something else PAR1"):
        with pytest.raises(TableError, match="expected a Parquet file") as caught:
            read_table(written(tmp_path / "broken.parquet", content))
        assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(TableError, match="pip install pyarrow"):
        read_table(written(tmp_path / "t.parquet", b"PAR1"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "expected a table, got an empty file"),
        ("t.csv", "\n\n", "expected a table, got an empty file"),
        ("t.csv", "a,b\n", "expected rows of numbers below the header, got none"),
        ("t.csv", "a,b\n1,2\n3\n", ", row 3: expected 2 values, got 1"),
        ("t.csv", "a,b\n1,2,3\n", ", row 2: expected 2 values, got 3"),
        ("t.csv", "a,b\n1,2\n\n3,4\n", ", row 3: expected 2 values, got an empty line"),
        ("t.csv", "a,b\n1,two\n", ", row 2, column 'b': expected a finite number, got 'two'"),
        ("t.csv", "a,b\r\n1,2\r\n1,1_000\r\n", ", row 3, column 'b': expected a finite number, got '1_000'"),
        ("t.csv", "a,b\n1,\n", ", row 2, column 'b': expected a finite number, got an empty cell"),
        ("t.csv", "a,b\nnan,2\n", ", row 2, column 'a': expected a finite number, got 'nan'"),
        ("t.csv", "a,b\n1,1e999\n", ", row 2, column 'b': expected a finite number, got '1e999'"),
        ("t.csv", "1,-inf\n", ", row 1, column 'x1': expected a finite number, got '-inf'"),
        ("t.csv", "a,b,a\n1,2,3\n", ": expected different column names, got 'a' 2 times"),
        ("t.csv", ",b\n1,2\n", ", row 1, column 1: expected a column name, got an empty cell"),
        ("t.csv", 'a,b\n"1"2,3\n', ", row 2: expected quoted or plain fields"),
        ("t.csv", b"a,b\n1,\xff\xfe\n", "expected UTF-8 text"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "expected UTF-8 text"),
        ("t.xlsx", "PK", "expected one of the suffixes .csv, .tsv, .parquet, .npy, .npz, got '.xlsx'"),
        ("t", "1,2\n", "got none"),
        ("t.npy", "", "expected NumPy arrays of numbers"),
        ("t.npy", b"\x80\x04K\x01.", "expected NumPy arrays of numbers (another kind of file)"),
        ("t.npz", "no archive", "expected NumPy arrays of numbers (another kind of file)"),
        ("t.npz", b"PK\x03\x04 cut off", "expected NumPy arrays of numbers"),
        (
            "t.csv",
            '"' + "a" * 200_000 + '"\n1\n',
            "row 1: expected quoted or plain fields (field larger than field limit",
        ),
        ("t.csv", "a,b\n1,2\0\n", ", row 2"),
        ("t.csv", "a,\x1b]0;b\n1,2\n", "expected column names without control characters, got '\\x1b]0;b'"),
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
        (lambda p: np.save(p, np.ones((0, 2))), "expected rows of numbers, got none"),
        (lambda p: np.save(p, np.ones((2, 0))), "expected a table, got no columns"),
        (lambda p: np.save(p, np.array([["a"]])), "column 'x0': expected numbers of shape [rows], got <U1"),
        (lambda p: np.save(p, np.array([[1, 2j]])), "got complex128"),
        (lambda p: np.save(p, np.array([[0, 1], [2, np.nan]])), ", row 2, column 'x1': expected a finite"),
        (lambda p: np.savez(p, a=np.ones(2), b=np.ones(3)), "'b': expected 2 rows as before it, got 3"),
        (lambda p: np.savez(p, a=np.ones(2), b=np.ones((2, 2))), "'b': expected numbers of shape [rows]"),
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


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing\.csv: no such file"):
        read_table(tmp_path / "nothing.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TableError, match=r"folder\.csv: expected a file, got a directory"):
        read_table(tmp_path / "folder.csv")


def test_select_takes_columns_by_name(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "t.csv", "a,b,c\n1,2,3\n4,5,6\n"))
    assert table.select(["c", "a"]).tolist() == [[3, 1], [6, 4]]
    with pytest.raises(TableError, match="expected a column 'd', got a, b, c"):
        table.select(["d"])


def test_a_file_that_is_one_endless_line(tmp_path: Path) -> None:
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    with pytest.raises(TableError, match="row 1: expected a row of numbers, got 67,108,864 characters"):
        read_table(tmp_path / "endless.csv")


def test_files_that_unfold_beyond_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the columns are read before anyone has asked how large they are."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    zeros = np.zeros(300_000)
    np.savez_compressed(tmp_path / "t.npz", a=zeros)
    monkeypatch.setattr(np.lib.format, "read_array", None)
    assert (tmp_path / "t.npz").stat().st_size < 10_000
    with pytest.raises(TableError, match=r"t\.npz: expected a table that fits into memory, got 0 GiB"):
        read_table(tmp_path / "t.npz")
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"a": zeros}), tmp_path / "t.parquet")
    monkeypatch.setattr(parquet.ParquetFile, "read", None)
    with pytest.raises(TableError, match=r"t\.parquet: expected a table that fits into memory, got 0 GiB"):
        read_table(tmp_path / "t.parquet")
