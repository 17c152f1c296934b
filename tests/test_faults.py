# SPDX-License-Identifier: BSD-3-Clause
"""Killed processes, full disks, forks and threads that train leave whole files, no deadlock and the same bits.

Loaders that raise are in test_fit.py, Ctrl-C is in test_run.py and test_batches.py."""

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import cases
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import linreg_ext
from linreg_ext.cli import main, run_folder
from linreg_ext.cli.coefficients import load_weights

FRUIT = Path(linreg_ext.__file__).parent / "data" / "apples_and_oranges.csv"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def in_a_fork(function):
    """The exit status of a forked process that calls `function`, killed after a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads, which is the subject here
        child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    for _ in range(6000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")


OLD = {"weights.safetensors": b"old weights", "encoding.json": b"old encoding", "plot.png": b"old plot"}
NEW = {"weights.safetensors": b"new weights", "encoding.json": b"new encoding", "plot.png": b"new plot"}


@pytest.mark.parametrize(
    "new",
    [
        NEW,
        pytest.param({"weights.pt": b"new weights", "encoding.json": b"new encoding"}, marks=pytest.mark.extended),
    ],
    ids=["same", "pt"],
)
def test_killed_between_any_two_changes_of_its_folder(new, tmp_path):
    """The whole folder of one fit remains, or none, and the same command then works."""
    for moment in itertools.count(1):
        place = tmp_path / str(moment) / "run"
        run_folder.write(place, OLD)

        def write_and_die(place=place, moment=moment):
            changes = itertools.count(1)

            def hook(event, _):
                if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and next(changes) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            run_folder.write(place, new)

        status = in_a_fork(write_and_die)
        assert not place.exists() or contents(place) in (OLD, new), f"killed at change {moment}"
        run_folder.require_writable(place, FRUIT)
        run_folder.write(place, new)
        assert contents(place) == new
        assert [path.name for path in place.parent.iterdir()] == ["run"]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert moment > 8


@pytest.mark.extended
def test_killed_while_it_trains(tmp_path, monkeypatch):
    """The earlier results are unchanged, and repeating the command gives the intended results."""
    monkeypatch.chdir(tmp_path)
    once = ["fit", "--epochs", "7", "--out"]
    assert main([*once, "run"]) == 0
    before, model = contents("run"), load_weights(Path("run"))
    # Minutes of epochs, whose losses fit into memory should nobody kill the process.
    command = [sys.executable, "-m", "linreg_ext", "fit", "--epochs", str(10**8), "--out"]
    environment = {**os.environ, "PYTHONPATH": str(FRUIT.parents[2])}
    with subprocess.Popen([*command, "run"], stdout=subprocess.PIPE, env=environment) as process:
        while not process.stdout.readline().startswith(b"Epoch"):
            assert process.poll() is None
        time.sleep(0.3)
        process.kill()
    assert contents("run") == before
    assert os.listdir("run") == list(before)
    assert main([*once, "run"]) == 0
    assert contents("run")["history.csv"] == before["history.csv"]
    assert torch.equal(load_weights(Path("run")).weight, model.weight)


def test_a_fit_that_fails_leaves_nothing(tmp_path, tmp_path_factory, capsys):
    vanishing = tmp_path_factory.mktemp("other") / "vanishing.csv"
    vanishing.write_text("a,y\n" + "".join(f"{i}e200,{i}e-200\n" for i in range(9)))
    fit = ["fit", "--epochs", "9", "--momentum", "0.5", "--batch-size", "3", "--out", str(tmp_path)]
    for more, words in (
        (["--lr", "3"], "the loss went from 1 to "),
        (["--lr", "10"], "training diverges: the loss is inf at step "),
        ([str(vanishing)], "is too small for a float64"),
    ):
        assert main([*fit, *more]) == 2
        assert words in capsys.readouterr().err
        assert contents(tmp_path) == {}


@contextlib.contextmanager
def full_disk():
    """Limits every file of this process to 100 bytes, including pytest's own output."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.extended
