# SPDX-License-Identifier: BSD-3-Clause
"""The command line: fits, output files, and one-line errors for bad input."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nist
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import cases, crossed

import linreg_ext
from linreg_ext import plots
from linreg_ext.cli import main, train
from linreg_ext.cli.arguments import parse
from linreg_ext.cli.coefficients import load_weights
from linreg_ext.cli.dataset import hold_out
from linreg_ext.cli.processes import Processes
from linreg_ext.cli.stream import fit_stream
from linreg_ext.tables import Encoding, Feature, read_table, reading

FRUIT = Path(linreg_ext.__file__).parent / "data" / "apples_and_oranges.csv"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    if "drawn" not in request.keywords:
        draw_nothing(monkeypatch)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small fit, rendering the plot takes nearly all the time."""
    monkeypatch.setattr(plots, "_saved", lambda figure, file: file.write(b"a plot"))


def run(*argv: object) -> int:
    try:
        return main([str(argument) for argument in argv])
    except SystemExit as end:  # from argparse
        return end.code


def table(path: str, content: str) -> Path:
    Path(path).write_text(content)
    return Path(path)


def everything() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def random_table(path: str, rows: int, scales: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = scales * (3 + random.standard_normal((rows, len(scales))))
    y = (x / scales) @ random.standard_normal(len(scales)) + 5 + noise * random.standard_normal(rows)
    np.savez(path, **{f"f{i}": column for i, column in enumerate(x.T)}, y=y)
    return x, y


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [K, D] and intercepts [K] from NumPy, in the units of x [N, D] and y [N, K]."""
    centre, spread = x.mean(0), x.std(0)
    design = np.column_stack([(x - centre) / spread, np.ones(len(x))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    weight = (solution[:-1] / spread[:, None]).T
    return weight, solution[-1] - weight @ centre


def values_of(path: str | Path) -> np.ndarray:
    """The columns of a table of numbers, [rows, columns]."""
    return np.column_stack([column.values for column in read_table(path).columns.values()])


def predictions(folder: str, x: np.ndarray) -> np.ndarray:
    """The predictions of a model without categories."""
    return load_weights(Path(folder)).predict(torch.from_numpy(x)).numpy()


def r2(actual: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return 1 - ((actual - predicted) ** 2).mean(0) / actual.var(0)


@pytest.mark.drawn
def test_the_default_job_fits_the_shipped_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--solver", "sgd") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-3] == "SGD: the squared error is the least-squares minimum"
    assert "15 rows, 12 to train on, 3 held out to validate\n3 features: temperature, rainfall, humidity\n" in out
    assert "Epoch [200/200]" in out
    assert max(map(len, out.splitlines())) <= 100
    scores = {
        line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("apples ", "oranges "))
    }
    for target in ("apples", "oranges"):
        r2_training, rmse_training, r2_validation, rmse_validation = map(float, scores[target])
        assert r2_training >= 0.98
        assert r2_validation >= 0.98
        assert 0 < rmse_training < 2
        assert 0 < rmse_validation < 2
    folder = Path("runs/apples_and_oranges")
    assert {path.name for path in folder.iterdir()} >= {"history.csv"}
    assert everything()[0] == "runs"
    assert not [path for path in everything() if "linreg_ext-" in path]


def test_coefficients_are_least_squares_in_the_tables_units() -> None:
    assert run("fit", "--solver", "sgd", "--val-fraction", 0, "--out", "fruit") == 0
    model = load_weights(Path("fruit"))
    values = values_of(FRUIT)
    x, y = values[:, :3], values[:, 3:]
    weight, bias = least_squares(x, y)
    assert model.features == ("temperature", "rainfall", "humidity")
    assert model.targets == ("apples", "oranges")
    # Training in float32 on standardised columns leaves only rounding errors, here of about 100 units.
    in_units = x.std(0) / y.std(0)[:, None]
    assert np.abs((model.weight.numpy() - weight) * in_units).max() < 2e-5
    predicted = model.predict(torch.from_numpy(x)).numpy()
    assert np.abs((predicted - (x @ weight.T + bias)) / y.std(0)).max() < 5e-5


@pytest.mark.parametrize("loss", cases(["l1", "huber"], ["smooth-l1", "quantile"]))
def test_the_other_losses_fit_too(loss: str) -> None:
    assert run("fit", "--loss", loss, "--val-fraction", 0, "--out", "out") == 0
    values = values_of(FRUIT)
    assert r2(values[:, 3:], predictions("out", values[:, :3])).min() > 0.99


def test_the_intercept_is_in_the_tables_units() -> None:
    """Minimising absolute error makes half of the residuals positive, even if skewed; centring alone does not."""
    random = np.random.default_rng(2)
    x, noise = random.standard_normal((2, 400))
    y = 1000 + 100 * (x + np.exp(1.5 * noise))
    np.savez("skewed.npz", x=x, y=y)
    assert run("fit", "skewed.npz", "--loss", "l1", "--val-fraction", 0, "--out", "out") == 0
    residual = y - load_weights(Path("out")).predict(torch.from_numpy(x)[:, None])[:, 0].numpy()
    assert abs((residual > 0).mean() - 0.5) < 0.03


def test_diabetes_reaches_least_squares() -> None:
    data = pytest.importorskip("sklearn.datasets").load_diabetes(scaled=False)
    header = ",".join([*data.feature_names, "progression"])
    np.savetxt("diabetes.csv", np.column_stack([data.data, data.target]), delimiter=",", header=header, comments="")
    assert run("fit", "diabetes.csv", "--val-fraction", 0) == 0
    predicted = load_weights(Path("runs/diabetes")).predict(torch.from_numpy(data.data)).numpy()
    weight, bias = least_squares(data.data, data.target[:, None])
    best = r2(data.target[:, None], data.data @ weight.T + bias)
    assert best - r2(data.target[:, None], predicted) < 1e-3


def test_wildly_scaled_columns_reach_least_squares() -> None:
    scales = 10.0 ** np.linspace(-6, 6, 20)
    x, y = random_table("wild.npz", 10_000, scales, noise=0.5)
    assert run("fit", "wild.npz", "--epochs", 12, "--val-fraction", 0, "--batch-size", 128) == 0
    model = load_weights(Path("runs/wild"))
    weight, bias = least_squares(x, y[:, None])
    assert np.abs((model.weight.numpy() - weight) * scales).max() < 0.05 * 0.5
    best = r2(y[:, None], x @ weight.T + bias)
    assert best - r2(y[:, None], model.predict(torch.from_numpy(x)).numpy()) < 1e-4


def test_many_correlated_columns_do_not_diverge() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((500, 200)) + 3 * random.standard_normal((500, 1))
    np.save("wide.npy", np.column_stack([x, x @ random.standard_normal(200)]))
    assert run("fit", "wide.npy", "--epochs", 20) == 0


def test_training_on_the_numbers_as_they_are() -> None:
    assert run("fit", "--no-standardize", "--epochs", 500, "--val-fraction", 0, "--out", "raw") == 0
    values = values_of(FRUIT)
    assert r2(values[:, 3:], predictions("raw", values[:, :3])).min() > 0.95


def test_the_same_seed_writes_the_same_bytes() -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(torch.seed())
        assert run("fit", "--seed", seed, "--epochs", 20, "--batch-size", 4, "--out", folder) == 0
    weights = [load_weights(Path(folder)) for folder in "abc"]
    assert torch.equal(weights[0].weight, weights[1].weight)
    assert torch.equal(weights[0].bias, weights[1].bias)
    assert Path("a/history.csv").read_bytes() == Path("b/history.csv").read_bytes()
    assert not torch.equal(weights[0].weight, weights[2].weight)


@pytest.mark.parametrize("gaps", [False, True])
def test_statistics_come_from_the_training_rows_alone(gaps: bool) -> None:
    """The numbers in validation rows affect neither weights nor fill values."""
    random_table("t.npz", 50, np.ones(3), noise=0.1)
    held_out = hold_out(Path("t.npz"), 50, 0.2, torch.Generator().manual_seed(0)).numpy()
    columns = dict(np.load("t.npz"))
    if gaps:
        columns["f1"][np.flatnonzero(~held_out)[:5]] = np.nan
    np.savez("t.npz", **columns)
    for values in columns.values():
        values[held_out] *= 1000
    np.savez("changed.npz", **columns)
    for name in ("t", "changed"):
        assert run("fit", f"{name}.npz", "--epochs", 5, "--missing", "mean") == 0
    first, second = (load_weights(Path("runs") / name) for name in ("t", "changed"))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("solver", ["exact", "sgd"])
def test_a_weight_of_k_is_k_rows(solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights and scores agree with those of a table that repeats each row k times."""
    random = np.random.default_rng(0)
    x, k = random.standard_normal((40, 2)), random.integers(0, 4, 40)
    y = x @ [1, 2] + random.standard_normal(40)
    np.savez("once.npz", a=x[:, 0], b=x[:, 1], k=k, y=y)
    np.savez("often.npz", **{name: np.repeat(v, k) for name, v in (("a", x[:, 0]), ("b", x[:, 1]), ("y", y))})
    printed = []
    for command in (("fit", "once.npz", "--weight", "k"), ("fit", "often.npz")):
        assert run(*command, "--val-fraction", 0, "--solver", solver) == 0
        printed.append([line for line in capsys.readouterr().out.splitlines() if "RMSE" in line])
    assert predictions("runs/once", x) == pytest.approx(predictions("runs/often", x), abs=1e-5)
    assert printed[0] == printed[1] != []


def test_collinear_columns_reach_least_squares() -> None:
    """For columns like polynomials, coefficients may change sign far from the minimum."""
    t = np.linspace(-1, 3, 101)
    columns = {f"t{p}": t**p for p in range(1, 5)}
    y = np.sin(2 * t) + 100
    np.savez("poly.npz", **columns, twice=2 * t, y=y)
    assert run("fit", "poly.npz", "--solver", "sgd", "--val-fraction", 0) == 0
    x = np.column_stack([*columns.values(), 2 * t])
    best = x[:, :4] @ least_squares(x[:, :4], y[:, None])[0][0]
    best += (y - best).mean()
    rmse = np.sqrt(np.mean((y - predictions("runs/poly", x)[:, 0]) ** 2))
    assert rmse <= 1.001 * np.sqrt(np.mean((y - best) ** 2))


def test_the_quantile_is_that_of_the_residuals() -> None:
    random = np.random.default_rng(2)
    x, noise = random.standard_normal((2, 1000))
    np.savez("t.npz", x=x, y=3 * x + np.exp(noise))
    assert run("fit", "t.npz", "--quantile", 0.9, "--val-fraction", 0) == 0
    above = 3 * x + np.exp(noise) > predictions("runs/t", x[:, None])[:, 0]
    assert abs(above.mean() - 0.1) < 0.01


PEOPLE = "name,age,sex,born,city,const,score\n" + "".join(
    f"id-{i},{'' if i == 7 else i % 30},{'FM'[i % 2]},2000-01-{1 + i % 28:02},{'xyz'[i * i % 3]},1,{'NA' if i == 9 else i % 13}\n"
    for i in range(60)
)


def test_a_table_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    """`fit` reports how it treats text, dates, gaps and a constant; `predict` needs only the features."""
    table("people.csv", PEOPLE)
    assert run("fit", "people.csv", "-v") == 0
    out = capsys.readouterr().out
    for line in (
        "people.csv: 58 rows, 46 to train on, 12 held out to validate",
        "left out name: text with 59 distinct values; --categories name makes it a category",
        "left out born: dates; --categories born makes each a level",
        "left out const: 1 in every row",
        "dropped 2 of 60 rows with missing cells (score 1, age 1); --missing mean keeps them",
        "3 features in 3 columns: age, sex (2 levels), city (2 levels)",
        "1 target: score, the last column of numbers (--target names another)",
        "sex (base F)",
        "city (base x)",
    ):
        assert line in out.splitlines()
    assert [line.split()[0] for line in out.splitlines() if " took " in line] == ["reading", "solving", "drawing"]
    points = {
        line.index(".") for line in out.partition("units:\n")[2].partition("\n\n")[0].splitlines()[1:] if "." in line
    }
    assert len(points) == 1  # aligned decimal points
    table("new.csv", "city;age;sex;score;id\ny;1,5;M;;7\nx;;F;;8\nx;2;M;;009\n")
    assert run("predict", "runs/people", "new.csv", "--id", "id", "--out", "new.parquet") == 0
    out, err = capsys.readouterr()
    assert out == "wrote new.parquet: 3 rows\n"
    assert err == "linreg_ext: 1 of 3 rows get no prediction because of missing cells: age in 1\n"
    found = read_table("new.parquet", text=["id"]).columns
    assert found["id"].levels == ("009", "7", "8")
    assert np.isnan(found["score"].values).tolist() == [False, True, False]
    table("unseen.csv", "age,sex,city\n1,M,w\n2,F,w\n3,F,x\n")
    assert run("predict", "runs/people", "unseen.csv") == 2
    assert "column 'city': the model does not know 'w' (2 rows); it knows x, y" in capsys.readouterr().err
    assert run("predict", "runs/people", "unseen.csv", "--unseen", "base") == 0


def test_missing_cells_that_are_filled(capsys: pytest.CaptureFixture[str]) -> None:
    table("people.csv", PEOPLE)
    assert run("fit", "people.csv", "--missing", "mean", "--val-fraction", 0, "--drop", "name", "born") == 0
    assert "dropped 1 of 60 rows with a missing target, filled missing features with means (" in capsys.readouterr().out
    saved = json.loads(Path("runs/people/encoding.json").read_text())
    ages = [i % 30 for i in range(60) if i not in (7, 9)]
    assert saved["fill"][0] == pytest.approx(sum(ages) / len(ages))
    table("new.csv", "city,age,sex\nx,,F\n" + f"x,{saved['fill'][0]!r},F\n")
    capsys.readouterr()
    assert run("predict", "runs/people", "new.csv") == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_columns_without_names_go_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[i, i % 3, i % 5, i % 7] for i in range(20)]
    table("t.data", "".join("  ".join(map(str, row)) + "\n" for row in rows))
    assert run("fit", "t.data", "--target", 1, "--drop", 0, "--categories", 2) == 0
    out = capsys.readouterr().out
    assert "the first line contains numbers and is read as data; the columns are x0, x1, … (--header)" in out
    assert "2 features in 5 columns: x2 (5 levels), x3\n1 target: x1\n" in out


