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
from linreg_ext._extension import _C

PACKAGE = Path(linreg_ext.__file__).parent


# Runs each program in a fork of a process that has imported torch, which takes seconds.
FORKS = """
import os, sys, torch
for program in sys.argv[1:]:
    if os.fork() == 0:
        exec(program)
        sys.exit()
    print(f"\\0{os.waitstatus_to_exitcode(os.wait()[1])}\\0", flush=True)
    print("\\0", file=sys.stderr, flush=True)
"""


def copy_package(folder):
    """A copy of the package to break, and its compiled part."""
    shutil.copytree(PACKAGE, folder / "linreg_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (file,) = (folder / "linreg_ext").glob("_C*.so")
    return file


def run_programs(folder, *programs):
    """For each of them, its exit status and what it prints to stdout and stderr."""
    result = subprocess.run(
        [sys.executable, "-c", FORKS, *programs], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed, statuses = (result.stdout.split("\0")[i:-1:2] for i in (0, 1))
    return list(zip(map(int, statuses), printed, result.stderr.split("\0")[:-1], strict=True))


def test_build_info():
    info = linreg_ext.build_info()
    assert info["torch"] == torch.__version__
    assert info["reference"] is False
    assert info["compiler"].startswith("gcc")


INFO = """  # python -m linreg_ext info
import runpy, sys
sys.argv[1:] = ["info"]
runpy._run_module_as_main("linreg_ext")
"""
REFERENCE = """
import os
os.environ["LINREG_EXT_REFERENCE"] = "1"
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


@pytest.mark.extended
def test_a_missing_compiled_part(tmp_path):
    """An import and a command say so; the reference runs."""
    copy_package(tmp_path).unlink()
    imported, command, reference = run_programs(tmp_path, "import linreg_ext", INFO, REFERENCE)
    assert [imported[0], command[0], reference[0]] == [1, 1, 0], reference[2]
    last = imported[2].strip().splitlines()[-1]
    assert last.startswith("ImportError: linreg_ext: the compiled part is not built; build it with `pip install")
    assert "make build" in last
    assert "the compiled part is not built" in command[2]
    assert "Traceback" not in command[2]
    assert reference[1].strip() == "True"
    assert "eager: LINREG_EXT_REFERENCE=1 runs plain PyTorch" in reference[2]


@pytest.mark.extended
def test_a_compiled_part_for_another_torch(tmp_path):
    """Found by asking it where it loads, and by its stamp where it does not."""
    version = torch.__version__.encode()
    other = b"1" + version[1:]
    loads = (PACKAGE / Path(_C.__file__).name).read_bytes().replace(version + b"\0", other + b"\0")
    stamped = b"no library, but linreg_ext built for torch " + other + b"\0"
    programs = []
    for name, content in (("loads", loads), ("stamped", stamped), ("unknown", b"nothing that is known")):
        copy_package(tmp_path / name).write_bytes(content)
        programs.append(f"import sys; sys.path[0] = {name!r}; import linreg_ext")
    found = run_programs(tmp_path, *programs)
    assert [status for status, *_ in found] == [1, 1, 1]
    expected = f"the compiled part must match torch {torch.__version__}, got one built for torch {other.decode()}; rebuild it with"
    assert expected in found[0][2]
    assert expected in found[1][2]
    assert "the compiled part cannot be loaded" in found[2][2]


def assert_passes(*arguments, **environment):
    """In a process of its own, since such settings are read once a process."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"\[100%\]", result.stdout)


CAPABILITIES = ["default", "avx2", "avx512"]
OWN = torch.backends.cpu.get_cpu_capability().lower()  # what all other tests run with
LESSER = CAPABILITIES[: CAPABILITIES.index(OWN)] if OWN in CAPABILITIES else CAPABILITIES


@pytest.mark.extended
@pytest.mark.parametrize("capability", LESSER)
def test_every_lesser_instruction_set_passes_the_values(capability):
    """In fresh memory that is not zeros."""
    tests = ["tests/test_values.py", "tests/test_parity.py::test_shapes", "tests/test_parity.py::test_near_convergence"]
    tests += [
        "tests/test_run_many.py::test_every_problem_is_a_run_alone",
        "tests/test_run_many.py::test_every_loss_in_lanes",
    ]
    assert_passes("-m", "not extended", *tests, ATEN_CPU_CAPABILITY=capability, MALLOC_PERTURB_="90")


@pytest.mark.extended
@pytest.mark.parametrize("capability", LESSER)
def test_every_lesser_instruction_set_passes_every_shape(capability):
    environment = {"ATEN_CPU_CAPABILITY": capability, "MALLOC_PERTURB_": "90"}
    tests = ("tests/test_parity.py::test_shapes", "tests/test_parity.py::test_near_convergence")
    assert_passes("-k", "float32 or float64", *tests, **environment)
    assert_passes("tests/test_cancellation.py", "-m", "not extended", **environment)


@pytest.mark.extended
@pytest.mark.parametrize("capability", [*LESSER, OWN])
def test_every_instruction_set_passes_thousands_of_random_problems(capability):
    """The same ones in every run; `pytest --hypothesis-profile long` tries new ones."""
    tests = ("tests/test_properties.py", "tests/test_switching.py")
    long = ("--hypothesis-profile", "long", "--hypothesis-seed", capability)  # a third as many for the lesser sets
    assert_passes(*(long if capability == OWN else ()), *tests, ATEN_CPU_CAPABILITY=capability)


HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text().split()


@pytest.mark.extended
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch multiplies without MKL")
@pytest.mark.parametrize("setting", ["COMPATIBLE", "AVX2", *(["AVX512"] if HAS_AVX512 else [])])
def test_products_pass_as_other_processors_compute_them(setting):
    """MKL chooses its kernels by the processor, or by the user's MKL_CBWR. Fails if results pass only by the luck of
    one choice."""
    tests = [f"tests/test_{name}.py" for name in ("parity", "cancellation", "determinism", "run")]
    assert_passes("-x", "-m", "products and not extended", "-k", "not 1024", *tests, MKL_CBWR=setting)
