# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks reject wrong answers, record what they measure, and report what they recorded."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import cases

from benchmarks import __main__ as command
from benchmarks import machine, ours, peers, probe, results, targets, workloads_cpu, workloads_gpu
from benchmarks.clocks import Variant
from benchmarks.harness import Bench, Case
from benchmarks.problem import Problem
from benchmarks.report import FIGURES
from benchmarks.results import Results

ABOUT = {**dict.fromkeys(results.ABOUT, "x"), "machine": "Some CPU", "threads": "2", "isa": "AVX2"}
NAME = "linreg_ext"


def bench(path=None, **how):
    return Bench(Results(path, ABOUT), quick=True, **how)


SLOW = ("memory", "program", "processes", "epochs", "large", "estimators")
WITHOUT_EAGER = ("memory", "exact", "moments", "stream", "processes", "estimators", "groups", "sweep")


@pytest.mark.parametrize("workload", cases(core=[w for w in workloads_cpu.WORKLOADS if w not in SLOW], extended=SLOW))
def test_every_workload_writes_whole_rows(workload, tmp_path, capsys):
    names = "NumPy" if workload in WITHOUT_EAGER else "eager,NumPy"
    out = tmp_path / "results.csv"
    assert command.main([workload, "--quick", "--peers", names, "--out", str(out)]) == 0, capsys.readouterr().out
    rows = results.read([out])
    assert {row["workload"] for row in rows} == {workload}
    assert any(row["role"] == "ours" for row in rows)
    for row in rows:
        assert tuple(row) == results.COLUMNS
        for column in (
            "case",
            "n",
            "d",
            "k",
            "dtype",
            "variant",
            "role",
            "machine",
            "threads",
            "isa",
            "torch",
            "commit",
        ):
            assert row[column], f"{column} is empty in {row}"
        measured = [column for column in ("seconds", "memory_bytes", "value") if row[column]]
        assert len(measured) == 1
        if row["seconds"]:
            assert float(row["seconds"]) > 0
            assert int(row["repeats"]) == 3
            assert row["clock"] == "wall"
            assert row["over_eager"] or "eager" not in names
    assert "refused" not in capsys.readouterr().out


@pytest.mark.parametrize("workload", ["wide", "several", "order", "loss", "runs", "run from Python", "mini-batches"])
def test_workloads_for_a_gpu_on_the_cpu(workload):
    run = bench(peers=frozenset({"eager"}))
    workloads_gpu.WORKLOADS[workload](run)
    assert run.results.rows
    assert not run.failures


def test_a_wrong_answer_is_refused_before_it_is_timed(capsys):
    """A peer without the gradient's factor 2, and a variant of ours without the bias."""
    problem, calls = Problem.random(50, 3), {"peer": 0, "ours": 0}

    def wrong(role):
        right = ours.function(problem)

        def run():
            calls[role] += 1
            right.run()

        def answer():
            found = dict(right.answer())
            if role == "peer":
                found["weight"] = (found["weight"] + problem.weight) / 2
            else:
                found["bias"] = problem.bias
            return found

        return Variant(run, answer, role=role)

    run = bench()
    makers = {
        NAME: lambda: wrong("ours"),
        "half the gradient": lambda: wrong("peer"),
        "eager": lambda: peers.eager(problem),
    }
    run.compare(Case.of("test", "", problem), makers, problem.after_steps())
    assert calls == {"peer": 1, "ours": 1}
    assert [row["variant"] for row in run.results.rows] == ["eager"]
    assert len(run.failures) == 1
    assert run.failures[0].startswith(f"{NAME}: {NAME}: bias is ")
    assert "refused: half the gradient: weight is " in capsys.readouterr().out


def test_every_peer_takes_the_step():
    """In float32 and float64. The compiled peers are checked by the benchmarks themselves."""
    for dtype, k in ((torch.float32, 1), (torch.float32, 3), (torch.float64, 1)):
        problem = Problem.random(200, 5, k, dtype)
        run = bench(peers=frozenset({"eager", "by hand", "NumPy"}))
        makers = workloads_cpu.makers(problem, {NAME: ours.train_step})
        run.compare(Case.of("test", "", problem), makers, problem.after_steps())
        assert not run.failures
        assert {row["variant"] for row in run.results.rows} == {NAME, "eager", "by hand", "NumPy"}


def test_a_missing_peer_is_skipped_by_name(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "numba", None)
    problem = Problem.random(50, 3)
    run = bench()
    run.compare(Case.of("test", "", problem), {"numba": lambda: peers.with_numba(problem)}, problem.after_steps())
    assert "skipped: numba is not installed" in capsys.readouterr().out
    assert not run.results.rows
    assert not run.failures