@pytest.mark.parametrize("index", ["", "house"])
def test_an_index_is_neither_feature_nor_target(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    columns = {
        "a": [1.0, 2, 4, 7, 3, 5],
        "price": [3.0, 5, 9, 14, 8, 1],
        index or "__index_level_0__": [5, 3, 4, 1, 9, 2],
    }
    metadata = {b"pandas": json.dumps({"index_columns": [index or "__index_level_0__"]}).encode()}
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), "t.parquet")
    table(
        "t.csv",
        "".join(
            ",".join(map(str, row)) + "\n"
            for row in [
                (index, "a", "price"),
                *zip(columns[index or "__index_level_0__"], columns["a"], columns["price"], strict=True),
            ]
        ),
    )
    for name in ("t.parquet", "t.csv") if not index else ("t.parquet",):
        assert run("fit", name, "--val-fraction", 0) == 0
        assert "1 feature: a\n1 target: price, " in capsys.readouterr().out
    np.savez("t.npz", y=np.arange(9.0) ** 2, X=np.random.default_rng(0).standard_normal((9, 2)))
    assert run("fit", "t.npz", "--val-fraction", 0) == 0
    assert "2 features: x0, x1\n1 target: y\n" in capsys.readouterr().out


def test_rare_columns_get_coefficient_0(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    columns = {f"c{j}": (np.arange(300) == 7 * j) * 1 for j in range(40)}
    np.savez("rare.npz", **columns, a=random.normal(size=300), y=random.normal(size=300))
    for solver in ("exact", "sgd"):
        assert run("fit", "rare.npz", "--solver", solver) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("coefficient 0 because"))
        model = load_weights(Path("runs/rare"))
        zeros = [name for name, weight in zip(model.features, model.weight[0], strict=True) if weight == 0]
        assert line == f"coefficient 0 because the column is constant over the training rows: {', '.join(zeros)}"


