# SPDX-License-Identifier: BSD-3-Clause
"""Builds the torch-free CPU code and its parity test with sanitizers, and runs it under every instruction set.

AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer. Needs g++ alone.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SANITIZERS = {
    # Vectors are loaded by memcpy, and checking each for null takes the compiler minutes.
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=null,alignment"],
    "thread": ["-fsanitize=thread"],
}
INSTRUCTION_SETS = ("default", "avx2", "avx512")  # a processor takes the best of them that it has
# GCC's -O1 leaves what a sanitizer looks at; vectors that functions return are inlined, so their ABI does not matter.
FLAGS = ["-std=c++20", "-O1", "-g1", "-fopenmp", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-Wno-psabi"]
HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text().split()


def compile_one(source: Path, sanitizer: str, folder: Path) -> tuple[Path, str]:
    """The object file of a source, and what the compiler says is wrong."""
    target = folder / f"{source.stem}_{sanitizer}.o"
    runs = HAS_AVX512 or not source.stem.endswith("_avx512")  # what this processor cannot run is linked, no more
    command = [os.environ.get("CXX", "g++"), *FLAGS, *(SANITIZERS[sanitizer] if runs else ()), f"-I{ROOT / 'csrc'}"]
    done = subprocess.run([*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    return target, done.stderr if done.returncode else ""


def run_one(program: Path, instruction_set: str) -> subprocess.CompletedProcess[str]:
    """The test under an instruction set, and what it and the sanitizer say."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instruction_set}
    return subprocess.run([str(program)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main() -> int:
    """Build and run; 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="sanitizers.py", description=__doc__.splitlines()[0])
    parser.add_argument("sanitizer", nargs="*", help=f"default: {' '.join(SANITIZERS)}")
    wanted = parser.parse_args().sanitizer or list(SANITIZERS)
    if unknown := set(wanted) - set(SANITIZERS):
        parser.error(f"sanitizer must be one of {', '.join(SANITIZERS)}, got {', '.join(unknown)}")
    cpu_sources = runpy.run_path(str(ROOT / "csrc" / "instruction_sets.py"))["cpu_sources"]
    wrong = False
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        sources = [*cpu_sources(folder), *sorted(ROOT.glob("tests/sanitize/*.cpp"))]
        jobs = [(source, sanitizer) for sanitizer in wanted for source in sources]
        objects: dict[str, list[Path]] = {sanitizer: [] for sanitizer in wanted}
        for (source, sanitizer), (target, error) in zip(
            jobs, pool.map(lambda job: compile_one(*job, folder), jobs), strict=True
        ):
            objects[sanitizer].append(target)
            if error:
                print(f"{source.name} does not compile:\n{error}")
                return 1
        for sanitizer in wanted:
            # The runtime of OpenMP is tests/sanitize/openmp.cpp, so -fopenmp is not for the linker.
            link = [os.environ.get("CXX", "g++"), *SANITIZERS[sanitizer], "-pthread", "-o", str(folder / sanitizer)]
            subprocess.run([*link, *map(str, objects[sanitizer])], check=True)
        runs = [(sanitizer, instruction_set) for sanitizer in wanted for instruction_set in INSTRUCTION_SETS]
        for (sanitizer, instruction_set), done in zip(
            runs, pool.map(lambda run: run_one(folder / run[0], run[1]), runs), strict=True
        ):
            print(f"{sanitizer}, {instruction_set}: {done.stdout}", end="")
            wrong |= done.returncode != 0
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