def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--epochs", "3", "--out", "run"]) == 0
    assert main(["predict", "run", str(FRUIT), "--out", "predicted.csv"]) == 0
    before = contents(".")
    capsys.readouterr()
    for command in (
        ["fit", "--out", "run"],
        ["fit", "--out", "new"],
        ["predict", "run", str(FRUIT), "--out", "predicted.csv"],
    ):
        with full_disk():
            assert main(command) == 2
        assert capsys.readouterr().err == f"linreg_ext: error: --out {command[-1]}: File too large\n"
    assert contents(".") == before


def test_places_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    """/proc rejects files even from root; the error must come before training."""
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--out", "/proc/new/run"]) == 2
    out, err = capsys.readouterr()
    assert err == "linreg_ext: error: --out /proc/new/run: cannot be written (/proc: No such file or directory)\n"
    assert "Epoch" not in out
    assert main(["fit", "--epochs", "3", "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", str(FRUIT), "--out", "/dev/full"]) == 2
    assert capsys.readouterr().err == "linreg_ext: error: --out /dev/full: No space left on device\n"


def test_predictions_replace_a_file_with_its_mode_and_through_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--epochs", "3", "--out", "run"]) == 0
    Path("real.csv").write_text("before")
    Path("real.csv").chmod(0o640)
    Path("link.csv").symlink_to("real.csv")
    assert main(["predict", "run", str(FRUIT), "--out", "link.csv"]) == 0
    assert Path("link.csv").is_symlink()
    assert Path("real.csv").read_text().startswith("apples,oranges\n")
    assert Path("real.csv").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir()) == ["link.csv", "real.csv", "run"]


def large_problems():
    """One step by rows and one by matrix products, both of which start threads."""
    x = torch.randn(100_000, 17)
    return [(x, torch.randn(k, 17), torch.randn(100_000, k), torch.randn(k)) for k in (1, 20)]


def steps(x, w, y, b):
    w, b = w.clone(), b.clone()
    return [linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=0.01) for _ in range(3)], w, b


class Computed(Dataset):
    """A data set whose items a worker computes with the kernels."""

    def __init__(self, problems):
        self.problems = problems

    def __len__(self):
        return 4

    def __getitem__(self, i):
        x, w, y, b = self.problems[i % 2]
        return linreg_ext.linear_mse_loss(x, w, y, linear_bias=b)


def test_a_process_that_is_forked_after_use():
    """OpenMP's threads stay with the parent; a child that waits for them hangs."""
    torch.set_num_threads(4)
    problems = large_problems()
    once = [steps(*p) for p in problems]

    def same():
        for p, expected in zip(problems, once, strict=True):
            losses, w, b = steps(*p)
            assert losses == expected[0]
            assert w.numpy().tobytes() == expected[1].numpy().tobytes()
            assert b.numpy().tobytes() == expected[2].numpy().tobytes()

    assert in_a_fork(same) == 0
    assert in_a_fork(lambda: os._exit(in_a_fork(same))) == 0  # and its own child
    same()


@pytest.mark.parametrize("start", cases(["fork"], ["spawn"]))
def test_workers_of_a_loader_compute(start):
    torch.set_num_threads(4)
    problems = large_problems()
    here = [Computed(problems)[i] for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        there = list(DataLoader(Computed(problems), None, num_workers=1, multiprocessing_context=start, timeout=60))
    assert here == there


def test_several_threads_train_at_once():
    """Each thread trains its own model, by runs and step by step, with the bits of training one after the other."""
    torch.set_num_threads(2)
    x, y = torch.randn(20_000, 9), torch.randn(20_000, 1)
    start = threading.Barrier(4)

    def train(number, wait):
        generator = torch.Generator().manual_seed(number)
        model = nn.Linear(9, 1)
        nn.init.constant_(model.weight, number)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if wait:
            start.wait()
        if number % 2:
            loader = DataLoader(TensorDataset(x, y), 4000, shuffle=True, generator=generator)
            linreg_ext.fit(10, model, nn.MSELoss(), optimizer, loader, progress=False)
        else:
            step = linreg_ext.make_train_step(model, nn.MSELoss(), optimizer)
            for _ in range(50):
                step(x, y)
        return [p.detach() for p in model.parameters()]

    alone = [train(number, False) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: train(number, True), range(4)))
    for ours, twin in zip(together, alone, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, twin, strict=True))