def test_log_lines_are_those_of_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    table("people.csv", PEOPLE)
    for command in (("--val-fraction", 0), ("--batch-size", 7)):
        assert run("fit", "people.csv", "--epochs", 20, *command, "--out", "run") == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
        with open("run/history.csv", newline="") as file:
            history = list(csv.DictReader(file))
        for epoch, line in zip((1, *range(2, 21, 2)), lines, strict=True):
            row = history[epoch - 1]
            validation = f", Val loss: {float(row['validation_loss']):.6g}" if "validation_loss" in row else ""
            assert line == f"Epoch [{epoch}/20], Loss: {float(row['train_loss']):.6g}{validation}"


def test_history_and_weights_files() -> None:
    safetensors = pytest.importorskip("safetensors")
    assert run("fit", "--epochs", 7, "--lr", 0.01, "--out", "deep/er/run") == 0
    with open("deep/er/run/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "train_loss", "validation_loss", "lr"]
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 8)]
    assert float(rows[0]["lr"]) == 0.01
    assert float(rows[-1]["lr"]) < 0.001
    with safetensors.safe_open("deep/er/run/weights.safetensors", "pt") as file:
        assert file.metadata() == {
            "features": '["temperature", "rainfall", "humidity"]',
            "targets": '["apples", "oranges"]',
        }
        assert file.get_tensor("weight").shape == (2, 3)
        assert file.get_tensor("bias").dtype == torch.float64
    modes = {path.stat().st_mode & 0o777 for path in Path("deep/er/run").iterdir()}
    assert modes == {0o666 & ~umask()}
    assert Path("deep/er/run").stat().st_mode & 0o777 == 0o777 & ~umask()
    assert run("fit", "--epochs", 1, "--val-fraction", 0, "--out", "deep/er/run") == 0
    assert Path("deep/er/run/history.csv").read_text().splitlines()[0] == "epoch,train_loss,lr"


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_predict_finds_its_columns_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--epochs", 50, "--out", "model") == 0
    capsys.readouterr()
    assert run("predict", "model", FRUIT) == 0
    printed = capsys.readouterr().out
    table("new.csv", "note,humidity,apples,temperature,rainfall\nA-1,43,,73,67\nA-2,64,,91,88\n")
    assert run("predict", "model", "new.csv", "--out", "new_out.csv") == 0
    written = Path("new_out.csv").read_text()
    assert written.splitlines()[0] == "apples,oranges"
    expected = predictions("model", values_of(FRUIT)[:, :3])
    rows = [[float(cell) for cell in row] for row in csv.reader(printed.splitlines()[1:])]
    assert rows == expected.tolist()
    # A product with a different number of rows may sum in a different order: four terms of at most about 100.
    np.testing.assert_allclose(values_of("new_out.csv"), rows[:2], atol=4 * 128 * 2**-52)
    assert capsys.readouterr().err == ""


