# SPDX-License-Identifier: BSD-3-Clause
"""The five tutorial programs: every figure of every program, and the command line that prints them."""

from __future__ import annotations

import dataclasses
import importlib.util
from types import ModuleType

import pytest
import torch

from linreg_ext.examples import d_three_rows
from linreg_ext.examples.__main__ import PROGRAMS, main
from linreg_ext.examples.figures import Row, Run, at_most, contract, near, printed, same, table

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_every_figure_is_met(program: ModuleType, device: torch.device) -> None:
    rows = program.check(device)
    assert rows
    assert all(row.ok for row in rows), "\n" + table([row for row in rows if not row.ok])


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["d", "A"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "expected", "eager", "fused", "ok"]
    assert lines[2].startswith("A ")
    assert lines[-3].startswith("D ")
    assert lines[-1] == f"all {len(lines) - 4} figures as expected"


def test_a_figure_that_is_off_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(d_three_rows.TABLE, 400, "0.860 0.317 0.014526")
    assert main(["D"]) == 1
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if line.endswith("OFF")] == ["D2 epoch 400"]
    assert f"1 of {out.count('yes') + 1} figures off" in out


@pytest.mark.parametrize("program", PROGRAMS)
def test_plot_writes_a_picture(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(PROGRAMS[program], "check", lambda device: [])  # the figures have their own test
    path = tmp_path / "plot.png"
    assert main([program, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["F"], "there is no program 'F'"),
        (["--plot", "x.png"], "--plot draws one program"),
        (["A", "B", "--plot", "x.png"], "--plot draws one program"),
        (["A", "--plot", "no such folder/x.png"], "there is no folder"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(arguments, message, capsys)


def test_cuda_is_refused_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(["--device", "cuda"], "finds no CUDA device", capsys)


def test_plot_without_matplotlib_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(["A", "--plot", "x.png"], "needs matplotlib", capsys)


def test_an_unknown_picture_format_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(PROGRAMS["A"], "check", lambda device: [])
    assert_refused(["A", "--plot", str(tmp_path / "plot.doc")], "--plot: ", capsys)


def assert_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last_line
    assert message in last_line


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (printed("", "1.0235 -2.0", [1.02354, -2.04], [1.02346, -1.96]), True),
        (printed("", "1.02354094", 1.02354094, [1.023540944]), True),
        (printed("", "1.02354094", 1.02354094, [1.023540946]), False),
        (printed("", "100.0", 100.0, 100.1, rtol=1e-3), True),
        (printed("", "1.0235", 1.02354, 1.02356), False),
        (printed("", "1.0235", 1.02356, 1.02354), False),
        (near("", "100.0", 100.9, 99.1, rtol=0.01), True),
        (near("", "100.0", 100.9, 98.9, rtol=0.01), False),
        (near("", torch.tensor([1.0, 2.0]), [1.0, 2.0], [1.0, 2.1], atol=[0.2, 0.01]), False),
        (near("", "1.0", float("nan"), 1.0, atol=1), False),
        (at_most("", 1e-6, 0.0, 1e-7), True),
        (at_most("", 1e-6, 0.0, 1e-5), False),
        (same("", "a b", "a b", "a b"), True),
        (same("", "a b", "a b", "b a"), False),
    ],
)
def test_a_figure_is_held_to_its_tolerance(row: Row, ok: bool) -> None:
    assert row.ok is ok


def twins() -> tuple[Run, Run]:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runs.append(dataclasses.replace(Run.of(model, [4.0, 1.0], optimizer, validation=[2.0]), level="fused: so"))
    return runs[0], runs[1]


def test_twins_keep_the_contract() -> None:
    rows = contract("T", {"T1": twins()})
    assert len(rows) == 5
    assert all(row.ok for row in rows)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"weights": {"weight": torch.ones(1, 2), "bias": torch.ones(1)}}, "weights"),
        ({"weights": {}}, "weights"),
        ({"losses": torch.tensor([4.0, 1.0001])}, "losses"),
        ({"losses": torch.tensor([4.0, float("nan")])}, "losses"),
        ({"losses": torch.tensor([4.0])}, "losses"),
        ({"validation": torch.tensor([2.1])}, "losses"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "optimizer"),
        ({"generator": torch.zeros(1)}, "random generator"),
        ({"level": "eager: for some reason"}, "train steps"),
    ],
)
def test_a_broken_contract_is_seen(change: dict[str, object], row: str) -> None:
    eager, fused = twins()
    rows = contract("T", {"T1": twins(), "T2": (eager, dataclasses.replace(fused, **change))})
    assert [r.figure.startswith(f"T {row}") for r in rows if not r.ok] == [True]
