# SPDX-License-Identifier: BSD-3-Clause
"""The compiled part: its build information, and the errors if it cannot be used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import linreg_ext

PACKAGE = Path(linreg_ext.__file__).parent


@pytest.fixture
def copied(tmp_path):
    """A copy of the package to break, and a way to run Python on it."""
    shutil.copytree(PACKAGE, tmp_path / "linreg_ext", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": "", **environment},
        )  # fmt: skip

    return tmp_path / "linreg_ext", run


def test_build_info():
    info = linreg_ext.build_info()
    assert info["torch"] == torch.__version__
    assert info["reference"] is False
    assert info["compiler"].startswith("gcc")


def test_a_missing_compiled_part(copied):
    package, run = copied
    for file in package.glob("_C*.so"):
        file.unlink()
    result = run("-c", "import linreg_ext")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: linreg_ext: the compiled part is not built; build it with `pip install")
    assert "make build" in last
    command = run("-m", "linreg_ext", "info")
    assert command.returncode == 1
    assert "the compiled part is not built" in command.stderr
    assert "Traceback" not in command.stderr


def test_a_compiled_part_for_another_torch(copied):
    """Detected by asking it if it loads, and by its stamp if it does not."""
    package, run = copied
    (file,) = package.glob("_C*.so")
    version = torch.__version__.encode()
    other = b"1" + version[1:]
    loads = file.read_bytes().replace(version + b"\0", other + b"\0")
    expected = f"the compiled part must match torch {torch.__version__}, got one built for torch {other.decode()}; rebuild it with"
    for content in (loads, b"no library, but linreg_ext built for torch " + other + b"\0"):
        file.write_bytes(content)
        result = run("-c", "import linreg_ext")
        assert result.returncode == 1
        assert expected in result.stderr
    file.write_bytes(b"nothing that is known")
    assert "the compiled part cannot be loaded" in run("-c", "import linreg_ext").stderr


def test_the_reference_runs_without_the_compiled_part(copied):
    package, run = copied
    for file in package.glob("_C*.so"):
        file.unlink()
    script = """
import torch, linreg_ext
from torch import nn
assert linreg_ext.build_info() == {"torch": None, "compiler": None, "cuda": None, "reference": True}
x, y = torch.randn(20, 3), torch.randn(20, 1)
model = linreg_ext.LinearMSELoss(3, 1)
model(x, y).backward()
layer = nn.Linear(3, 1)
opt = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
edge = torch.autograd.graph.get_gradient_edge(layer.weight).node
edge.register_hook(lambda *_: seen.append("gradient"))
seen = []
history = linreg_ext.fit(5, layer, nn.MSELoss(), opt, [(x, y)])
assert history.epoch_loss[-1] < history.epoch_loss[0] and len(seen) == 5
runs = []
for run in (linreg_ext.sgd_run_, torch.compile(linreg_ext.sgd_run_, backend="eager")):
    w = torch.zeros(1, 3)
    runs.append((run(x, w, y, batch_size=8, lr=0.1), w))
print(torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1]))
"""
    result = run("-c", script, LINREG_EXT_REFERENCE="1")
    assert result.stdout.strip() == "True", result.stderr
    assert "eager: LINREG_EXT_REFERENCE=1 runs plain PyTorch" in result.stderr


CAPABILITIES = ["default", "avx2", "avx512"]
OWN = torch.backends.cpu.get_cpu_capability().lower()  # the one that all other tests use


@pytest.mark.parametrize("capability", CAPABILITIES[: CAPABILITIES.index(OWN)] if OWN in CAPABILITIES else CAPABILITIES)
def test_every_lesser_instruction_set_passes_the_values(capability):
    """The capability is read once per process, so each runs in its own, where fresh memory is not zero."""
    tests = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests / "test_values.py",
         *(tests / f"test_parity.py::test_{name}" for name in ("shapes", "near_convergence", "near_convergence_by_products"))],
        cwd=tests.parent, capture_output=True, text=True,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "MALLOC_PERTURB_": "90"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"\[100%\]", result.stdout)


HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text().split()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch multiplies without MKL")
@pytest.mark.parametrize("setting", ["COMPATIBLE", "AVX2", *(["AVX512"] if HAS_AVX512 else [])])
def test_products_pass_as_other_processors_compute_them(setting):
    """MKL chooses its kernels by the processor, or by the user's MKL_CBWR. Fails if results pass only by the luck of
    one choice. The setting is read once per process."""
    tests = Path(__file__).parent
    files = ("parity", "cancellation", "determinism", "run")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "products", "-k", "not 1024",
         *(tests / f"test_{name}.py" for name in files)],
        cwd=tests.parent, capture_output=True, text=True, env={**os.environ, "MKL_CBWR": setting},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
