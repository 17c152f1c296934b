# SPDX-License-Identifier: BSD-3-Clause
"""Compiles the CUDA kernels for every architecture and reports their registers, shared memory, stack and spills.

Needs nvcc and nothing else: no GPU, no torch. Fails on a compile error, on any spill, and when a kernel whose name says
that it loads 16-byte words has no such load in its PTX.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
WORD_LOADS = re.compile(r"RowsShape<.*?, true,")  # what a kernel is called that reads rows in 16-byte words
WORD_LOAD = "ld.global.nc.L1::no_allocate.v4.u32"
RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\d+)\w?'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:.*?, (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass
class Kernel:
    """What ptxas says of a kernel on an architecture."""

    file: str
    name: str  # mangled
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


@dataclass
class Compilation:
    """One file for one architecture."""

    file: Path
    arch: str
    kernels: list[Kernel]
    ptx: str
    error: str


def find_nvcc() -> str | None:
    """The compiler of CUDA_HOME, else that of the PATH."""
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")


def flags() -> list[str]:
    """What setup.py gives nvcc."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "nvcc":
                    return ast.literal_eval(value)
    raise SystemExit("cuda-compile: setup.py names no flags for nvcc")


def compile_one(nvcc: str, file: Path, arch: str, folder: Path) -> Compilation:
    """Compile and keep what ptxas says, and the PTX."""
    kept = folder / f"{file.stem}_{arch}"
    kept.mkdir()
    command = [nvcc, *flags(), "-Xptxas", "-v", f"-arch=sm_{arch}", "--keep", "--keep-dir", str(kept), "-c", str(file)]
    run = subprocess.run([*command, "-o", str(kept / "out.o")], capture_output=True, text=True, cwd=folder)
    said = run.stdout + run.stderr
    kernels = [
        Kernel(
            file.name, found["name"], arch, int(found["registers"]), int(found["shared"] or 0), int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
        )
        for found in RESOURCES.finditer(said)
    ]  # fmt: skip
    ptx = "".join(path.read_text() for path in kept.glob("*.ptx"))
    shutil.rmtree(kept)
    return Compilation(file, arch, kernels, ptx, said if run.returncode else "")


def demangle(names: list[str]) -> dict[str, str]:
    """Names as people write them, without parameters; as they are where there is no c++filt."""
    if not shutil.which("c++filt") or not names:
        return {name: name for name in names}
    run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    words = enumerators()
    return {name: _shortened(line, words) for name, line in zip(names, run.stdout.splitlines(), strict=True)}


def enumerators() -> dict[str, list[str]]:
    """What the numbers of the sources' enumerations are called."""
    found = {}
    for path in sorted(ROOT.glob("csrc/**/*.*h")):
        source = re.sub(r"//.*", "", path.read_text())
        for enum in re.finditer(r"enum class (\w+)[^{;]*\{([^}]*)\}", source):
            found[enum[1]] = re.findall(r"\w+", enum[2])
    return found


def _shortened(name: str, words: dict[str, list[str]]) -> str:
    name = re.sub(r"\(anonymous namespace\)::|linreg::(cuda::)?|^void ", "", name)
    name = re.sub(r"\((\w+)\)(\d+)", lambda m: words[m[1]][int(m[2])] if m[1] in words else m[0], name)
    depth = 0
    for i, character in enumerate(name):  # the parameters start at the first parenthesis outside of angle brackets
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and i > 0:
            return name[:i]
    return name


def bodies(ptx: str) -> Iterator[tuple[str, str]]:
    """Every kernel of a PTX file, by its mangled name."""
    for found in re.finditer(r"\.entry (\w+)\(.*?^\}", ptx, re.DOTALL | re.MULTILINE):
        yield found[1], found[0]


def worst(kernels: list[Kernel]) -> Kernel:
    """The largest of each figure over architectures; `arch` names where the registers are."""
    most = max(kernels, key=lambda kernel: kernel.registers)
    figures = {key: max(getattr(kernel, key) for kernel in kernels) for key in ("shared", "stack", "spills")}
    return Kernel(most.file, most.name, most.arch, most.registers, **figures)


def table(kernels: list[Kernel], names: dict[str, str]) -> str:
    """A line for each kernel."""
    lines = [("registers", "on sm", "shared", "stack", "spills", "kernel")]
    lines += [
        (str(k.registers), k.arch, str(k.shared), str(k.stack), str(k.spills), f"{names[k.name]}  [{k.file}]")
        for k in kernels
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([*map(str.rjust, line[:5], widths), line[5]]) for line in lines)


def main() -> int:
    """Compile everything; 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="cuda_compile.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="a line for each kernel and architecture")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print(f"cuda-compile: there is no nvcc: CUDA_HOME is {os.environ.get('CUDA_HOME')!r}, and the PATH has none")
        return 2
    files = [file.resolve() for file in options.file] or sorted(ROOT.glob("csrc/cuda/*.cu"))
    jobs = [(file, arch) for file in files for arch in options.arch.split(",")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda job: compile_one(nvcc, *job, Path(folder)), jobs))

    wrong = [f"{c.file.name} does not compile for sm_{c.arch}:\n{c.error}" for c in done if c.error]
    kernels = [kernel for c in done for kernel in c.kernels]
    names = demangle(sorted({kernel.name for kernel in kernels}))
    by_name: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel)
        if kernel.spills:
            wrong.append(f"{names[kernel.name]} spills {kernel.spills} bytes on sm_{kernel.arch}")
    print(table(kernels if options.verbose else [worst(found) for found in by_name.values()], names))

    with_words = {name for name in by_name if WORD_LOADS.search(names[name])}
    for compilation in done:
        for name, body in bodies(compilation.ptx):
            if name in with_words and WORD_LOAD not in body:
                wrong.append(f"{names[name]} has no 16-byte loads on sm_{compilation.arch}")
    if any("RowsShape" in names[name] for name in by_name) and not with_words:
        wrong.append(f"no kernel is called {WORD_LOADS.pattern}, so its loads cannot be checked")
    print(
        f"{len(files)} files, {len(by_name)} kernels, {len(with_words)} of them with 16-byte loads, on "
        f"{len(set(options.arch.split(',')))} architectures: {'FAILED' if wrong else 'no spills'}"
    )
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
