# SPDX-License-Identifier: BSD-3-Clause
"""The command line as several processes fits as one does, and ends as one."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from linreg_ext.cli import main
from linreg_ext.cli.processes import Processes
from linreg_ext.tables.stream import shard_of

pyarrow = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)

FILES = {"a": (500, 150), "b": (3, 3), "c": (700, 200)}  # rows, and rows of a row group


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Parquet files with gaps, a category that only the last has, a constant and nearly dependent columns; a CSV file."""
    import pyarrow.csv
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    parts, place = [], tmp_path / "t.parquet"
    place.mkdir()
    for name, (rows, group) in FILES.items():
        x = rng.normal(size=(rows, 3)) + 1000
        kind = rng.choice(["u", "v", "w"] if name == "c" else ["u", "v"], rows)
        y = x @ [1, 2, -3] + (kind == "v") + rng.normal(size=rows)
        gaps = pyarrow.array(x[:, 0], mask=rng.random(rows) < 0.05)
        columns = {"x0": gaps, "x1": x[:, 1], "x2": x[:, 2], "kind": kind, "constant": np.full(rows, 0.1), "y": y}
        columns["near"] = x[:, 1] + 1e-6 * rng.normal(size=rows)
        columns["v"] = rng.uniform(0, 2, rows)
        parts.append(pyarrow.table(columns))
        pyarrow.parquet.write_table(parts[-1], place / f"{name}.parquet", row_group_size=group)
    pyarrow.csv.write_csv(pyarrow.concat_tables(parts), tmp_path / "t.csv")
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n2,3\n3,oops\n4,5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXACT = ["--target", "y", "--drop", "near", "v"]
COMMANDS = {  # of `fit`, and what they print on stderr if they fail
    "parquet": (["t.parquet", *EXACT], None),
    "csv": (["t.csv", *EXACT], None),
    "ridge": (["t.parquet", *EXACT, "--l2", "3", "--val-fraction", "0"], None),
    "weighted": (["t.parquet", *EXACT[:3], "near", "--weight", "v"], None),
    "near": (["t.parquet", "--target", "y", "--drop", "v"], None),
    "sgd": (["t.csv", *EXACT, "--solver", "sgd", "--epochs", "3", "--momentum", "0.5"], None),
    "l1": (["t.csv", *EXACT[:3], "near", "--weight", "v", "--loss", "l1", "--epochs", "2"], None),
    "quantile": (["t.csv", *EXACT, "--quantile", "0.9", "--epochs", "1", "--batch-size", "200"], None),
    "absent": (["t.parquet", "--target", "z"], "linreg_ext: error: --target z: t.parquet has the columns x0, x1"),
    "text": (["bad.csv", "--target", "y"], "bad.csv, row 4, column 'y': expected a number, got 'oops'"),
    "occupied": (["t.parquet", *EXACT, "--out", "t.csv"], "linreg_ext: error: --out t.csv: expected a folder"),
    "diverges": (["t.csv", *EXACT, "--lr", "1e30", "--no-standardize"], "training diverges"),
}


def work(rank, size, names, ports, folder):
    torch.set_num_threads(1)
    os.chdir(folder)
    for name, port in zip(names, ports, strict=True):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["fit", "--out", f"out{size}_{name}", *COMMANDS[name][0]])
            except SystemExit as error:
                code = error.code
        Path(f"{size}_{name}_{rank}.json").write_text(json.dumps([code, out.getvalue(), err.getvalue()]))


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run(size, names, folder):
    arguments = (size, names, free_ports(len(names)), str(folder))
    torch.multiprocessing.start_processes(work, arguments, nprocs=size, start_method="spawn")


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


