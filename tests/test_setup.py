# SPDX-License-Identifier: BSD-3-Clause
"""The decisions of setup.py (CUDA, architectures, jobs, flags), and its errors if it cannot build."""

import os
import re
import runpy
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Runs setup.py up to compiling, on a simulated machine, and returns its extension."""
    toolkit = tmp_path / "cuda"
    (toolkit / "include").mkdir(parents=True)
    (toolkit / "include" / "cuda_runtime.h").touch()
    for name in ("LINREG_EXT_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(SETUP.parent)

    def run(torch_cuda=None, has_toolkit=False, **environment):
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(toolkit) if has_toolkit else None)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        given = []
        monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.append(arguments))
        runpy.run_path(str(SETUP))
        return given[0]["ext_modules"][0]

    return run


def test_a_cpu_build_has_fewer_sources(build, capsys):
    for torch_cuda, has_toolkit, why in (
        (None, True, "is a CPU build"),
        ("13.0", False, "there is no CUDA toolkit at"),
    ):
        extension = build(torch_cuda, has_toolkit)
        said = capsys.readouterr().out
        assert "linreg_ext: building without CUDA: " in said
        assert why in said
        assert not [s for s in extension.sources if s.endswith(".cu") or s.endswith("cuda.cpp")]
    assert build("13.0", True, LINREG_EXT_CUDA="0").sources == extension.sources


def test_a_machine_without_a_gpu_builds_for_all_of_them(build, capsys):
    """A container may be built on another machine than it runs on."""
    extension = build("13.0", True)
    assert "linreg_ext: building with CUDA: torch for CUDA 13.0 and " in capsys.readouterr().out
    assert {"csrc/cuda/pass.cu", "csrc/torch/cuda.cpp"} < set(extension.sources)
    first, *_, last = os.environ["TORCH_CUDA_ARCH_LIST"].split(";")
    assert first == "7.5"
    assert last.endswith("+PTX")  # for those to come


def test_a_machine_with_gpus_builds_for_them(build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (8, 6), (9, 0)][device])
    build("13.0", True)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6;9.0"


def test_architectures_and_jobs_are_the_users(build):
    build("13.0", True, TORCH_CUDA_ARCH_LIST="8.6", MAX_JOBS="3")
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6"
    assert os.environ["MAX_JOBS"] == "3"


def test_jobs_are_bounded_by_memory(build, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 9 * 2**30 // 4096}.get)
    build()
    assert os.environ["MAX_JOBS"] == "2"


def test_ninja_is_found_as_a_program(build, monkeypatch):
    """A virtual environment that borrows the packages of another has ninja's module, and not its program."""
    pytest.importorskip("ninja")
    monkeypatch.setenv("PATH", "/nowhere")
    build()
    assert cpp_extension.is_ninja_available()
    monkeypatch.setattr(metadata, "files", lambda name: pytest.fail("what the PATH has is good"))
    build()


def test_without_ninja_it_builds_slowly(build, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(metadata, "files", Mock(side_effect=metadata.PackageNotFoundError))
    assert build().sources
    assert os.environ["PATH"] == "/nowhere"


def test_cuda_that_is_asked_for_and_cannot_be_built_is_an_error(build):
    for torch_cuda, has_toolkit, words in (
        (None, False, r"LINREG_EXT_CUDA=1, but torch .* is a CPU build"),
        ("13.0", False, "LINREG_EXT_CUDA=1, but there is no CUDA toolkit at CUDA_HOME=None"),
    ):
        with pytest.raises(SystemExit, match=words):
            build(torch_cuda, has_toolkit, LINREG_EXT_CUDA="1")
    with pytest.raises(SystemExit, match="LINREG_EXT_CUDA must be 0 or 1, got 'yes'"):
        build(LINREG_EXT_CUDA="yes")


def test_without_torch_it_says_what_to_install(build, monkeypatch):
    """In pip's isolated environment, or before torch is installed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"found none .*: install torch, then build with `pip install --no-build-is"):
        runpy.run_path(str(SETUP))


@pytest.fixture
def isolate(monkeypatch, tmp_path):
    """Moves the imported torch into an isolated build; the target environment has torch `version`, if given."""

    def run(version=None, folder="pip-build-env-x1/overlay/lib"):
        target = tmp_path / "target"
        target.mkdir(exist_ok=True)
        if version is not None:
            (target / f"torch-{version}.dist-info").mkdir()
            (target / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
        monkeypatch.setattr(torch, "__file__", str(tmp_path / folder / "torch" / "__init__.py"))
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(target))

    return run


def test_an_isolated_build_for_another_torch_stops(build, isolate):
    isolate("1.2.3")
    compiled = re.escape(metadata.version("torch"))
    words = rf"against torch {compiled}, but the environment has torch 1\.2\.3, .*`pip install --no-build-isolation \.`"
    with pytest.raises(SystemExit, match=words):
        build()


@pytest.mark.parametrize("folder", ["pip-build-env-x1/overlay/lib", "build-env-x1/lib", "builds-v0/.tmpx1/lib"])
@pytest.mark.parametrize("has_torch", [True, False])
def test_any_other_isolated_build_warns(folder, has_torch, build, isolate, capsys):
    isolate(metadata.version("torch") if has_torch else None, folder)
    assert build().sources
    said = capsys.readouterr().err
    assert f"WARNING: the isolated build compiles against torch {metadata.version('torch')}" in said
    assert "`pip install --no-build-isolation .`" in said


def test_a_build_that_is_not_isolated_does_not_warn(build, isolate, capsys):
    isolate("1.2.3", "site-packages")  # as in a virtual environment that uses another's torch
    assert build().sources
    assert not capsys.readouterr().err


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_told_so(system, build, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(SystemExit, match=f"on Linux only, got {system}: set LINREG_EXT_REFERENCE=1 "):
        build()


def test_no_flag_buys_speed_with_wrongness_or_with_a_machine(build):
    """Compiler flags: the build runs on other machines, and adds in the order of the source."""
    given = build("13.0", True).extra_compile_args
    flags = " ".join(given["cxx"] + given["nvcc"])
    assert "-O3" in flags
    for flag in ("fast", "march", "mtune", "unsafe", "finite", "reciprocal", "ftz"):
        assert flag not in flags


def test_type_checkers_are_told_of_the_annotations():
    assert (SETUP.parent / "linreg_ext" / "py.typed").exists()
    assert 'package-data = { linreg_ext = ["py.typed", ' in (SETUP.parent / "pyproject.toml").read_text()
