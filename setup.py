# SPDX-License-Identifier: BSD-3-Clause
"""Build `linreg_ext._C`; pyproject.toml has everything else about the package."""

import os
import runpy
import shutil
import sys
import sysconfig
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        f"linreg_ext: must be compiled against the torch that will run it, but found none ({error}): "
        "install torch, then build with `pip install --no-build-isolation .`"
    ) from None

ROOT = Path(__file__).parent.resolve()
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"  # with neither TORCH_CUDA_ARCH_LIST nor a GPU
SUFFIXES = (".h", ".cuh", ".cpp", ".cu", ".py")  # of files that an sdist needs
GIGABYTES_PER_JOB = 4  # of memory for a compiler with torch's headers
ISOLATED = ("pip-build-env-", "build-env-", "builds-v0")  # in the paths of isolated builds by pip, build and uv


def check_isolation() -> None:
    """Stop an isolated build if its torch differs from the installed one; otherwise warn about the isolation.

    pip imports the isolated torch from a temporary folder, while sysconfig describes the target environment.
    """
    if not any(part.startswith(ISOLATED) for part in Path(torch.__file__).parts):
        return
    brought = metadata.version("torch")
    target = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    for found in metadata.distributions(name="torch", path=target):
        if found.version != brought:
            raise SystemExit(
                f"linreg_ext: the isolated build would compile against torch {brought}, but the environment has torch "
                f"{found.version}, which could not load the result: compile against it with "
                "`pip install --no-build-isolation .`"
            )
    print(
        f"linreg_ext: WARNING: the isolated build compiles against torch {brought} from a temporary folder, and the "
        "result loads only with that version; to compile against the installed torch, use "
        "`pip install --no-build-isolation .`",
        file=sys.stderr,
        flush=True,
    )


def use_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why. A build machine need not have a GPU."""
    wish = os.environ.get("LINREG_EXT_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"linreg_ext: LINREG_EXT_CUDA must be 0 or 1, got {wish!r}")
    if wish == "0":
        return False, "LINREG_EXT_CUDA=0"
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is a CPU build")
    elif cpp_extension.CUDA_HOME is None or not Path(cpp_extension.CUDA_HOME, "include", "cuda_runtime.h").exists():
        missing.append(f"there is no CUDA toolkit at CUDA_HOME={cpp_extension.CUDA_HOME}")
    if not list(ROOT.glob("csrc/cuda/*.cu")):
        missing.append("there are no CUDA sources")
    if wish == "1" and missing:
        raise SystemExit(f"linreg_ext: LINREG_EXT_CUDA=1, but {' and '.join(missing)}")
    return not missing, " and ".join(missing) or f"torch for CUDA {torch.version.cuda} and {cpp_extension.CUDA_HOME}"


def architectures() -> str:
    """Those of the visible GPUs; if there are none, all."""
    if not torch.cuda.is_available():
        return ARCHITECTURES
    found = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found))


def bound_jobs() -> None:
    """Limit MAX_JOBS to what fits in memory, unless the user has set it."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    jobs = min(len(os.sched_getaffinity(0)), max(1, int(gigabytes / GIGABYTES_PER_JOB)))
    os.environ.setdefault("MAX_JOBS", str(jobs))


def find_ninja() -> None:
    """Put the installed ninja on the PATH: if torch does not find it there, it compiles one file at a time.

    A virtual environment that only sees the packages of another Python lacks that Python's programs.
    """
    if shutil.which("ninja") is None:
        with suppress(metadata.PackageNotFoundError):
            folders = [file.locate().parent.resolve() for file in metadata.files("ninja") or () if file.name == "ninja"]
            os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])


def extension() -> Extension:
    cuda, why = use_cuda()
    print(f"linreg_ext: building {'with' if cuda else 'without'} CUDA: {why}", flush=True)
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures())
    cpu_sources = runpy.run_path(str(ROOT / "csrc" / "instruction_sets.py"))["cpu_sources"]
    sources = [
        *cpu_sources(ROOT / "build" / "cpu"),
        *(path for pattern in ("torch/*.cpp", "cuda/*.cu") for path in sorted(ROOT.glob(f"csrc/{pattern}"))),
    ]
    if not cuda:  # a CPU build has fewer sources
        sources = [path for path in sources if path.suffix != ".cu" and path.name != "cuda.cpp"]
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi", "-Wno-unknown-pragmas"]
    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return make(
        "linreg_ext._C",
        sources=[str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*.*")) if path.suffix in SUFFIXES],
        define_macros=[
            ("LINREG_EXT_TORCH_VERSION", f'"{torch.__version__}"'),
            ("LINREG_EXT_CUDA_VERSION", f'"{torch.version.cuda}"' if cuda else '""'),
        ],
        extra_compile_args={
            "cxx": ["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", *warnings],
            "nvcc": ["-O3", "-std=c++20", "-lineinfo"],
        },
        extra_link_args=["-fopenmp"],
    )


if sys.platform != "linux":
    raise SystemExit(
        f"linreg_ext: can be compiled on Linux only, got {sys.platform}: "
        "set LINREG_EXT_REFERENCE=1 to run the sources on plain PyTorch"
    )
check_isolation()
find_ninja()
bound_jobs()
setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