@pytest.mark.extended
@pytest.mark.parametrize("size", [2, 3])
def test_processes_fit_as_one(size, folder):
    pytest.importorskip("safetensors")
    names = list(COMMANDS)
    run(1, names, folder)
    run(size, names, folder)
    for name in names:
        error = COMMANDS[name][1]
        (code, out, err), *others = (json.loads((folder / f"{size}_{name}_{r}.json").read_text()) for r in range(size))
        assert others == [[code, "", ""]] * (size - 1), name
        of_one = json.loads((folder / f"1_{name}_0.json").read_text())
        if error is not None:
            assert code == of_one[0] == 2
            assert error in err
            assert err.count("\n") == 1
            assert not (folder / f"out{size}_{name}").exists()
            continue
        assert (code, err) == (0, ""), err
        ours, theirs = (weights(folder / f"out{n}_{name}") for n in (size, 1))
        is_exact = name in ("parquet", "csv", "ridge", "weighted")
        for key, value in theirs.items():
            # SGD is computed in float32; nearly dependent columns have a condition of 1e6.
            rtol = 1e-10 if is_exact else 1e-6 if name == "near" else 1e-4
            torch.testing.assert_close(ours[key], value, rtol=rtol, atol=rtol * value.abs().max().item())
        if is_exact:
            assert out == of_one[1].replace("out1_", f"out{size}_")
        assert out.count("wrote") == 1


def test_idle_cores_are_mentioned(monkeypatch):
    processes = Processes()
    processes.started, processes.size = True, 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for threads, local, words in (
        ("1", "", "leaves 6 of 8 cores idle; OMP_NUM_THREADS=4 uses them"),
        ("1", "3", "leaves 5 of 8 cores idle; OMP_NUM_THREADS=2 uses them"),
        ("1", "8", ""),
        ("4", "", ""),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        if local:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert processes.thread_note() == (f"OMP_NUM_THREADS=1, as torchrun sets it, {words}" if words else "")
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_shards_are_contiguous_and_complete():
    for sizes in ([], [5], [0, 3, 0], [1, 1, 1, 1], [10, 1, 1, 1, 7], [3] * 17):
        for count in (1, 2, 3, 5, 20):
            shards = [shard_of(sizes, i, count) for i in range(count)]
            assert [place for shard in shards for place in shard] == list(range(len(sizes)))
            if sizes == [3] * 17 and count < 17:
                assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.extended
def test_workers_of_a_loader_share_a_readers_rows(folder):
    from linreg_ext.tables import Options, Stream

    class Rows(torch.utils.data.IterableDataset):
        def __init__(self, shard):
            self.shard = shard

        def __iter__(self):
            stream = Stream(Path("t.parquet"), Options(), lambda names: names, (), self.shard)
            for block in stream.blocks(["x1"]):
                yield from zip(
                    range(block.line(0), block.line(0) + block.rows), block.columns["x1"].values, strict=True
                )

    found = []
    for rank in range(2):
        found += map(tuple, torch.utils.data.DataLoader(Rows((rank, 2)), batch_size=None, num_workers=2))
    whole = list(Rows((0, 1)))
    assert sorted(found) == whole
    assert [number for number, _ in whole] == list(range(1, 1204))


def torchrun(size, *arguments, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "-m", "linreg_ext", "fit"]
    root = Path(__file__).parents[1]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )  # fmt: skip


@pytest.mark.extended
def test_torchrun(folder):
    """Fails if ranks print or write more than once, or the threads that torchrun takes away are not mentioned."""
    done = torchrun(2, "t.parquet", *EXACT, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Coefficients") == 1
    assert ("note: OMP_NUM_THREADS=1" in done.stdout) == (len(os.sched_getaffinity(0)) > 2)
    run(1, ["parquet"], folder)
    ours, theirs = weights(folder / "run"), weights(folder / "out1_parquet")
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-10, atol=1e-10 * value.abs().max().item())


@pytest.mark.extended
def test_a_rank_that_is_killed_or_cannot_read_ends_all(folder):
    (folder / "sitecustomize.py").write_text(
        "import os, signal\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import linreg_ext.cli.stream as stream\n"
        "    blocks = stream.Stream.blocks\n"
        "    def broken(*args, **kwargs):\n"
        "        if os.environ['SABOTAGE'] == 'kill':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        raise stream.CommandError('no such file: b.parquet')\n"
        "    stream.Stream.blocks = broken\n"
    )
    root = Path(__file__).parents[1]
    for sabotage, words in (
        ("raise", "linreg_ext: error: rank 1 of 3: no such file: b.parquet\n"),
        ("kill", f"exitcode  : -{signal.SIGKILL:d}"),
    ):
        done = torchrun(3, "t.parquet", *EXACT, "--out", "run", SABOTAGE=sabotage, PYTHONPATH=f"{folder}:{root}")
        assert done.returncode != 0
        assert words in done.stderr
        assert not (folder / "run").exists()
