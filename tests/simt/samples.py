# SPDX-License-Identifier: BSD-3-Clause
"""Launch the kernels of samples.cu. As a program, for a process with AddressSanitizer: `samples.py LIBRARY JSON` takes
a list of keyword arguments for `Samples.run` and prints the list of results."""

import ctypes
import json
import re
import sys
from pathlib import Path

NAMES = re.search(r"enum class Fault[^{]*\{(.*?)\};", Path(__file__).with_name("samples.cu").read_text(), re.DOTALL)[1]
FAULTS = re.findall(r"^ *(\w+),", NAMES, re.MULTILINE)


class Samples:
    def __init__(self, library: Path | str):
        self.library = ctypes.CDLL(str(library))
        self.library.run_sum.restype = ctypes.c_char_p
        self.library.run_sum.argtypes = [
            *[ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p],
            *[ctypes.c_int] * 4,
        ]
        self.library.simt_seed.argtypes = [ctypes.c_uint64]
        self.library.simt_launches.restype = ctypes.c_uint64
        self.library.half_to_float.restype = ctypes.c_float

    def run(
        self,
        kernel,
        fault="none",
        *,
        n=1001,
        rounds=3,
        blocks=8,
        threads=128,
        shared_bytes=None,
        seed=None,
    ):
        """The launch's error, "wrong sum", or None."""
        if seed is not None:
            self.library.simt_seed(seed)
        if shared_bytes is None:
            shared_bytes = 16 * threads + 8 * (threads // 32) + 8 * (kernel != "blocks")
        x = (ctypes.c_float * n)(*range(n))
        nan = float("nan")
        partial = (ctypes.c_double * (blocks * threads // 32))(*[nan] * (blocks * threads // 32))
        out = (ctypes.c_double * blocks)(*[nan] * blocks)
        error = self.library.run_sum(
            *[kernel.encode(), x, n, rounds, partial, out, blocks, threads, shared_bytes, FAULTS.index(fault)]
        )
        if error:
            return error.decode()
        total = n * (n - 1) / 2
        sums, expected = (out[:1], total) if kernel == "grid" else (out, total * rounds * (rounds + 1) / 2)
        return None if all(s == expected for s in sums) else "wrong sum"


if __name__ == "__main__":
    samples = Samples(sys.argv[1])
    print(json.dumps([samples.run(**arguments) for arguments in json.loads(sys.argv[2])]))
