# SPDX-License-Identifier: BSD-3-Clause
"""The five tutorial programs print the expected figures, and their fused runs equal the eager ones."""

import contextlib
import functools
import io
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tutorial_stages as stages
from conftest import cases
from torch import nn
from torch.utils.data import TensorDataset, random_split

import linreg_ext
from linreg_ext.examples import a_two_features as a
from linreg_ext.examples import b_one_feature as b
from linreg_ext.examples import c_apples_and_oranges as c
from linreg_ext.examples import compare, table
from linreg_ext.examples import d_three_rows as d
from linreg_ext.examples import e_absolute_error as e
from linreg_ext.examples.__main__ import PROGRAMS, main

# The permitted relative difference between the weights and losses of a fused run and those of its eager twin.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def split():
    return random_split(stages.all_rows(), [80, 20])


def full_batch(make_model):
    return lambda fused, device: stages.full_batch(fused, make_model, *stages.training_tensors(device))


def mini_batches(make_sets):  # of rows on the CPU: each batch is moved
    return lambda fused, device: stages.mini_batches(fused, device, make_sets)


def raw_tensors(stage):
    return lambda fused, device: stages.raw_tensors(stage, fused, *stages.training_tensors(device))


def five_rows(device):
    return c.INPUTS[:5].to(device), c.TARGETS[:5].to(device)


# {program: (fused, device) -> weights, losses and, if it has them, the optimizer and the validation losses}
RUNS = {
    "A1": lambda fused, device: a.train_tensors(fused, *a.make_data(device)),
    "A2": lambda fused, device: a.train_module(fused, *a.make_data(device)),
    "B1": lambda fused, device: stages.numpy_arrays(fused),
    "B3": raw_tensors("B3"),
    "B4": raw_tensors("B4"),
    "B5": lambda fused, device: stages.swapped_loss(fused, *stages.training_tensors(device)),
    "B6": full_batch(stages.ManualLinearRegression),
    "B7": full_batch(d.LinearRegressionModel),
    "B8": full_batch(stages.sequential),
    "B10": mini_batches(lambda: [stages.CustomDataset(*stages.training_tensors())]),
    "B12": mini_batches(lambda: [TensorDataset(*stages.training_tensors())]),
    "B13": mini_batches(lambda: split()[:1]),
    "B14": mini_batches(split),
    "B15": lambda fused, device: b.train(fused, stages.all_rows(), torch.device(device)),
    "C1": lambda fused, device: c.train_tensors(fused, *five_rows(device))[:2],
    "C3": lambda fused, device: c.train_module(fused, c.INPUTS.to(device), c.TARGETS.to(device)),
    "D1": lambda fused, device: d.train_tensors(fused, *[torch.tensor([[1.0], [2.0], [3.0]], device=device)] * 2),
    "D2": lambda fused, device: d.train_module(fused, *[torch.tensor([[1.0], [2.0], [3.0]], device=device)] * 2)[:3],
    "E": lambda fused, device: e.train(fused, *e.make_data(device)),
}
REPEATED = ("B4", "B10", "B12", "B13")  # earlier stages of B14, with the same steps
WITHOUT_TRAIN_STEP = {"A1", "B1", "B3", "B4", "C1", "D1"}


@functools.cache
def run(name, fused, device):
    """The results of a run, the final level of each TrainStep, and the printed text."""
    steps, init = [], linreg_ext.TrainStep.__init__

    def recorded(step, *args, **options):
        init(step, *args, **options)
        steps.append(step)

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(linreg_ext.TrainStep, "__init__", recorded)
        weights, losses, *rest = RUNS[name](fused, device)
    weights = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return SimpleNamespace(
        generator=torch.get_rng_state(),
        weights={name: tensor.detach().cpu() for name, tensor in weights.items()},
        losses=torch.tensor([float(loss) for loss in losses], dtype=torch.float64),
        optimizer=rest[0].state_dict() if rest else None,
        validation=torch.tensor([float(loss) for loss in rest[1]] if rest[1:] else [], dtype=torch.float64),
        levels=[step.explain() for step in steps],
        printed=out.getvalue(),
    )


