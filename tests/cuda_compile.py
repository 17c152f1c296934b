# SPDX-License-Identifier: BSD-3-Clause
"""Compile the CUDA kernels for every architecture, and check the resources and instructions of each.

Needs nvcc, and nvdisasm from the toolkit or the wheel nvidia-cuda-nvdisasm; no GPU. With the headers of torch,
csrc/torch/cuda.cpp is compiled for its syntax. Reports registers, and fails on

- a compile error, a spill, or local memory,
- a fence, or an emptied first-level cache, inside a loop,
- a pass without asynchronous copies of 16 bytes from sm_80 on,
- a pass over float32 or 16-bit rows with a double operation or a conversion in a loop over rows, or with more of them
  in its loop over tiles than a thread needs to move its sums to double every 64 rows.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
PASS = re.compile(r"tiles_kernel<(\w+), (\w+), (\w+)>")
THREAD_SUMS = 16 + 3  # in float: the gradient sums that a thread owns, and the loss, Σ v and Σ v ℓ'
CMAKE_MACROS = "c10/cuda/impl/cuda_cmake_macros.h"  # a torch without CUDA lacks this header
RESOURCES = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\d+)\w?'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:.*?, (?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass
class Kernel:
    """The resources of a kernel on an architecture, as reported by ptxas."""

    file: str
    name: str  # mangled
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


@dataclass
class Compilation:
    """The result of compiling one file for one architecture."""

    file: Path
    arch: str
    kernels: list[Kernel]
    sass: str
    error: str


def find_nvcc() -> str | None:
    """The nvcc of CUDA_HOME, else the one on the PATH."""
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")


def flags() -> list[str]:
    """The flags that setup.py passes to nvcc."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "nvcc":
                    return ast.literal_eval(value)
    raise SystemExit("cuda-compile: setup.py names no flags for nvcc")


def find_nvdisasm() -> str | None:
    """The nvdisasm of CUDA_HOME, of the PATH, or of an installed wheel."""
    home = os.environ.get("CUDA_HOME")
    wheels = [path.parent for folder in sys.path for path in Path(folder).glob("nvidia/cu*/bin/nvdisasm")]
    places = [*([f"{home}/bin"] if home else []), os.environ.get("PATH", ""), *map(str, wheels)]
    return shutil.which("nvdisasm", path=os.pathsep.join(places))


