# SPDX-License-Identifier: BSD-3-Clause
"""The side effects of the command line, from Python's audit events: no network, no other program, no pickle that runs,
and no file written anywhere but where it should be."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import linreg_ext

PACKAGE = Path(linreg_ext.__file__).parent
FRUIT = PACKAGE / "data" / "apples_and_oranges.csv"

WATCHED = """
import os, sys, sysconfig

ANYWHERE = ("socket.", "urllib.", "ftplib.", "http.", "smtplib.", "pickle.find_class")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.spawn")
CHANGES = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.link": 1, "os.symlink": 1, "tempfile.mkstemp": 0}
STANDARD = (sysconfig.get_path("stdlib"), "<frozen")
HERE = os.path.realpath(".")

def asked_by():
    frame = sys._getframe(2)
    while frame and (frame.f_code.co_filename.startswith(STANDARD) and "site-packages" not in frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""

def hook(event, args):
    place = None
    if event.startswith(ANYWHERE):
        print("SEEN", event, args)
    elif event.startswith(PROGRAMS) and "matplotlib" not in asked_by():  # which asks fc-list for fonts
        print("SEEN", event, args)
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        place = args[0]
    elif event in CHANGES:
        place = args[CHANGES[event]]
    if isinstance(place, (str, os.PathLike)) and asked_by().startswith(PACKAGE):
        if not os.path.realpath(place).startswith(HERE + os.sep) and os.path.realpath(place) != HERE:
            print("SEEN", event, args)

sys.addaudithook(hook)
"""


class Runs:
    """Creates a folder when unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def hostile_files(folder):
    """Files that would run code in a trusting reader, and the arguments that read them."""
    (folder / "model").mkdir()
    torch.save({"weight": Runs()}, folder / "model" / "weights.pt")
    np.save(folder / "object.npy", np.array([[Runs(), 1]], dtype=object), allow_pickle=True)
    np.savez(folder / "object.npz", a=np.array([Runs(), 1], dtype=object))
    (folder / "plain.npy").write_bytes(pickle.dumps(Runs()))
    commands = [["predict", "model", str(FRUIT)], ["fit", "object.npy"], ["fit", "object.npz"], ["fit", "plain.npy"]]
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet as parquet

        extension = {
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Runs()),
        }
        schema = pyarrow.schema([pyarrow.field("a", pyarrow.float64(), metadata=extension), ("b", pyarrow.float64())])
        table = pyarrow.table({"a": np.arange(9.0), "b": np.arange(9.0) % 4}, schema=schema)
        parquet.write_table(table, folder / "extended.parquet")
        commands.append(["fit", "extended.parquet", "--epochs", "1"])
    return commands


@pytest.mark.extended
def test_no_network_no_program_no_pickle_nothing_elsewhere(tmp_path):
    commands = [["fit", "--epochs", "2", "--out", "run"], ["predict", "run", str(FRUIT), "--out", "run.csv"], ["info"]]
    script = f"""import torch  # which asks for libraries where it is built for CUDA
{WATCHED}
PACKAGE = {str(PACKAGE)!r}
from linreg_ext.cli import main
print("CODES", *(main(arguments) for arguments in {commands + hostile_files(tmp_path)!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert "SEEN" not in run.stdout, run.stdout
    assert run.returncode == 0, run.stderr
    assert "CODES 0 0 0 2 2 2 2" in run.stdout
    assert not (tmp_path / "unpickled").exists()


def test_the_hostile_files_are_hostile(tmp_path, monkeypatch):
    """Otherwise the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    hostile_files(tmp_path)
    for trusting in (
        lambda: torch.load(tmp_path / "model" / "weights.pt", weights_only=False),
        lambda: np.load(tmp_path / "object.npy", allow_pickle=True),
        lambda: np.load(tmp_path / "object.npz", allow_pickle=True)["a"],
        lambda: np.load(tmp_path / "plain.npy", allow_pickle=True),
    ):
        trusting()
        (tmp_path / "unpickled").rmdir()


def test_safetensors_with_names_that_are_no_names(tmp_path):
    """Metadata is untrusted JSON: of the wrong type, nested endlessly, or of another shape."""
    safetensors = pytest.importorskip("safetensors.torch")
    from linreg_ext.cli.coefficients import load_weights
    from linreg_ext.cli.errors import CommandError

    tensors = {"weight": torch.ones(1, 1).double(), "bias": torch.ones(1).double()}
    for features in ("5", "[5]", "{}", "[" * 100_000, '"ab"', '["a", "b"]', "not json"):
        metadata = {"features": features, "targets": '["y"]'}
        (tmp_path / "weights.safetensors").write_bytes(safetensors.save(tensors, metadata))
        with pytest.raises(CommandError, match="expected the weights of an earlier fit"):
            load_weights(tmp_path)
