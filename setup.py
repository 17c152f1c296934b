# SPDX-License-Identifier: BSD-3-Clause
"""Builds `linreg_ext._C`; everything else about the package stands in pyproject.toml."""

import os
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.resolve()
GIGABYTES_PER_JOB = 4  # what one compiler job may need with torch's headers


def use_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why. A GPU need not be present: this may be a build machine."""
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


def bound_jobs() -> None:
    """Keep parallel compilation within the machine's memory unless the user has chosen MAX_JOBS."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    jobs = min(len(os.sched_getaffinity(0)), max(1, int(gigabytes / GIGABYTES_PER_JOB)))
    os.environ.setdefault("MAX_JOBS", str(jobs))


def extension() -> cpp_extension.CppExtension:
    cuda, why = use_cuda()
    print(f"linreg_ext: building {'with' if cuda else 'without'} CUDA: {why}", flush=True)
    folders = ["cpu", "torch"]
    cxx = [
        "-O3",
        "-std=c++20",
        "-fopenmp",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-psabi",
        "-Wno-unknown-pragmas",
    ]
    return cpp_extension.CppExtension(
        "linreg_ext._C",
        sources=sorted(str(path.relative_to(ROOT)) for folder in folders for path in ROOT.glob(f"csrc/{folder}/*.cpp")),
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
        define_macros=[
            ("LINREG_EXT_TORCH_VERSION", f'"{torch.__version__}"'),
            ("LINREG_EXT_CUDA_VERSION", f'"{torch.version.cuda}"' if cuda else '""'),
        ],
        extra_compile_args={"cxx": cxx},
        extra_link_args=["-fopenmp"],
    )


bound_jobs()
setup(ext_modules=[extension()], cmdclass={"build_ext": cpp_extension.BuildExtension})
