# SPDX-License-Identifier: BSD-3-Clause
"""`make gpu-check` keeps what it has, whatever its parts do: seen here without a GPU, on programs that stand for them."""

import ast
import re
import resource
import signal
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import compact_parity
import pytest
import torch
from accuracy import DTYPES

from benchmarks import __main__ as command
from benchmarks import gpu_check, machine, workloads_gpu
from benchmarks.gpu_check import Part

SLEEPS = "import time; print('begun'); time.sleep(60)"
DEAF = (
    "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT{}]); " + SLEEPS
)  # as if it waited for a GPU


def part(code, seconds=30.0, name="part", says=""):
    return Part(name, [sys.executable, "-c", code], seconds, says)


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """Runs gpu-check on lists of parts, and returns its exit code, what it prints and its log."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "name", lambda device: "Some GPU")
    monkeypatch.setattr(gpu_check, "STOPS", tuple((after / 8, number) for after, number in gpu_check.STOPS))
    cores = resource.getrlimit(resource.RLIMIT_CORE)
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*stages, **options):
        monkeypatch.setattr(gpu_check, "stages", lambda csv: stages)
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        code = gpu_check.main(["--log", str(tmp_path / "logs" / "log"), "--results", str(tmp_path), *arguments])
        return code, capsys.readouterr().out, (tmp_path / "logs" / "log").read_text()

    yield run
    resource.setrlimit(resource.RLIMIT_CORE, cores)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for handler in gpu_check.log.handlers:
        handler.close()


@pytest.mark.parametrize(
    ("code", "says", "wrong", "logged"),
    [
        ("print('3 passed in 1s')", " passed", "", "3 passed in 1s"),
        ("print('2 deselected in 1s'); exit(5)", " passed| deselected", "", "2 deselected in 1s"),
        ("print('1 failed in 1s'); exit(1)", " passed", "exit code 1", "1 failed in 1s"),
        ("print('nothing')", " passed", "its output must contain ' passed'", "nothing"),
        ("print('half a line', end='')", "", "", "half a line"),
        ("print('begun'); import os; os.kill(os.getpid(), 9)", "", "SIGKILL", "begun"),
        ("import ctypes\nctypes.string_at(0)", "", "SIGSEGV", '.*File "<string>", line 2 in <module>'),
    ],
    ids=["passes", "has no test", "fails", "says nothing", "half a line", "dies", "crashes"],
)  # fmt: skip
def test_how_a_part_may_end(code, says, wrong, logged, check):
    exit_code, printed, log = check([part(code, says=says)], [part("print('the next one')", name="next")])
    assert exit_code == bool(wrong)
    assert re.search(rf"^part: {'FAILED' if wrong else 'ok'}, \d s  {wrong}", printed, re.MULTILINE)
    assert re.search(f" part: {logged}", log, re.DOTALL)
    assert " next: the next one\n" in log


@pytest.mark.extended
def test_what_hangs_is_stopped_and_has_said_where(check):
    hangs = {"hangs": SLEEPS, "deaf": DEAF.format(""), "dead": DEAF.format(", signal.SIGABRT")}
    code, printed, log = check([part(code, 2, name) for name, code in hangs.items()], [part("", name="next")])
    assert code == 1
    for name in hangs:
        assert re.search(f"^{name}: FAILED, [2-9] s  ran out of time$", printed, re.MULTILINE)
        assert f" {name}: begun\n" in log
    assert " hangs: KeyboardInterrupt\n" in log
    assert re.search(
        r' deaf: Fatal Python error: Aborted.* deaf:   File "<string>", line 1 in <module>', log, re.DOTALL
    )
    assert "\nnext: ok" in printed


def test_a_program_that_is_not_there(check):
    code, printed, _ = check([Part("sanitizer", ["/nowhere/compute-sanitizer"], 5), part("print('runs')")])
    assert code == 1
    assert "sanitizer: FAILED, 0 s  could not start: [Errno 2]" in printed
    assert "part: ok" in printed


def test_nothing_runs_after_a_build_that_fails_except_what_runs_beside_it(check):
    code, printed, log = check(
        [part("exit(1)", name="build"), part("print('GB/s')", name="probe")], [part("", name="parity")]
    )
    assert code == 1
    assert "build: FAILED" in printed
    assert "probe: GB/s" in log
    assert "parity" not in log


def test_what_has_no_time_is_said_to_be_left_out(check):
    code, printed, _ = check([part(SLEEPS, name="first")], [part("", name="second")], minutes=0.2 / 60)
    assert code == 1
    assert "first: FAILED" in printed
    assert "second: FAILED, 0 s  left out: no time" in printed


def test_an_interrupt_ends_what_runs_and_reports(check):
    """A timeout of the caller's, or Ctrl-C."""
    interrupts = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); " + SLEEPS
    code, printed, log = check([part(interrupts, name="first")], [part("", name="second")])
    assert code == 1
    assert "first: KeyboardInterrupt" in log
    assert "second: FAILED, 0 s  left out: no time" in printed
    assert re.search(r"\nfirst +0 of 1 ok\nsecond +0 of 1 ok\n", printed)