def test_a_run_replaces_its_own_rows_and_keeps_the_others(tmp_path):
    path = tmp_path / "results.csv"
    first = Results(path, ABOUT)
    for workload in ("one", "two"):
        first.add(workload=workload, variant="old", device="cpu")
    first.add(workload="one", case="another", variant="old", device="cpu")
    again = Results(path, ABOUT)
    again.add(workload="one", variant="new", device="cpu")
    assert [row["variant"] for row in results.read([path])] == ["old", "old", "new"]  # if it is killed now
    again.finish("one")
    Results(path, ABOUT | {"isa": "AVX512"}).add(workload="one", variant="wider", device="cpu")
    assert {(row["workload"], row["variant"]) for row in results.read([path])} == {
        ("one", "new"), ("one", "wider"), ("two", "old"),
    }  # fmt: skip


def rows_of(tmp_path, ours_seconds, eager_seconds=1e-3):
    """A case of C1 and one of `sizes`, for ours and eager."""
    written = Results(tmp_path / "results.csv", ABOUT)
    for workload, id, n, d in (("large", "C1", 2**20, 128), ("sizes", "", 32, 8)):
        case = {"workload": workload, "id": id, "case": f"{n} × {d}", "n": n, "d": d, "k": 1, "dtype": "float32"}
        for variant, role, seconds in (
            (NAME, "ours", ours_seconds), ("eager", "peer", eager_seconds), ("read sum", "bound", 4e-4),
        ):  # fmt: skip
            written.add(
                **case, device="cpu", variant=variant, role=role, clock="wall", seconds=seconds, spread=0.01,
                repeats=11, bytes=1, gb_per_s=1.0, of_bwread=4e-4 / seconds, over_eager=eager_seconds / seconds,
            )  # fmt: skip
    return written


def test_targets_are_judged(tmp_path):
    judged = {line[2]: line[3:] for line in targets.judge(rows_of(tmp_path, 5e-4).rows)}
    assert judged == {
        "of BWread": ("0.8", "≥ 0.92", "NO"),
        "speed-up over eager": ("2", "≥ 1.8", "yes"),
    }


MARKED = "# Before\n\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\n\nAfter.\n"


def report(tmp_path, page=MARKED, readme=MARKED):
    """The pages after a report: docs/performance.md and README.md."""
    (tmp_path / "docs").mkdir(exist_ok=True)
    pages = tmp_path / "docs" / "performance.md", tmp_path / "README.md"
    for path, text in zip(pages, (page, readme), strict=True):
        path.write_text(text)
    assert command.main(["report", str(tmp_path / "results.csv"), "--root", str(tmp_path)]) == 0
    return [path.read_text() for path in pages]


def test_the_report_makes_tables_and_plots(tmp_path):
    rows_of(tmp_path, 5e-4)
    pages = report(tmp_path)
    for text in pages:
        assert text.startswith("# Before\n\n<!-- benchmarks:begin -->\n")
        assert text.endswith("\n<!-- benchmarks:end -->\n\nAfter.\n")
        assert "old" not in text
    page, readme = pages
    assert "\n## Some CPU\n\nPython x, torch x; AVX2, 2 threads. float32 unless named.\n" in page
    assert "| 1048576 × 128 | 500 µs | 0.80 | 2.0× |" in page
    assert "No peer is more than 5 % faster than the fastest way in." in page
    assert "](how_fast_cpu.png)" in page
    assert "](docs/how_fast_cpu.png)" in readme
    assert (tmp_path / "docs" / "how_fast_cpu.png").read_bytes().startswith(b"\x89PNG")
    assert report(tmp_path, *pages) == pages


def test_figures_of_the_readme(tmp_path):
    written = Results(tmp_path / "results.csv", ABOUT)
    for workload, case, way in FIGURES:
        about = {"workload": workload, "case": case, "n": 8, "d": 8, "k": 1, "dtype": "float32", "device": "cpu"}
        written.add(**about, variant=f"{NAME} {way}".strip(), role="ours", seconds=2e-6)
        written.add(**about, variant="eager", role="peer", seconds=1e-3)
    _, readme = report(tmp_path)
    assert "| Some CPU, 2 threads | linreg_ext | plain PyTorch | speed-up |" in readme
    assert readme.count("| 2.00 µs | 1.00 ms | 500× |") == len(FIGURES) == 3


def test_estimators_have_a_table_and_a_plot(tmp_path):
    written = Results(tmp_path / "results.csv", ABOUT)
    for peer, n, seconds in (("Ridge", 100, 1e-3), ("Ridge", 1000, 8e-3), ("SGDRegressor", 1000, 4e-3)):
        about = {"workload": "estimators", "case": f"{peer}: {n:,} × 16", "n": n, "d": 16, "k": 1, "dtype": "float64"}
        written.add(**about, device="cpu", variant=f"{NAME} LinearRegressor", role="ours", seconds=2e-3)
        written.add(**about, device="cpu", variant=f"scikit-learn {peer}", role="peer", seconds=seconds)
    page, _ = report(tmp_path)
    assert "| rows × features | Ridge | SGDRegressor |" in page
    assert "| 100 × 16 | 2.00 ms, **0.50×** |  |" in page
    assert "| 1,000 × 16 | 2.00 ms, 4.0× | 2.00 ms, 2.0× |" in page
    assert (tmp_path / "docs" / "estimators.png").read_bytes().startswith(b"\x89PNG")


