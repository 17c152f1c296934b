# SPDX-License-Identifier: BSD-3-Clause
"""linreg_ext's compiled part with the CUDA kernels, run by the interpreter, in place of the CPU kernels."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

import torch
from torch.utils import cpp_extension

from .build import HERE, ROOT, build

DEVICES = ("cpu.cpp", "cuda.cpp")  # replaced by backend.cpp


def build_module(**options: object) -> Path:
    """Compile and link the module; `options` are those of `build`."""
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    libraries = cpp_extension.library_paths()
    return build(
        [*(path for path in sorted(ROOT.glob("csrc/torch/*.cpp")) if path.name not in DEVICES), HERE / "backend.cpp"],
        flags=[
            *(f"-isystem{path}" for path in includes), "-DTORCH_EXTENSION_NAME=_C", "-fvisibility=hidden",
            f'-DLINREG_EXT_TORCH_VERSION="{torch.__version__}"', '-DLINREG_EXT_CUDA_VERSION=""',
        ],
        link_flags=[*(f"-L{path}" for path in libraries), "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"],
        **options,
    )  # fmt: skip


def install(path: str) -> None:
    """Make `import linreg_ext` use the module at `path`."""
    spec = importlib.util.spec_from_file_location("linreg_ext._C", path)
    sys.modules["linreg_ext._C"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