def assert_same_run(eager, fused):
    """Each message names the attribute that differs."""
    shapes, theirs = ([(name, w.shape) for name, w in r.weights.items()] for r in (fused, eager))
    assert shapes == theirs, "weights"
    tolerance = TOLERANCE[next(iter(eager.weights.values())).dtype]
    # Compared as one vector, since training couples parameters: the rounding of a large slope moves a small intercept.
    ours, theirs = (torch.cat([w.flatten() for w in r.weights.values()]) for r in (fused, eager))
    assert (ours - theirs).norm() <= tolerance * theirs.norm(), "weights"
    # Predictions that agree to a relative ε differ by about ε times the size of the targets, which is that of the first
    # residuals, √first. A mean square then changes by at most 2ε √loss √first, and a mean absolute value by less than ε
    # times its first value. For a small loss, that is more than ε of it.
    for name in ("losses", "validation"):
        ours, theirs = getattr(fused, name), getattr(eager, name)
        assert ours.shape == theirs.shape, name
        first = max(theirs.tolist(), default=0.0)
        assert ((ours - theirs).abs() <= 2 * tolerance * (theirs * first).sqrt()).all(), name
    # The only optimizer here is SGD without momentum, which keeps no tensors, so dictionaries can be compared.
    assert fused.optimizer is None or eager.optimizer == fused.optimizer, "optimizer"
    assert torch.equal(eager.generator, fused.generator), "generator"
    assert all(level.startswith("fused") for level in fused.levels), "levels"


@pytest.mark.parametrize("name", cases([n for n in RUNS if n not in REPEATED], REPEATED))
def test_the_fused_run_is_the_eager_run(name, device):
    assert_same_run(run(name, False, device), run(name, True, device))
    assert bool(run(name, True, device).levels) == (name not in WITHOUT_TRAIN_STEP)


@pytest.mark.parametrize(
    ("attribute", "change"),
    [
        ("weights", lambda weights: {name: 1.0001 * w for name, w in weights.items()}),
        ("weights", lambda weights: {}),
        ("losses", lambda losses: 1.0001 * losses),
        ("losses", lambda losses: torch.nan * losses),
        ("losses", lambda losses: losses[:-1]),
        ("validation", lambda losses: 1.0001 * losses),
        ("optimizer", lambda state: {**state, "param_groups": []}),
        ("generator", lambda state: state + 1),
        ("levels", lambda levels: [*levels, "eager: for some reason"]),
    ],
)
def test_a_broken_contract_is_seen(attribute, change):
    eager, fused = run("B14", False, "cpu"), run("B14", True, "cpu")
    broken = SimpleNamespace(**{**vars(fused), attribute: change(getattr(fused, attribute))})
    with pytest.raises(AssertionError, match=attribute):
        assert_same_run(eager, broken)


def assert_met(figures, device="cpu"):
    rows = compare(figures, device)
    wrong = [row for row in rows if row[-1] != "ok"]
    assert rows
    assert not wrong, "\n" + table(wrong)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_every_figure_is_met(program, device):
    assert_met(program.figures, device)


# Mini-batches only come near least squares: each follows the noise of its 16 rows.
ENDS = {"B1": "1.02354094 1.96896411"} | dict.fromkeys(("B3", "B4", "B5", "B6"), "1.0235 1.9690")
ENDS |= dict.fromkeys(("B7", "B8", "B10", "B12"), "1.9690 1.0235")


@pytest.mark.parametrize("name", ENDS)
def test_stages_of_b_end_where_the_tutorial_does(name, device):
    tolerance = [0.05] if name in ("B10", "B12") else []
    assert_met(lambda fused, _: [(name, ENDS[name], [*run(name, fused, device).weights.values()], *tolerance)])


def test_gradient_descent_arrives_at_the_closed_form():
    """B2."""
    ends = [stages.closed_form(), [*stages.numpy_arrays(True, epochs=3000)[0].values()]]
    assert_met(lambda fused, _: [("a, b", "1.02354075 1.96896447", ends[fused])])


@pytest.mark.parametrize(
    ("name", "keys", "start"),
    [
        ("B6", ["a", "b"], ["0.3367", "0.1288"]),
        ("B7", ["linear.weight", "linear.bias"], ["0.7645", "0.8300"]),
        ("B8", ["0.weight", "0.bias"], ["0.7645", "0.8300"]),
        ("B15", ["0.weight", "0.bias"], ["-0.9676", "-0.5727"]),
    ],
)
def test_modules_start_where_the_tutorial_does(name, keys, start, monkeypatch):
    monkeypatch.setattr(stages, "EPOCHS", 0)
    monkeypatch.setattr(b, "fit", lambda epochs, *args, **options: linreg_ext.fit(0, *args, **options))
    model, *_ = RUNS[name](True, "cpu")
    assert list(model.state_dict()) == keys
    assert [f"{parameter.item():.4f}" for parameter in model.parameters()] == start


either_run = pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])


@either_run
@pytest.mark.parametrize("name", ["A1", "A2"])
def test_full_batch_losses_only_fall(name, fused, device):
    losses = run(name, fused, device).losses
    # Once converged, the loss may rise by rounding: a relative few units of 2**-23.
    assert (losses[1:] / losses[:-1] - 1).max() <= 1e-6