def test_many_problems_have_a_table_and_a_plot(tmp_path):
    written = Results(tmp_path / "results.csv", ABOUT)
    for kind, way, peer in (("100 epochs", "sgd_run_many_", "vmap"), ("exact", "LeastSquares", "scikit-learn")):
        for count in (10, 1000):
            case = f"{count:,} problems of 100 × 4, {kind}"
            about = {"workload": "groups", "case": case, "n": 100, "d": 4, "k": 1, "dtype": "float32", "device": "cpu"}
            written.add(**about, variant=f"{NAME} {way}", role="ours", seconds=2e-3)
            written.add(**about, variant=peer, role="peer", seconds=2e-4 * count)
    page, _ = report(tmp_path)
    assert "|  | linreg_ext | vs vmap | vs scikit-learn |" in page
    assert "| 1,000 problems of 100 × 4, 100 epochs, `sgd_run_many_` | 2.00 ms | 100× |  |" in page
    assert "| 10 problems of 100 × 4, exact, `LeastSquares` | 2.00 ms |  | 1.00× |" in page
    assert (tmp_path / "docs" / "many.png").read_bytes().startswith(b"\x89PNG")


def test_the_machine_with_the_most_results_comes_first(tmp_path):
    written = rows_of(tmp_path, 5e-4)
    other = Results(tmp_path / "results.csv", ABOUT | {"machine": "Another CPU"})
    other.add(**{name: written.rows[0][name] for name in results.MEASURED})
    page, readme = report(tmp_path)
    assert page.index("## Some CPU") < page.index("## Another CPU")
    assert "| Some CPU, 2 threads |" in readme
    assert page.count("how_fast_cpu.png") == 1


def test_the_report_says_where_it_loses(tmp_path):
    rows_of(tmp_path, 5e-4, eager_seconds=4e-4)
    page, _ = report(tmp_path)
    assert "| **0.80×** |" in page
    assert (
        "**Where a peer is more than 5 % faster** than even our fastest call:\n\n- 1048576 × 128: eager is 1.25× as fast (400 µs)"
    ) in page


def test_a_page_without_markers_is_left_alone(tmp_path):
    rows_of(tmp_path, 5e-4)
    with pytest.raises(SystemExit, match="benchmarks:begin"):
        report(tmp_path, page="# Nothing here\n")
    assert (tmp_path / "docs" / "performance.md").read_text() == "# Nothing here\n"


def test_an_unknown_workload_is_named(capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(["tyni"])
    assert exit.value.code == 2
    assert "unknown workload 'tyni': choose from large, " in capsys.readouterr().err


def test_constants_of_a_gpu_are_recorded_and_judged(tmp_path, monkeypatch, capsys):
    measured = [("graph node of 1 block(s)", 1.25, "us"), ("1024 sums, fixed order over atomics", 1.05, "ratio")]
    monkeypatch.setattr(probe, "constants", lambda: iter(measured))
    monkeypatch.setattr(machine, "describe", lambda device: ABOUT)
    out = tmp_path / "results.csv"
    probe.main(["--out", str(out)])
    rows = results.read([out])
    assert {row["workload"] for row in rows} == {"constants"}
    assert [(row["variant"], row["role"], row["value"], row["unit"]) for row in rows] == [
        ("graph node of 1 block(s)", "bound", "1.25", "us"), ("fixed order over atomics", "ours", "1.05", "ratio"),
    ]  # fmt: skip
    assert [line[0:2] + line[3:] for line in targets.judge(rows)] == [
        ("G12", "1024 sums, fixed order over atomics", "1.05", "≤ 1.03", "NO")
    ]
    assert "1.25 us     graph node of 1 block(s)" in capsys.readouterr().out


def test_every_launch_of_the_probe_fits_its_kernel(monkeypatch):
    """Kernels are launched by name with untyped arguments, whose mistakes only a GPU would find."""
    kernel = r"^(?:__global__ void|__global__ void __launch_bounds__\(256\)\n) +(\w+)\((.*)\) [{]"
    signatures = dict(re.findall(kernel, probe.SOURCE, re.MULTILINE))
    launched = set()

    def launch(kernel, blocks, threads, *arguments, shared=0, times=1):
        parameters = signatures[kernel.partition("<")[0]].split(", ")
        assert [isinstance(argument, torch.Tensor) for argument in arguments] == ["*" in p for p in parameters if p]
        assert threads == 256 or "ring" not in kernel
        launched.add(kernel)

    gpu = SimpleNamespace(multi_processor_count=132, L2_cache_size=2**24, shared_memory_per_multiprocessor=228 << 10)
    for name in ("empty", "zeros"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, device, make=make, **how: make(*size, **how))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(probe, "launch", launch)
    monkeypatch.setattr(probe, "microseconds", lambda run, clock=None: [run()] and 1.0)
    names = [name for name, value, unit in probe.constants(1 << 20)]
    assert len(set(names)) == len(names)
    assert {name.partition("<")[0] for name in launched} == set(signatures)
    assert all(name in probe.SOURCE or name.startswith("ring<") for name in launched)
