# SPDX-License-Identifier: BSD-3-Clause
"""Compile the CUDA kernels, and other sources, for the interpreter in this folder.

The sources are copied to `build/simt`, with the twin of device.cuh in place of the real one. Objects are cached by
their text and flags.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "simt"
JOBS = 2
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
# Memory accesses become calls, which races.cpp implements in place of ThreadSanitizer.
NOTE_ACCESSES = ["-fsanitize=thread"]
MACHINERY = ["fibers.cpp", "grid.cpp", "barriers.cpp", "memory.cpp", "settings.cpp", "races.cpp"]
SAMPLES = HERE / "samples.cu"

Replacements = Mapping[str, tuple[str, str] | Sequence[tuple[str, str]]]


def build(
    sources: Iterable[Path | str] = (),
    *,
    kernels: bool = True,
    sanitize: bool = False,
    races: bool = False,
    replace: Replacements | None = None,
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Build a shared library of the kernels in csrc/cuda, the interpreter and `sources`, and return its path.

    Args:
        sources: more files to compile; `replace` applies to those in csrc and this folder.
        kernels: whether to compile csrc/cuda/*.cu.
        sanitize: whether `*.cu` and the interpreter have AddressSanitizer and UBSan; loading the library then needs
            `sanitizer_environment()`.
        races: whether `*.cu` have the race detector.
        replace: text to replace in files of csrc and tests/simt: `{"csrc/cuda/finish.cuh": ("sync_block();", "")}`, or
            a list of such pairs.
        flags: for everything but the interpreter itself.
        link_flags: for the library.

    Raises:
        ValueError: a text to replace does not occur exactly once.
        RuntimeError: the compiler fails.
    """
    if sanitize and races:
        raise ValueError("build: sanitize and races exclude each other")
    texts = staged_texts(replace or {})
    machinery = [HERE / name for name in MACHINERY]
    paths = machinery + [Path(source).resolve() for source in sources]
    if kernels:
        # settings.cpp replaces device.cu, which calls the CUDA runtime.
        paths += [path for path in sorted(ROOT.glob("csrc/cuda/*.cu")) if path.name != "device.cu"]
    stage = CACHE / "stages" / digest(f"{name}\0{text}" for name, text in texts.items())
    if not stage.exists():
        write_stage(stage, texts)

    def compile_one(path: Path) -> Path:
        staged = stage / staged_name(path)
        command = [COMPILER, *FLAGS, f"-I{stage}", f"-I{stage}/csrc/cuda"]
        if sanitize and (path.suffix == ".cu" or path in machinery):
            command += SANITIZE
        if path.suffix == ".cu":
            command += ["-x", "c++", *(NOTE_ACCESSES if races else [])]
        if path not in machinery:
            command += flags
        source = staged if staged.exists() else path
        how = [part.replace(str(stage), "") for part in command]
        key = digest([compiler_version(), *how, *texts_of(source, stage)])
        target = CACHE / "objects" / f"{path.stem}-{key}.o"
        run_once(target, [*command, f"-ffile-prefix-map={stage}/=", "-c", str(source)])
        return target

    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(compile_one, paths))
    # Calls within the library bypass the dynamic linker: a shuffle makes many.
    link = [
        COMPILER,
        "-shared",
        "-Wl,-Bsymbolic-functions",
        *(SANITIZE if sanitize else []),
        *map(str, objects),
        *link_flags,
    ]
    target = CACHE / f"libsimt-{digest(link)}.so"
    run_once(target, link)
    return target


def sanitizer_environment() -> dict[str, str]:
    """The environment for loading a library with AddressSanitizer into a process without it."""

    def find(library: str) -> str:
        command = [COMPILER, f"-print-file-name={library}"]
        return str(Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).resolve())

    # AddressSanitizer looks up the C++ runtime's throw at start-up, and aborts at the first throw if it was missing;
    # Python does not link that runtime.
    return {
        **os.environ,
        "LD_PRELOAD": f"{find('libasan.so')} {find('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99",
    }


def staged_name(path: Path) -> str:
    """The path of a file in the stage; "none" if it is in neither folder."""
    for folder, name in ((ROOT / "csrc", "csrc"), (HERE, "simt")):
        if path.is_relative_to(folder):
            return f"{name}/{path.relative_to(folder)}"
    return "none"


def staged_texts(replace: Replacements) -> dict[str, str]:
    files = [path for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    files += [path for path in HERE.iterdir() if path.suffix in (".h", ".cpp", ".cu")]
    texts = {staged_name(path): path.read_text() for path in sorted(files)}
    texts["csrc/cuda/device.cuh"] = (HERE / "device.cuh").read_text()
    for name, pairs in replace.items():
        staged = staged_name(ROOT / name)
        if staged not in texts:
            raise ValueError(f"build: there is no {name}")
        for old, new in [pairs] if isinstance(pairs[0], str) else pairs:
            count = texts[staged].count(old)
            if count != 1:
                raise ValueError(f"build: {name} must have the text to be replaced once, got {count} times: {old!r}")
            texts[staged] = texts[staged].replace(old, new)
    return texts


def write_stage(stage: Path, texts: Mapping[str, str]) -> None:
    """Write all files atomically, since another process may do the same."""
    own = stage.with_name(f"{stage.name}.{os.getpid()}")
    for name, text in texts.items():
        path = own / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    try:
        own.rename(stage)
    except OSError:  # another process was first
        shutil.rmtree(own)


def texts_of(source: Path, stage: Path) -> list[str]:
    """The texts of a source and of every file of ours that it includes."""
    found, todo = {}, [source]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found[path] = path.read_text()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', found[path], re.MULTILINE):
            places = [folder / name for folder in (path.parent, stage, stage / "csrc" / "cuda")]
            todo += [place.resolve() for place in places if place.exists()][:1]
    return [found[path] for path in sorted(found, key=str)]


def run_once(target: Path, command: Sequence[str]) -> None:
    """Run a command that makes `target`, unless it exists or another process is making it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        own = target.with_name(f"{target.name}.{os.getpid()}")
        done = subprocess.run([*command, "-o", str(own)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        own.replace(target)


def compiler_version() -> str:
    global _version
    if not _version:
        _version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
    return _version


_version = ""


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