@either_run
def test_data_sets_and_validation(fused, device):
    """B10 to B14."""
    assert [len(part) for part in split()] == [80, 20]
    assert torch.equal(run("B10", fused, device).losses, run("B12", fused, device).losses)
    # 20 squares of N(0, 0.1**2) have a mean of 0.01 with three standard deviations of 0.03 * sqrt(2 / 20).
    assert run("B14", fused, device).validation[-1].item() == pytest.approx(0.01, abs=0.0095)


@either_run
def test_fit_logs_every_tenth_epoch(fused, device):
    """C3."""
    lines = [line.split("/100], Loss: ") for line in run("C3", fused, device).printed.splitlines()]
    assert [epoch for epoch, _ in lines] == [f"Epoch [{epoch}" for epoch in range(10, 101, 10)]
    assert float(lines[0][1]) == pytest.approx(819, rel=0.2)
    assert float(lines[-1][1]) == pytest.approx(33, rel=0.2)


def test_the_gradient_of_a_sum_is_the_column_sums(device):
    """A's warm-up: against targets 1 below the predictions, the absolute errors sum to sum(X a) plus a constant."""
    X, _ = a.make_data(device)

    def figures(fused, _):
        w = torch.ones(3, device=device, requires_grad=True)
        total = torch.mv(X, w)
        total = linreg_ext.linear_l1_loss(X, w, total.detach() - 1, reduction="sum") if fused else total.sum()
        total.backward()
        # 100 float32 additions round 100 times, each by at most 2**-24 of a partial sum of at most 100.
        return [("gradient", X.double().sum(0), w.grad, 6e-4)]

    assert_met(figures)


def test_gradients_accumulate(device):
    """C1: the gradients of w, to the accuracy of a start that is printed to four decimals."""
    x, _ = five_rows("cpu")
    # A prediction changes by at most 5e-5 (x1 + x2 + x3 + 1), and the gradients are its means against 1 and x.
    slack = (5e-5 * (x.sum(1) + 1) @ x * 2 / (2 * 5)).repeat(2)

    def figures(fused, _):
        _, _, gradients = c.train_tensors(fused, *five_rows(device))
        return [
            ("the first", "303.2 291.1 70.7 11409.7 13494.5 7899.7", gradients[0], slack),
            ("two", "560.4 533.2 111.1 20672.8 24675.3 14373.3", gradients[2], 2 * slack),
        ]

    assert_met(figures)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_script_is_short_and_runs_alone(program, capsys):
    assert len(Path(program.__file__).read_text().splitlines()) <= 100
    runpy.run_path(program.__file__, run_name="__main__")
    out = capsys.readouterr().out
    assert out.endswith("  ok\n")
    assert "NOT OK" not in out


def test_the_table_is_printed(capsys):
    assert main(["d", "A"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "expected", "eager", "fused"]
    assert lines[2].startswith("A1 ")
    assert lines[-3].startswith("D2 ")
    assert lines[-1] == f"all {len(lines) - 4} figures as expected"


def test_a_figure_that_is_off_fails_the_run(monkeypatch, capsys):
    monkeypatch.setitem(d.LINES, 400, "0.860 0.317 0.014526")
    assert main(["D"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.endswith("NOT OK")] == ["D2 epoch 400"]
    assert lines[-1] == f"1 of {len(lines) - 4} figures off"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["F"], "PROGRAM must be one of A, B, C, D, E, got 'F'"),
        (["--device", "tpu"], "--device"),
        (["--device", "cuda"], "finds no CUDA device"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


@pytest.mark.parametrize(
    ("expected", "eager", "fused", "tolerance", "verdict"),
    [
        ("1.0235 -2.0", [1.02354, -2.04], [1.02346, -1.96], [], "ok"),
        ("1.02354094", 1.02354094, [1.023540944], [], "ok"),
        ("1.02354094", 1.02354094, [1.023540946], [], "NOT OK"),
        ("1.0235", 1.02354, 1.02356, [], "NOT OK"),
        ("1.0235", 1.02356, 1.02354, [], "NOT OK"),
        ("100.0", 100.9, 99.1, [1.0], "ok"),
        ("100.0", 100.9, 98.9, [1.0], "NOT OK"),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0], torch.tensor([1.1, 2.0]), [[0.2, 0.01]], "ok"),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0], torch.tensor([1.0, 2.1]), [[0.2, 0.01]], "NOT OK"),
        ("1.0", float("nan"), 1.0, [1.0], "NOT OK"),
    ],
)
def test_a_figure_is_held_to_its_tolerance(expected, eager, fused, tolerance, verdict):
    (row,) = compare(lambda is_fused, _: [("", expected, fused if is_fused else eager, *tolerance)])
    assert row[-1] == verdict