def test_the_log_has_each_line_when_it_is_printed(check, tmp_path):
    log = tmp_path / "logs" / "log"
    waits = f"print('first line')\nwhile 'part: first line' not in open({str(log)!r}).read(): pass"
    assert check([part(waits, seconds=10)])[0] == 0


def test_children_end_with_their_part_and_orphans_delay_nothing(check):
    leaves = "import subprocess; print(subprocess.Popen(['sleep', '{}'], start_new_session={}).pid)"
    began = time.monotonic()
    code, _, log = check([part(leaves.format(60, False), name="child"), part(leaves.format(10, True), name="orphan")])
    assert code == 0
    status = Path("/proc", re.search(r"child: (\d+)", log)[1], "status")
    while status.exists() and "zombie" not in status.read_text():
        time.sleep(0.05)
    assert time.monotonic() - began < 8


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_cannot_be_killed_is_abandoned(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "STOPS", ((0, signal.SIGCONT), (0.1, 0)))
    code, printed, _ = check([part(SLEEPS, 0.2)], [part("", name="next")])
    assert code == 1
    assert "part: FAILED, 0 s  ran out of time, and cannot be killed" in printed
    assert "next: ok" in printed


def test_stages_are_chosen_by_name_and_failures_explained(check):
    fails = "print('E   AssertionError: 1 == 2'); print('more'); exit(1)"
    code, printed, _ = check(
        [part(fails, name="tests one"), part("", name="tests two")], [part("", name="build")], only="tests"
    )
    assert code == 1
    assert "\ntests one: exit code 1\n  E   AssertionError: 1 == 2\n" in printed
    assert re.search(r"\ntests +1 of 2 ok\n\n", printed)
    assert "build" not in printed


@pytest.fixture
def parts(monkeypatch):
    """All parts, on a machine that seems to have a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return [each for together in gpu_check.stages(Path("gpu.csv")) for each in together]


def test_all_that_has_a_target_is_timed_before_any_peer_and_the_arguments_parse(parts, capsys):
    timed = [each.command[3:] for each in parts if each.command[1:3] == ["-m", "benchmarks"]]
    for arguments in timed:
        assert command.main([*arguments, "--list"]) == 0
    first, others = timed[: len(gpu_check.OURS)], timed[len(gpu_check.OURS) :]
    assert {arguments[4] for arguments in first} == set(workloads_gpu.WORKLOADS) - {"sizes", "memory"}
    assert ["none" in arguments for arguments in timed] == [True] * len(first) + [False] * len(others)


def test_every_test_of_a_gpu_is_a_part(parts):
    found = {each.command[-1] for each in parts if each.stage == "tests"}
    there = {
        f"tests/{path.name}::{node.name}"
        for path in machine.ROOT.glob("tests/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if path.stem == "test_cuda" or "device" in [argument.arg for argument in node.args.args]
    }
    assert found == there


def test_parity_prints_a_line_per_problem_and_goes_on_after_a_wrong_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compact_parity.py", "--device", "cpu", "--part", "3/25"])
    errors = [AssertionError("off by 2\nfar"), RuntimeError("no such kernel"), *[None] * (len(DTYPES) - 2)]
    monkeypatch.setattr(compact_parity, "check_run", Mock(side_effect=errors))
    assert compact_parity.main() == 1
    wrong, failed, *others, last = capsys.readouterr().out.splitlines()
    assert wrong.startswith("(300, 3, 1) float32 ")
    assert wrong.endswith(": WRONG: AssertionError: off by 2")
    assert failed.endswith(": WRONG: RuntimeError: no such kernel")
    assert [line.endswith(": ok") for line in others] == [True] * (len(DTYPES) - 2)
    assert last == "6 problems, 2 wrong"
