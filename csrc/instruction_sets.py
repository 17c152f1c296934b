# SPDX-License-Identifier: BSD-3-Clause
"""Which CPU kernels are compiled for which instruction sets. Whoever compiles csrc/cpu gets its sources here."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "cpu"
LANES = {"avx512": 8, "avx2": 4, "portable": 2}  # doubles in a register
KERNELS = {
    "rows": tuple(LANES),
    "product_rows": tuple(LANES),
    "moment_rows": tuple(LANES),
    "small_steps": ("avx2",),
    "small_runs": ("avx512", "avx2"),
}


def cpu_sources(folder: Path) -> list[Path]:
    """The sources to compile. Those of the kernels, one per instruction set, are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for kernel, sets in KERNELS.items():
        for name in sets:
            lines = [f"#define LINREG_LANES {LANES[name]}", f'#include "{FOLDER}/target.h"']
            text = "\n".join([*lines, f'#include "{FOLDER}/{kernel}.cpp"', ""])
            path = folder / f"{kernel}_{name}.cpp"
            if not path.exists() or path.read_text() != text:  # what has not changed is not compiled again
                path.write_text(text)
            sources.append(path)
    return sources + [path for path in sorted(FOLDER.glob("*.cpp")) if path.stem not in KERNELS]
