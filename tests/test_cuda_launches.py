# SPDX-License-Identifier: BSD-3-Clause
"""What PyTorch requires of every launch, checked in the source, since a machine with one GPU or none cannot show it.

The device of the tensors, the current stream, and checked errors; no allocation, no synchronisation, no addition whose
order the hardware decides."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
GLUE = (CSRC / "torch" / "cuda.cpp").read_text()
KERNELS = {path.name: path.read_text() for path in sorted((CSRC / "cuda").iterdir())}

# The runtime functions that device.cu and device.cuh may call: none that allocates, copies, clears or waits.
RUNTIME = {
    "cudaDeviceGetAttribute", "cudaFuncSetAttribute", "cudaGetDevice", "cudaGetErrorString", "cudaGetLastError",
    "cudaGetSymbolAddress", "cudaGraphRetainUserObject", "cudaLaunchKernelEx", "cudaStreamGetCaptureInfo",
    "cudaThreadExchangeStreamCaptureMode", "cudaUserObjectCreate",
}  # fmt: skip


def without_comments(text):
    return re.sub(r"//.*", "", text)


def entries():
    """The functions of cuda.cpp that call into csrc/cuda, or allocate for it: name -> body."""
    bodies = re.findall(r"^[\w:][^\n;]*?(\w+)\(([^;{]*?)\) \{\n(.*?)^\}", without_comments(GLUE), re.M | re.S)
    calls = re.compile(r"(?<!c10::)\bcuda::|\bworkspace\(|\btake_(?:steps|runs)\(|CUDACachingAllocator::get\(\),")
    return {name: body for name, _, body in bodies if calls.search(body)}


def test_every_entry_is_looked_at():
    table = re.search(r"kBackend = \{(.*?)\}", GLUE, re.S)[1].replace(",", " ").split()
    assert set(entries()) == set(table) - {"set_lr"}  # which only takes an address


@pytest.mark.parametrize("name", entries())
def test_the_device_is_the_tensors_and_the_stream_the_current_one(name):
    body = entries()[name]
    first = body.strip().splitlines()[0]
    assert re.fullmatch(r"const c10::cuda::CUDAGuard guard\((call\.)?device\);", first), first
    header = (CSRC / "linreg.h").read_text()
    on_a_stream = re.findall(r"const char\* (\w+)\([^;]*void\* stream\);", header)
    assert "sgd_step" in on_a_stream
    for called in re.findall(r"(?<!c10::)\bcuda::(\w+)\(", body):
        arguments = re.search(rf"(?<!c10::)\bcuda::{called}\((.*?)\);", body, re.S)[1]
        assert ("c10::cuda::getCurrentCUDAStream()" in arguments) == (called in on_a_stream), called
        assert re.search(rf"check\((call\.)?op,\s+cuda::{called}\(", body), (
            f"what {called} says is wrong is not looked at"
        )


@pytest.mark.parametrize("file", KERNELS)
def test_only_one_file_launches_and_none_allocates_or_waits(file):
    text = without_comments(KERNELS[file])
    assert "<<<" not in text
    called = set(re.findall(r"\b(cu(?:da)?[A-Z]\w+)\(", text))
    assert called <= (RUNTIME if file.startswith("device.cu") else set())
    lost = re.findall(r"^ *(?:\(void\))?(?:launch\w*|run_pass)(?:<.*>)?\(.*$", text, re.M)
    assert not lost, "what the launch says is wrong is not looked at"


def test_a_launch_reports_its_error():
    assert "return message(cudaLaunchKernelEx(" in KERNELS["device.cuh"]


@pytest.mark.parametrize("file", KERNELS)
def test_sums_are_added_in_an_order_that_is_written(file):
    assert set(re.findall(r"\b(?:atomic\w+|red\.\w+|atom\.\w+)\b", without_comments(KERNELS[file]))) <= {"atomicInc"}