def compile_one(nvcc: str, nvdisasm: str | None, file: Path, arch: str, folder: Path) -> Compilation:
    """Compile a file, and keep the report of ptxas and the SASS."""
    cubin = folder / f"{file.stem}_{arch}.cubin"
    command = [nvcc, *flags(), "-Xptxas", "-v", f"-arch=sm_{arch}", "-cubin", "-o", str(cubin), str(file)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    said = run.stdout + run.stderr
    kernels = [
        Kernel(
            file.name, found["name"], arch, int(found["registers"]), int(found["shared"] or 0), int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
        )
        for found in RESOURCES.finditer(said)
    ]  # fmt: skip
    sass = ""
    if run.returncode == 0 and nvdisasm:
        sass = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
        cubin.unlink()
    return Compilation(file, arch, kernels, sass, said if run.returncode else "")


def syntax_of_glue(nvcc: str, folder: Path) -> str:
    """The errors of g++ in csrc/torch/cuda.cpp with the installed torch's headers; empty without errors or torch."""
    found = next((path for entry in sys.path for path in Path(entry).glob("torch/include")), None)
    if found is None:
        return ""
    stub = folder / CMAKE_MACROS
    if not (found / CMAKE_MACROS).exists():
        stub.parent.mkdir(parents=True)
        stub.write_text("#pragma once\n")
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    toolkit = Path(re.search(r"^#\$ TOP=(.*)$", said, re.M)[1])
    includes = [folder, found, found / "torch/csrc/api/include", sysconfig.get_path("include"), toolkit / "include"]
    command = ["g++", "-std=c++20", "-fsyntax-only", *(f"-isystem{path}" for path in includes)]
    return subprocess.run([*command, ROOT / "csrc/torch/cuda.cpp"], capture_output=True, text=True).stderr


def demangle(names: list[str]) -> dict[str, str]:
    """Demangled names without parameters; unchanged if there is no c++filt."""
    if not shutil.which("c++filt") or not names:
        return {name: name for name in names}
    run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    words = enumerators()
    return {name: _shortened(line, words) for name, line in zip(names, run.stdout.splitlines(), strict=True)}


def enumerators() -> dict[str, list[str]]:
    """The enumerators of the sources' enumerations, by number."""
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


@dataclass
class Sass:
    """A kernel's instructions, and its loops as (first, last): backward branches over neither an exit nor a return."""

    instructions: list[str]
    loops: list[tuple[int, int]]

    def count(self, pattern: str, where: tuple[int, int] | None = None) -> int:
        first, last = where or (0, len(self.instructions))
        return sum(1 for name in self.instructions[first : last + 1] if re.match(pattern, name))


def kernels_of(sass: str) -> Iterator[tuple[str, Sass]]:
    """The kernels of a disassembly, by mangled name."""
    for section in re.finditer(r"^\.text\.(\S+):\n(.*?)(?=^\.text\.|\Z)", sass, re.DOTALL | re.MULTILINE):
        names, branches, labels = [], [], {}
        for line in section[2].splitlines():
            if found := re.match(r"(\.L_x_\d+):", line):
                labels[found[1]] = len(names)
            elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
                if found[1].startswith("BRA") and (label := re.search(r"\.L_x_\d+", found[2])):
                    branches.append((label[0], len(names)))
                names.append(found[1])
        body = Sass(names, [])
        loops = {(labels[label], at) for label, at in branches if labels.get(label, at + 1) <= at}
        body.loops = sorted(loop for loop in loops if body.count("EXIT|RET", loop) == 0)
        yield section[1], body


def faults(name: str, arch: str, sass: Sass) -> Iterator[str]:
    """The rules of this module that a kernel breaks."""
    if sass.count("LDL|STL"):
        yield "uses local memory"
    if any(sass.count("MEMBAR|ERRBAR|CCTL", loop) for loop in sass.loops):
        yield "has a fence in a loop"
    if not (shape := PASS.match(name)):
        return
    tiles = next((loop for loop in sass.loops if sass.count("BAR", loop) >= 3 and sass.count("[DF]FMA", loop)), None)
    if tiles is None:
        yield "has no loop over tiles"
        return
    if int(arch) >= 80 and not sass.count(r"LDGSTS.*\.128", tiles):
        yield "has no asynchronous copies of 16 bytes"
    if shape[1] == "float64":
        return
    for pattern, most in ((r"DADD", THREAD_SUMS), (r"F2F\.F64", THREAD_SUMS), (r"D(FMA|MUL|SETP)|F2F\.F\d+\.F64", 8)):
        if (count := sass.count(pattern, tiles)) > most:
            yield f"has {count} {pattern} in its loop over tiles, more than {most}"
    inner = [loop for loop in sass.loops if loop != tiles and tiles[0] < loop[0] and loop[1] < tiles[1]]
    if any(sass.count(r"D(ADD|FMA|MUL|SETP)|F2F", loop) for loop in inner):
        yield "computes in double in a loop over rows"


def worst(kernels: list[Kernel]) -> Kernel:
    """The largest of each figure over the architectures; `arch` is the one with the most registers."""
    most = max(kernels, key=lambda kernel: kernel.registers)
    figures = {key: max(getattr(kernel, key) for kernel in kernels) for key in ("shared", "stack", "spills")}
    return Kernel(most.file, most.name, most.arch, most.registers, **figures)


def table(kernels: list[Kernel], names: dict[str, str]) -> str:
    """A table with a line for each kernel."""
    lines = [("registers", "on sm", "shared", "stack", "spills", "kernel")]
    lines += [
        (str(k.registers), k.arch, str(k.shared), str(k.stack), str(k.spills), f"{names[k.name]}  [{k.file}]")
        for k in kernels
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([*map(str.rjust, line[:5], widths), line[5]]) for line in lines)


def main() -> int:
    """Compile everything. Returns 1 if anything is wrong, 2 without nvcc."""
    parser = argparse.ArgumentParser(prog="cuda_compile.py", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="a line for each kernel and architecture")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print(f"cuda-compile: there is no nvcc: CUDA_HOME is {os.environ.get('CUDA_HOME')!r}, and the PATH has none")
        return 2
    nvdisasm = find_nvdisasm()
    files = [file.resolve() for file in options.file] or sorted(ROOT.glob("csrc/cuda/*.cu"))
    jobs = [(file, arch) for file in files for arch in options.arch.split(",")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        glue = "" if options.file else syntax_of_glue(nvcc, Path(folder))
        done = list(pool.map(lambda job: compile_one(nvcc, nvdisasm, *job, Path(folder)), jobs))

    wrong = [f"{c.file.name} does not compile for sm_{c.arch}:\n{c.error}" for c in done if c.error]
    wrong += [f"csrc/torch/cuda.cpp does not compile:\n{glue}"] if glue else []
    if nvdisasm is None:
        wrong.append("the SASS was not checked: there is no nvdisasm; `pip install nvidia-cuda-nvdisasm` brings one")
    kernels = [kernel for c in done for kernel in c.kernels]
    names = demangle(sorted({kernel.name for kernel in kernels}))
    by_name: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel)
        if kernel.spills or kernel.stack:
            wrong.append(f"{names[kernel.name]} spills {kernel.spills} bytes on sm_{kernel.arch}")
    for c in done:
        for name, sass in kernels_of(c.sass):
            wrong += [f"{names[name]} {fault} on sm_{c.arch}" for fault in faults(names[name], c.arch, sass)]
    print(table(kernels if options.verbose else [worst(found) for found in by_name.values()], names))
    print(
        f"{len(files)} files, {len(by_name)} kernels, on {len(set(options.arch.split(',')))} architectures: "
        f"{'FAILED' if wrong else 'as the table allows'}"
    )
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
