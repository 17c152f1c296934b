# SPDX-License-Identifier: BSD-3-Clause
"""`fit --by`: every group's coefficients are those of `lstsq` on its rows alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import crossed
from test_cli import _in_an_empty_folder, run  # noqa: F401 (a fixture)

from linreg_ext import lstsq
from linreg_ext.tables import NUMBER, read_table

pyarrow = pytest.importorskip("pyarrow")
csv, parquet = (pytest.importorskip(f"pyarrow.{name}") for name in ("csv", "parquet"))


def sales(rows: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    """Sales of shops that are not sorted, with a number, a text and a wide-ranging key for each."""
    rng = np.random.default_rng(seed)
    shop = rng.integers(0, 9, rows)
    columns = {
        "shop": shop + 1000,
        "town": np.array(["Ulm", "Bonn", "Jena", 'Köln "am" Rhein', "a,b", "ß", "x", "y", "z"])[shop],
        "key": (shop * 12_345_678_901 - 7),
        "share": shop / 8,
        "price": rng.random(rows),
        "adverts": rng.random(rows) * 1e3,
        "weight": rng.integers(0, 4, rows).astype(float),
    }
    columns["sold"] = 5 - shop * columns["price"] + columns["adverts"] / 100 + rng.normal(0, 0.1, rows)
    columns["lost"] = rng.random(rows)
    return columns


def write(path: str, columns: dict[str, np.ndarray]) -> None:
    table = pyarrow.table(dict(columns))
    if path.endswith(".parquet"):
        parquet.write_table(table, path, row_group_size=70)
    else:
        csv.write_csv(table, path)


def coefficients(folder: str) -> dict[str, list]:
    """The table of coefficients, in the format of the fitted table."""
    (path,) = Path(folder).glob("coefficients.*")
    return (parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)).to_pydict()


def test_float32_keys_that_are_close_are_groups_of_their_own() -> None:
    key = np.tile(np.array([-100, 0, 1e-6], np.float32), 10)
    write("t.parquet", {"key": key, "x": np.arange(30.0), "y": np.arange(30.0) ** 2})
    assert run("fit", "t.parquet", "--by", "key", "--target", "y", "--out", "out") == 0
    assert coefficients("out")["key"] == sorted({float(k) for k in key})


@crossed(2, by=["shop", "town", "key", "share"], form=["csv", "parquet"])
def test_each_group_is_fitted_as_if_alone(form: str, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns = sales()
    write(f"sales.{form}", columns)
    options = ("--features", "price", "adverts", "--target", "sold", "lost", "--weight", "weight")
    assert run("fit", f"sales.{form}", "--by", by, *options, "--out", "out") == 0
    assert f"by {by}: 9 groups of " in capsys.readouterr().out
    found = coefficients("out")
    cells = sorted(set(columns[by].tolist()))
    assert found[by] == [cell for cell in cells for _ in range(2)]
    assert found["target"] == ["sold", "lost"] * 9
    x, y = (torch.from_numpy(np.column_stack([columns[c] for c in names])) for names in (options[1:3], options[4:6]))
    for g, cell in enumerate(cells):
        rows = columns[by] == cell
        weight = columns["weight"][rows]
        alone = lstsq(x[rows], y[rows], weight=torch.from_numpy(weight))
        for k in range(2):
            row = {name: values[2 * g + k] for name, values in found.items()}
            assert row["rows"] == (weight > 0).sum()
            rmse = (alone.residual_sum_of_squares[k] / weight.sum()).sqrt()
            expected = [
                alone.bias[k],
                *alone.weight[k],
                alone.bias_stderr[k],
                *alone.weight_stderr[k],
                alone.r2[k],
                rmse,
            ]
            names = [
                "intercept",
                "price",
                "adverts",
                "intercept_stderr",
                "price_stderr",
                "adverts_stderr",
                "r2",
                "rmse",
            ]
            assert [row[name] for name in names] == pytest.approx([float(v) for v in expected], rel=1e-9)


@pytest.mark.drawn
def test_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    write("sales.parquet", sales())
    assert run("fit", "sales.parquet", "--by", "town", "--drop", "shop", "key", "--target", "sold") == 0
    names = {"coefficients.parquet", "encoding.json", "model.json", "plot.png"}
    assert {path.name for path in Path("runs/sales").iterdir()} == names
    assert json.loads(Path("runs/sales/model.json").read_text())["by"] == "town"
    assert Path("runs/sales/plot.png").read_bytes()[:4] == b"\x89PNG"
    table = read_table(Path("runs/sales/coefficients.parquet"))  # it is a table that `fit` reads
    assert table.rows == 9
    assert table.columns["rows"].kind == NUMBER
    assert run("fit", "sales.parquet", "--by", "shop", "--features", "price") == 0  # replaces it
    capsys.readouterr()
    assert run("predict", "runs/sales", "sales.parquet") == 2
    assert "runs/sales: was fitted with --by" in capsys.readouterr().err


def test_missing_cells_and_groups_that_are_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text(
        "g,a,b,y\n" + "".join(f"u,{i},{i * i},{i + i * i}\n" for i in range(6)) + "v,1,5,4\nv,,5,4\n,1,1,1\nw,2,2,\n"
        "x,1,2,1\nx,2,4,2\nx,3,6,4\nx,4,8,4\n"
    )
    assert run("fit", "t.csv", "--by", "g", "--out", "out") == 0
    out = capsys.readouterr().out
    assert "dropped 3 of 14 rows with missing cells (y 1, a 1, g 1)" in out
    assert "by g: 4 groups of 0 to 6 rows" in out
    assert "1 group (w) with no training rows" in out
    assert "2 groups (v, …) with too few rows, or constant or dependent columns" in out
    found = coefficients("out")
    assert found["g"] == ["u", "v", "w", "x"]
    assert found["rows"] == [6, 1, 0, 4]
    assert found["a"][0] == pytest.approx(1)
    assert found["b"][0] == pytest.approx(1)
    assert (found["intercept"][1], found["a"][1], found["b"][1]) == (4, 0, 0)
    assert found["a"][2] is None
    assert found["b"][3] == pytest.approx(2 * found["a"][3])  # of all best solutions, the smallest


@pytest.mark.parametrize(("block", "held"), [(None, None), (500, 1600), (500, 200)])
def test_held_out_rows_and_ridge(
    block: int | None, held: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if block:
        monkeypatch.setattr("linreg_ext.tables.stream._ROWS", block)
        monkeypatch.setattr("linreg_ext.cli.stream._HELD", held)
    columns = sales(3000)
    write("sales.parquet", columns)
    options = ("--features", "price", "--target", "sold", "--out", "out")
    assert run("fit", "sales.parquet", "--by", "shop", *options, "--val-fraction", 0.25, "--l2", 2) == 0
    out = capsys.readouterr().out
    assert "with an l2 penalty of 2 in each group" in out
    assert "RMSE over the validation rows of all groups: " in out
    trained = int(out.partition(" rows, ")[2].partition(" to train")[0].replace(",", ""))
    assert 2150 < trained < 2350
    assert sum(coefficients("out")["rows"]) == trained
    assert run("fit", "sales.parquet", "--by", "shop", *options, "--l2", 2) == 0
    rows = columns["shop"] == 1003
    alone = lstsq(torch.from_numpy(columns["price"][rows, None]), torch.from_numpy(columns["sold"][rows]), l2=2.0)
    assert coefficients("out")["price"][3] == pytest.approx(alone.weight.item())


BLOCKS = 70_000  # rows of more than a block


def blocks(**columns: object) -> dict[str, np.ndarray]:
    """A table of two blocks."""
    rows = np.arange(BLOCKS)
    return {"a": rows % 13 + rows / BLOCKS, "c": rows % 7 * 1.0, **columns, "y": rows % 5 + rows / 9}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_numbers_in_some_blocks_and_text_in_others(form: str) -> None:
    group = np.where(np.arange(BLOCKS) < 69_000, "7", "seven")
    write(f"t.{form}", blocks(g=group))
    if form == "parquet":
        parquet.write_table(parquet.read_table("t.parquet"), "t.parquet")
    options = ("--features", "a", "--target", "y", "--out", "out")
    assert run("fit", f"t.{form}", "--by", "g", *options) == 0
    found = coefficients("out")
    assert [str(cell) for cell in found["g"]] == ["7", "seven"]
    assert found["rows"] == [69_000, 1_000]


def test_cells_of_one_block_that_look_missing_are_levels() -> None:
    """Text that is missing among numbers is a group, and a level, in blocks that hold nothing else, too."""
    group = np.where(np.arange(BLOCKS) < 66_000, "none", np.where(np.arange(BLOCKS) % 2 == 0, "some", "none"))
    write("t.parquet", blocks(g=group, h=np.arange(BLOCKS) % 2))
    parquet.write_table(parquet.read_table("t.parquet"), "t.parquet")
    assert run("fit", "t.parquet", "--by", "h", "--features", "a", "g", "--target", "y", "--out", "out") == 0
    assert sum(coefficients("out")["rows"]) == BLOCKS
    assert run("fit", "t.parquet", "--by", "g", "--features", "a", "--target", "y", "--out", "out") == 0
    assert coefficients("out")["rows"] == [68_000, 2_000]


def test_a_block_without_weight_and_numbers_as_categories() -> None:
    rows = np.arange(BLOCKS)
    write("t.parquet", blocks(h=rows % 2, month=rows % 12, v=(rows >= 68_000) * 1.0))
    parquet.write_table(parquet.read_table("t.parquet"), "t.parquet")
    options = ("--features", "a", "month", "--categories", "month", "--target", "y", "--weight", "v", "--out", "out")
    assert run("fit", "t.parquet", "--by", "h", *options) == 0
    found = coefficients("out")
    assert found["rows"] == [1_000, 1_000]
    assert "month[11]" in found


def test_a_feature_may_be_missing_where_the_target_is() -> None:
    Path("t.csv").write_text("g,a,y\nu,1,1\nu,,\nu,3,4\nu,5,5\n")
    assert run("fit", "t.csv", "--by", "g", "--missing", "error", "--out", "out") == 0
    assert coefficients("out")["rows"] == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--by nothing", "--by nothing: t.csv has the columns g, day, a, id, big, zero, gap, late, y"),
        ("--by g --target g", "--target g: another option names it, too"),
        ("--by g --features g", "--by g: another option names it, too"),
        ("--by day --features a", "--by day: expected a column of numbers or text, got dates"),
        ("--by day --categories day --target g", "t.csv, row 1, column 'g': expected a number, got 'u'"),
        ("--by g --features a big", "--by: column 'big' is too large or too small; multiply it by a power of ten"),
        ("--by g --features a --weight zero", "--weight zero: every weight is 0"),
        (
            "--by id --features a",
            "--by id: has numbers beyond 2^53, of which float64 cannot tell all apart; --categories id reads",
        ),
        ("--by g --lr 1", "argument --by: fits each group exactly; leave out --loss and the options of SGD"),
        ("--by g --solver sgd", "argument --by: fits each group exactly"),
        (
            "--by g --features gap --missing error",
            "t.csv, row 2, column 'gap': expected a value, got none (--missing drop)",
        ),
        ("--by g --features gap late", "t.csv: expected at least 2 rows without missing cells, got 1"),
        ("--by g --missing mean", "--by: --missing mean needs the table in memory; use --missing drop"),
    ],
)
def test_bad_input_is_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (
        f"u,2020-01-0{i},{i},{2**53 + i},{i}e200,0,{i if i % 2 else ''},{i if i > 6 else ''},{i}\n" for i in range(1, 9)
    )
    Path("t.csv").write_text("g,day,a,id,big,zero,gap,late,y\n" + "".join(lines))
    assert run("fit", "t.csv", *options.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_dates_and_large_numbers_are_groups_as_categories(form: str) -> None:
    days = np.repeat(np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"), 10)
    columns = {"day": days, "id": 2**60 + np.repeat([1, 2], 10), "a": np.arange(20.0), "y": np.arange(20.0) ** 2}
    write(f"t.{form}", columns)
    for by, cells in (("day", ["2020-01-01", "2020-01-02"]), ("id", [2**60 + 1, 2**60 + 2])):
        options = ("--by", by, "--categories", by, "--features", "a", "--target", "y")
        assert run("fit", f"t.{form}", *options, "--out", "out") == 0
        assert [str(cell) for cell in coefficients("out")[by]] == [str(cell) for cell in cells]


def test_columns_named_like_figures_keep_their_names() -> None:
    columns = sales()
    write("t.parquet", {"rows": columns["shop"], "rmse": columns["price"], "y": columns["sold"]})
    assert run("fit", "t.parquet", "--by", "rows", "--out", "out") == 0
    names = list(coefficients("out"))
    assert names[:6] == ["rows", "target", "rows_", "r2", "rmse", "intercept"]
    assert "rmse_" in names