def test_optional_packages_are_optional(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("safetensors", "safetensors.torch", "matplotlib.figure", "tqdm"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("fit", "--epochs", 5, "--out", "model") == 0
    out, err = capsys.readouterr()
    assert "Epoch [5/5]" in out
    assert "no plot.png: " in out
    assert "pip install matplotlib" in out
    assert err == ""
    names = {path.name for path in Path("model").iterdir()}
    assert names == {"weights.pt", "encoding.json", "model.json", "history.csv"}
    assert run("predict", "model", FRUIT) == 0
    assert capsys.readouterr().out.count("\n") == 16


def test_a_terminal_gets_a_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("fit", "--epochs", 5) == 0
    out, err = capsys.readouterr()
    assert "5/5" in err
    assert "Epoch" not in out


def test_reading_takes_a_progress_bar_where_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(reading, "_SLOW", 10)
    Path("t.csv.gz").write_bytes(gzip.compress(FRUIT.read_bytes()))
    for name in (FRUIT, Path("t.csv.gz")):
        found = read_table(name, progress=True)
        assert found.rows == 15
        assert f"reading {name.name}: " in capsys.readouterr().err
    read_table(FRUIT)
    assert capsys.readouterr().err == ""


def test_info_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    out = capsys.readouterr().out
    assert f"linreg_ext            {linreg_ext.__version__}" in out
    assert torch.__version__ in out
    for command in ("fit", "predict", "info"):
        assert run(command, "--help") == 0
        text = capsys.readouterr().out
        assert f"example: linreg-ext {command}" in text
        assert len(text.splitlines()) <= 55  # a screen
        assert max(map(len, text.splitlines())) <= 100
    assert run("--version") == 0
    assert capsys.readouterr().out == f"linreg_ext {linreg_ext.__version__}\n"


GOOD = "a,b,y\n1,5,3\n2,4,1\n3,7,2\n4,1,9\n5,2,4\n6,3,7\n"
BAD = [
    ("fit nothing.csv", "nothing.csv: no such file"),
    ("fit empty.csv", "empty.csv: expected a table, got an empty file"),
    (
        "fit text.csv --target b",
        "text.csv, row 3, column 'b': expected a number, got 'x' (--na 'x' treats it as missing",
    ),
    ("fit nan.csv", "nan.csv: no feature is left (a: no values)"),
    ("fit good.csv --target a --features a", "--target a: another option names it, too"),
    ("fit good.csv --drop z", "--drop z: good.csv has the columns a, b, y"),
    ("fit good.csv --weight z", "--weight z: good.csv has the columns a, b, y"),
    ("fit signed.csv --weight w", "signed.csv, row 3, column 'w': expected a weight >= 0, got -1"),
    ("fit signed.csv --weight v", "--weight v: every weight is 0"),
    (
        "fit gaps.csv --missing error",
        "gaps.csv, row 3, column 'a': expected a value, got none (--missing drop or mean)",
    ),
    ("fit words.csv", "words.csv: expected a column of numbers as the target, got none"),
    ("fit good.csv --delimiter ab", "argument --delimiter: expected one character, tab or blanks, got 'ab'"),
    (
        "fit good.csv --solver exact --lr 1",
        "argument --solver: exact solves the squared error and has no --lr; use --solver sgd",
    ),
    (
        "fit good.csv --solver exact --loss l1",
        "argument --solver: exact solves the squared error and has no --loss l1; use --solver sgd",
    ),
    ("fit good.csv --l2 1 --lr 1", "argument --l2: requires --solver exact (--lr chooses sgd); SGD has --weight-decay"),
    ("fit good.csv --l2 1 --solver sgd", "argument --l2: requires --solver exact; SGD has --weight-decay"),
    ("fit good.csv --quantile 1", "argument --quantile: expected a number between 0 and 1, got '1'"),
    ("fit good.csv --quantile 0.5 --loss l1", "argument --quantile: requires --loss quantile, got --loss l1"),
    ("fit good.csv --targte y", "unrecognized argument: --targte; did you mean --target?"),
    ("fit good.csv --outt=x", "unrecognized argument: --outt=x; did you mean --out?"),
    ("predict model needed.csv --idd c", "unrecognized argument: --idd; did you mean --id?"),
    ("fit good.csv --target z", "--target z: good.csv has the columns a, b, y"),
    ("fit --target y good.csv", "TABLE comes before the options that take several columns"),
    ("fit good.csv --target a a", "--target a: named twice"),
    ("fit good.csv --target a b y", "every column is a target"),
    ("fit one_column.csv", "every column is a target"),
    ("fit one_row.csv", "expected at least 2 rows without missing cells, got 1"),
    ("fit two_rows.csv", "--val-fraction 0.2: holds out 0 of the 2 rows of two_rows.csv"),
    ("fit good.csv --val-fraction 0.9", "--val-fraction 0.9: holds out 5 of the 6 rows"),
    ("fit flat.csv --target b", "target 'b' must vary, got 7 in all rows"),
    ("fit rare.csv --val-fraction 0.5 --target b", "target 'b' must vary, got 0 in the 4 training rows"),
    ("fit huge.csv --no-standardize", "feature 'a' has numbers beyond float32's range"),
    ("fit good.csv --lr 50", "training diverges"),
    ("fit good.csv --lr 1 --no-standardize --momentum 0", "lower --lr (1) or drop --no-standardize"),
    ("fit good.csv --lr 2 --epochs 5 --momentum 0", "training diverges: the loss went from"),
    *(
        (command, "the coefficient of 'b' for 'y' is too small for a float64 in the table's own units; divide 'b' or")
        for command in ("fit small.csv", "fit small.csv --loss l1")
    ),
    (
        "fit large.csv",
        "the coefficient of 'b' for 'y' is too large for a float64 in the table's own units; multiply 'b'",
    ),
    ("fit far.csv", "the intercept of 'y' is too large for a float64; divide 'y' by a power of ten"),
    ("fit good.csv --out good.csv/run", "good.csv is not a folder)"),
    ("fit good.csv --out good.csv", "--out good.csv: expected a folder, got a file"),
    (
        "fit good.csv --out mine",
        "--out mine: contains files that are not from an earlier fit, such as 'notes.txt', and",
    ),
    ("fit good.csv --out .", "--out .: contains files that are not from an earlier fit"),
    ("fit good.csv --epochs 0", "argument --epochs: expected a whole number > 0 and < 2^31, got '0'"),
    ("fit good.csv --epochs -3", "argument --epochs: expected a whole number > 0 and < 2^31, got '-3'"),
    ("fit good.csv --epochs 1.5", "argument --epochs: expected a whole number > 0 and < 2^31, got '1.5'"),
    ("fit good.csv --epochs 2147483648", "expected a whole number > 0 and < 2^31, got '2147483648'"),
    ("fit good.csv --lr 0", "argument --lr: expected a number > 0, got '0'"),
    ("fit good.csv --lr nan", "argument --lr: expected a number > 0, got 'nan'"),
    ("fit good.csv --batch-size 0", "argument --batch-size: expected a whole number > 0 and < 2^31, got '0'"),
    ("fit good.csv --momentum 1", "argument --momentum: expected a number from 0 to below 1, got '1'"),
    ("fit good.csv --weight-decay -1", "argument --weight-decay: expected a number >= 0, got '-1'"),
    (
        "fit good.csv --val-fraction 1",
        "argument --val-fraction: expected a number from 0 to below 1, got '1'",
    ),
    ("fit good.csv --seed x", "argument --seed: expected a whole number >= 0 and < 2^63, got 'x'"),
    ("fit good.csv --loss cubic", "argument --loss: invalid choice: 'cubic'"),
    ("predict nowhere good.csv", "nowhere: no such folder"),
    ("predict mine good.csv", "mine: contains no weights of an earlier fit"),
    ("predict broken good.csv", "broken/weights.pt: expected the weights of an earlier fit"),
    ("predict foreign good.csv", "foreign/weights.pt: expected the weights of an earlier fit"),
    ("predict garbled good.csv", "garbled/weights.safetensors: "),
    ("predict model good.csv", "good.csv: expected a column 'c', got a, b, y"),
    ("predict model needed.csv --id z", "--id z: needed.csv has the columns c"),
    ("predict model good.csv --id y", "--id y: the model predicts a column of this name"),
    ("predict old needed.csv", "old/encoding.json: no such file; run fit again"),
    ("predict mixed needed.csv", "mixed/encoding.json: expected the encoding of an earlier fit (it does not match"),
    ("predict model needed.csv --out needed.csv", "--out needed.csv: is the table itself"),
    ("predict model needed.csv --out mine", "mine: Is a directory"),
    ("predict model needed.csv --out good.csv/x", "good.csv/x: Not a directory"),
    ("", "the following arguments are required"),
    ("train", "invalid choice: 'train'"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    table("good.csv", GOOD)
    table("empty.csv", "")
    table("text.csv", "a,b\n1,2\n3,x\n")
    table("nan.csv", "a,b\nnan,2\nNA,3\n")
    table("one_column.csv", "a\n1\n2\n")
    table("one_row.csv", "a,b\n1,2\n")
    table("two_rows.csv", "a,b\n1,2\n3,4\n")
    table("flat.csv", "a,b,y\n1,7,3\n2,7,1\n3,7,2\n4,7,4\n5,7,3\n")
    table("rare.csv", "a,b,y\n" + "".join(f"{i},{int(i == RARE_ROW)},{i % 3}\n" for i in range(8)))
    table("huge.csv", "a,y\n1e200,1\n2e200,2\n3e200,4\n0,3\n1,3\n")
    for name, a, b, y in (
        ("small", "e-200", "e200", "e-200"),
        ("large", "e200", "e-200", "e200"),
        ("far", "", "", "e306"),
    ):
        table(f"{name}.csv", "a,b,y\n" + "".join(f"{1000 + i}{a},{i % 5}{b},{i}{y}\n" for i in range(20)))
    table("needed.csv", "c\n1\n2\n")
    table("signed.csv", "a,w,v,y\n1,1,0,2\n2,-1,0,3\n3,2,0,5\n4,1,0,5\n")
    table("gaps.csv", "a,b,y\n1,2,3\n,5,6\n3,3,3\n5,6,9\n")
    table("words.csv", "a,b\nu,v\nw,x\n")
    for folder in ("mine", "broken", "foreign", "garbled", "model", "old", "mixed"):
        Path(folder).mkdir()
    table("mine/notes.txt", "keep me")
    table("broken/weights.pt", "no archive")
    table("garbled/weights.safetensors", "\0" * 20)
    torch.save({"weight": torch.ones(2, 2)}, "foreign/weights.pt")
    line = {"features": ["c"], "targets": ["y"]}
    for folder, column in (("model", "c"), ("old", None), ("mixed", "d")):
        weights = {**line, "weight": torch.ones(1, 1).double(), "bias": torch.ones(1).double()}
        torch.save(weights, f"{folder}/weights.pt")
        if column:
            table(f"{folder}/encoding.json", json.dumps(Encoding((Feature(column),), ("y",)).to_json()))
    before = everything()
    assert run(*command.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("linreg_ext: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert everything() == before


# The first of the 4 validation rows that seed 0 draws from 8.
RARE_ROW = int(torch.randperm(8, generator=torch.Generator().manual_seed(0))[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--device", "cuda") == 2
    assert capsys.readouterr().err == "linreg_ext: error: --device cuda: this PyTorch finds no CUDA device\n"
    assert everything() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_fits_as_the_cpu_does() -> None:
    for device in ("cpu", "cuda"):
        assert run("fit", "--device", device, "--out", device) == 0
    on_cpu, on_cuda = (load_weights(Path(device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_cuda.weight, on_cpu.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", ["e-200", "", "e200"])
def test_huge_and_tiny_numbers_are_fine_when_standardised(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    table("huge.csv", "a,y\n" + "".join(f"{i}{unit},{i + i % 2}{unit}\n" for i in range(1, 9)))
    assert run("fit", "huge.csv", "--val-fraction", 0) == 0
    name, r2, rmse = capsys.readouterr().out.splitlines()[-3].split()
    assert (name, r2) == ("y", "0.9524")  # least squares: 1 - 1/21
    assert float(rmse) == pytest.approx(float(f"0.488{unit}"), rel=1e-3)  # √(5/21)


def test_a_call_takes_many_epochs_and_validates_each(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, last_losses, sgd_run = [], [], train.sgd_run

    def spy(step: tuple, order: torch.Tensor, validation: tuple, sizes: tuple, steps: int, chunks: list) -> None:
        sgd_run(step, order, validation, sizes, steps, chunks)
        taken.append(sizes[2])
        x, y, _ = validation
        trained = step[0][order.unique()].tolist()
        assert (len(trained), len(x)) == (12, 3)
        assert not any(row in trained for row in x.tolist())
        last_losses.append(F.mse_loss(F.linear(x, *step[2]), y).item())

    monkeypatch.setattr(train, "sgd_run", spy)
    assert run("fit", "--epochs", 200, "--batch-size", 4, "--out", "run") == 0
    assert taken == [20] * 10
    val_loss = read_table("run/history.csv").columns["validation_loss"].values
    assert val_loss[19::20] == pytest.approx(last_losses, rel=1e-5)
    assert len(val_loss) == 200
    assert len(set(val_loss[:100])) == 100


def test_ctrl_c_leaves_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "sgd_run", interrupted)
    assert run("fit", "--solver", "sgd", "--out", "some/where") == 130
    assert capsys.readouterr().err == "linreg_ext: error: interrupted\n"
    assert everything() == []


def test_a_new_fit_leaves_nothing_of_the_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("matplotlib")
    assert run("fit", "--epochs", 1, "--out", "run") == 0
    origin = ["run/encoding.json", "run/history.csv", "run/model.json"]
    assert everything() == ["run", *origin, "run/plot.png", "run/weights.safetensors"]
    for name in ("safetensors.torch", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run("fit", "--epochs", 1, "--out", "run") == 0
    assert everything() == ["run", *origin, "run/weights.pt"]


def test_the_default_learning_curve_only_falls() -> None:
    """Full batches at the default rate and momentum do not overshoot."""
    assert run("fit", "--solver", "sgd", "--out", "run") == 0
    loss = read_table("run/history.csv").columns["train_loss"].values
    assert (np.diff(loss) <= 1e-6).all()  # float32 rounding of losses of at most 1


def test_a_failed_run_keeps_the_earlier_one() -> None:
    assert run("fit", "--epochs", 5, "--out", "run") == 0
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    assert run("fit", "--lr", 1e6, "--out", "run") == 2
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before
    assert run("fit", "run/history.csv", "--out", "run") == 2
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


@pytest.mark.extended
def test_a_reader_that_leaves_is_no_error() -> None:
    """As in `… predict model big.csv | head -1`."""
    assert run("fit", "--epochs", 1, "--out", "model") == 0
    rows = "".join(f"{i},{i % 7},{i % 11}\n" for i in range(20_000))  # exceeds a pipe's buffer
    table("big.csv", "temperature,rainfall,humidity\n" + rows)
    environment = {**os.environ, "PYTHONPATH": str(Path(linreg_ext.__file__).parents[1])}
    command = [sys.executable, "-m", "linreg_ext", "predict", "model", "big.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"apples,oranges\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


# ---- Solvers ---------------------------------------------------------------------------------------------------------


def longley(path: str = "longley.csv") -> None:
    names = ["deflator", "gnp", "unemployed", "forces", "population", "year", "employed"]
    rows = [[*x, y] for x, y in zip(nist.LONGLEY_X, nist.LONGLEY_Y, strict=True)]
    table(path, "\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")


def test_longley_has_its_certified_coefficients(capsys: pytest.CaptureFixture[str]) -> None:
    """Collinear columns in units from 1 to 1e5, on which SGD says how far it is."""
    longley()
    assert run("fit", "longley.csv", "--val-fraction", 0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "least squares, solved exactly (gram)" in lines
    start = next(i for i, line in enumerate(lines) if line.split() == ["employed", "std.", "error"])
    found = [line.split()[1:] for line in lines[start + 1 : start + 8]]
    certified = nist.PROBLEMS["Longley"][2]
    for cells, pair in zip(found, certified, strict=True):
        assert [float(cell) for cell in cells] == pytest.approx(pair, rel=1e-5)
    assert not Path("runs/longley/history.csv").exists()
    assert run("fit", "longley.csv", "--val-fraction", 0, "--epochs", 3, "--no-standardize", "--lr", 1e-14) == 0
    line = capsys.readouterr().out.splitlines()[-3]
    assert re.fullmatch(
        r"SGD: the squared error is [0-9.e+]+ % above the least-squares minimum; --solver exact reaches it, more "
        "--epochs come nearer",
        line,
    )


def test_ridge_is_that_of_the_formula() -> None:
    longley()
    assert run("fit", "longley.csv", "--val-fraction", 0, "--l2", 1000) == 0
    x, y = (torch.tensor(t, dtype=torch.float64) for t in (nist.LONGLEY_X, nist.LONGLEY_Y))
    expected = linreg_ext.lstsq(x, y, l2=1000.0).weight
    torch.testing.assert_close(load_weights(Path("runs/longley")).weight, expected)


@pytest.mark.parametrize(
    ("options", "solver"),
    [((), "exact"), (("--lr", 0.1), "sgd"), (("--loss", "huber"), "sgd"), (("--epochs", 5), "sgd"),
     (("--seed", 3), "exact"), (("--no-standardize", "--epochs", 1, "--lr", 1e-9), "sgd")],
)  # fmt: skip
def test_auto_is_exact_unless_something_needs_sgd(options: tuple[object, ...], solver: str) -> None:
    assert run("fit", *options) == 0
    assert json.loads(Path("runs/apples_and_oranges/model.json").read_text())["solver"] == solver


def test_dependent_columns_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    table("twice.csv", "a,b,y\n" + "".join(f"{i},{2 * i},{i % 7}\n" for i in range(30)))
    assert run("fit", "twice.csv") == 0
    out = capsys.readouterr().out
    assert (
        "the 2 columns are linearly dependent (rank 1): of all best solutions, these are the smallest coefficients, "
        "and they have no standard errors\n" in out
    )
    weight = load_weights(Path("runs/twice")).weight[0]
    assert weight[1].item() == pytest.approx(2 * weight[0].item())


# ---- Larger than memory ----------------------------------------------------------------------------------------------


@crossed(3, options=[(), ("--weight", "age"), ("--l2", 3)], form=["csv", "parquet", "folder"])
def test_a_stream_gives_the_same_model(
    form: str, options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In blocks of seven rows, of which some hold only numbers in a column of text."""
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr("linreg_ext.tables.stream._ROWS", 7)
    header, *rows = PEOPLE.splitlines()
    rows = [row + (",3" if i < 30 else ",b3") for i, row in enumerate(rows)]
    path = table("people.csv", "\n".join([header + ",code", *rows]) + "\n")
    if form != "csv":
        import pyarrow.csv
        import pyarrow.parquet

        arrow = pyarrow.csv.read_csv(path)
        path = Path("people.parquet") if form == "parquet" else Path("people")
        if form == "parquet":
            pyarrow.parquet.write_table(arrow, path)
        else:
            path.mkdir()
            pyarrow.parquet.write_table(arrow[:25], path / "a.parquet")
            pyarrow.parquet.write_table(arrow[25:], path / "b.parquet")
    command = ("fit", path, "--target", "score", "--val-fraction", 0, *options)
    found = []
    for stream in ("--stream", "--no-stream"):
        assert run(*command, stream, "--out", "run") == 0
        out = capsys.readouterr().out
        features = json.loads(Path("run/encoding.json").read_text())["features"]
        found.append((load_weights(Path("run")), out.partition("Coefficients")[2], features))
    (streamed, *texts), (whole, *others) = found
    torch.testing.assert_close([streamed.weight, streamed.bias], [whole.weight, whole.bias])
    assert texts == others


def test_a_stream_holds_out_rows_and_needs_the_exact_solver(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    x, y = np.random.default_rng(0).normal(size=(2, 400))
    table("noise.csv", "x,y\n" + "".join(f"{a},{3 * a + b}\n" for a, b in zip(x, y, strict=True)))
    assert run("fit", "noise.csv", "--stream") == 0
    rows = json.loads(Path("runs/noise/model.json").read_text())
    assert rows["training_rows"] + rows["validation_rows"] == 400
    assert 50 < rows["validation_rows"] < 110
    scores = capsys.readouterr().out.splitlines()[-3].split()
    assert [float(score) for score in scores[1:]] == pytest.approx([0.9, 1, 0.9, 1], rel=3 / (2 * 80) ** 0.5)
    for option in (("--loss", "l1"), ("--missing", "mean")):
        assert run("fit", "noise.csv", "--stream", *option) == 2
        assert "needs the table in memory; use --" in capsys.readouterr().err


def test_a_drawn_sample_is_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that are held out, in blocks with fewer rows than one in so many."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setattr("linreg_ext.tables.stream._ROWS", 100)
    monkeypatch.setattr("linreg_ext.cli.stream._MOST_POINTS", 20)
    x = np.arange(4000.0)
    parquet.write_table(pyarrow.table({"x": x, "y": x**2}), "t.parquet")
    args = parse(["fit", "t.parquet", "--target", "y", "--stream"])
    dataset, *_ = fit_stream(args, Processes())
    assert len(dataset.x) == pytest.approx(20, abs=2)
    assert dataset.held_out.sum() == pytest.approx(4, abs=1)
    assert dataset.x[:, 0].diff().abs().max() < 1500


def test_a_stream_that_cannot_be_read_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a truncated file; a table with no column but the one of groups."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    Path("folder").mkdir()
    for name in ("a", "b"):
        parquet.write_table(pyarrow.table({"x": np.arange(9.0), "y": np.arange(9.0)}), f"folder/{name}.parquet")
    whole = Path("folder/b.parquet").read_bytes()
    Path("folder/b.parquet").write_bytes(whole[: len(whole) // 2])
    assert run("fit", "folder", "--target", "y", "--stream") == 2
    assert capsys.readouterr().err.startswith("linreg_ext: error: folder: cannot be read (")
    parquet.write_table(pyarrow.table({"g": np.arange(9.0)}), "keys.parquet")
    assert run("fit", "keys.parquet", "--by", "g", "--na", "x") == 2
    assert "integer division" not in capsys.readouterr().err


@pytest.mark.parametrize("features", [3, 40])
def test_a_stream_keeps_what_belongs_to_a_row_together(
    features: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of float32 columns, in part held out: all targets are right but those of weight 0 and in rows that are dropped."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    monkeypatch.setattr("linreg_ext.tables.stream._ROWS", 100)
    random = np.random.default_rng(0)
    x = random.integers(-9, 9, size=(1000, features)).astype(np.float32)
    weight = random.integers(0, 3, 1000).astype(np.float32)
    y = x @ np.arange(1, features + 1, dtype=np.float32) + 5
    x[::7, 1] = np.nan
    y[(weight == 0) | np.isnan(x[:, 1])] = 1e6
    columns = {f"x{i}": column for i, column in enumerate(x.T)} | {"v": weight, "y": y}
    parquet.write_table(pyarrow.table(columns), "t.parquet")
    assert run("fit", "t.parquet", "--target", "y", "--weight", "v", "--stream", "--out", "run") == 0
    found = load_weights(Path("run"))
    expected = torch.arange(1, features + 1, dtype=torch.float64)[None]
    torch.testing.assert_close(found.weight.double(), expected, rtol=1e-6, atol=0)
    scores = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("y ")]
    assert [float(score) for score in scores[-1][::2]] == [1.0, 1.0]


@pytest.mark.extended
def test_a_file_four_times_the_memory_limit(tmp_path: Path) -> None:
    """Decoded, it takes 1.6 GB; the process may add 400 MB to what its libraries have."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    random = np.random.default_rng(0)
    with parquet.ParquetWriter("big.parquet", pyarrow.schema([(f"c{i}", "double") for i in range(20)])) as file:
        for _ in range(100):
            file.write_table(pyarrow.table({f"c{i}": random.normal(size=100_000) for i in range(20)}))
    limited = (
        "import resource, sys, linreg_ext.cli, pyarrow.dataset, pyarrow.parquet, matplotlib.figure\n"
        "size = 4096 * int(open('/proc/self/statm').read().split()[0]) + (400 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "sys.exit(linreg_ext.cli.main(['fit', 'big.parquet']))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
    result = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "2,000,000 rows" not in result.stdout
    assert "10,000,000 rows" in result.stdout
