# SPDX-License-Identifier: BSD-3-Clause
"""The interpreter finds the fault of every faulty kernel, for every seed, and none in correct ones."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from simt.build import HERE, ROOT, SAMPLES, build, sanitizer_environment
from simt.samples import FAULTS, Samples

pytestmark = pytest.mark.extended

SEEDS = range(8)
KERNELS = ["blocks", "grid"]


def build_samples(**how):
    return build([SAMPLES], kernels=False, **how)


@pytest.fixture(scope="module")
def plain():
    return Samples(build_samples())


@pytest.fixture(scope="module")
def races():
    return Samples(build_samples(races=True))


@pytest.fixture(params=["plain", "races"])
def samples(request):
    return request.getfixturevalue(request.param)


def run_sanitized(*cases, **environment):
    return subprocess.run(
        [sys.executable, HERE / "samples.py", build_samples(sanitize=True), json.dumps(cases)],
        env=sanitizer_environment() | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_right_kernels_are_right(samples, kernel):
    for seed in SEEDS:
        for threads in (32, 64, 256):
            for n in (0, 1, 257, 4099):
                assert samples.run(kernel, n=n, threads=threads, seed=seed) is None
        assert samples.run(kernel, n=1003, blocks=64, threads=64) is None  # not all at once


REPORTED = [
    ("blocks", "divergent_barrier", r"in sync_block at samples.cu:\d+, but thread \d+ of block \d is in sync_block at"),
    ("blocks", "early_exit", r"thread 33 of block \d has ended|thread 33 of block \d is in"),
    (
        "blocks",
        "divergent_shuffle",
        r"shuffle_xor at samples.cu:\d+.*sync_block at samples.cu|sync_block at .*shuffle_xor at",
    ),
    ("blocks", "exited_lanes", r"has ended.*shuffle_xor at samples.cu|shuffle_xor at samples.cu.*has ended"),
    ("grid", "wrong_count", r"counter 1 is 8 at the end of the grid"),
    ("blocks", "deadlock", r"deadlock: .* in load_cg at samples.cu:\d+, as thread \d+ of block 0"),
    ("blocks", "misaligned", r"thread \d+ of block \d: misaligned copy_async at samples.cu"),
]


@pytest.mark.parametrize(("kernel", "fault", "message"), REPORTED)
def test_faults_are_reported(samples, kernel, fault, message):
    for seed in SEEDS:
        error = samples.run(kernel, fault, seed=seed)
        assert error
        assert re.search(message, error), error
        assert samples.run(kernel) is None  # the abandoned grid leaves nothing behind


WRONG = [
    ("blocks", "missing_barrier"),
    ("blocks", "missing_barrier_2"),
    ("grid", "missing_barrier"),
    ("grid", "missing_publish_barrier"),
    ("grid", "missing_fence"),
]
UNWAITED = "missing_wait"  # finds nan


@pytest.mark.parametrize(("kernel", "fault"), WRONG)
def test_races_make_results_wrong(plain, kernel, fault):
    """In some schedule, which ten launches suffice to find."""
    for seed in SEEDS:
        plain.library.simt_seed(seed)
        assert any(plain.run(kernel, fault) for _ in range(10))


@pytest.mark.parametrize(("kernel", "fault"), WRONG)
def test_races_are_found_in_any_order(races, kernel, fault):
    for seed in SEEDS:
        message = races.run(kernel, fault, seed=seed)
        assert message
        assert "race: " in message or "has ended" in message


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_copy_is_not_there_before_the_wait(samples, kernel):
    for seed in SEEDS:
        assert samples.run(kernel, UNWAITED, seed=seed) == "wrong sum"


def test_every_fault_is_tested():
    assert {"none", "missing_bound", "small_shared", UNWAITED} == {*FAULTS} - {f for _, f, _ in REPORTED} - {
        f for _, f in WRONG
    }


@pytest.mark.parametrize("fault", ["missing_bound", "small_shared"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_sanitizer_sees_what_lies_outside(fault, seed):
    done = run_sanitized({"kernel": "blocks", "fault": fault, "seed": seed})
    assert done.returncode == 99
    assert re.search(r"heap-buffer-overflow.*samples.cu:\d+", done.stderr, re.DOTALL), done.stderr


def test_the_sanitizer_has_nothing_against_fibers():
    right = [{"kernel": k, "blocks": 16, "threads": 256, "seed": s} for k in KERNELS for s in SEEDS]
    wrong = [{"kernel": k, "fault": f, "seed": s} for k, f, _ in REPORTED for s in range(2)]
    done = run_sanitized(*wrong, *right, *wrong, *right, SIMT_SEED="5")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert all(results[: len(wrong)])
    assert not any(results[len(wrong) : len(wrong) + len(right)])


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        ({"shared_bytes": (96 << 10) + 16}, "at most 96 KB of shared memory, got 98320"),
        ({"threads": 48}, "32, 64, ... or 1024 threads, got 48"),
        ({"threads": 2048}, "32, 64, ... or 1024 threads, got 2048"),
    ],
)
def test_launches_that_a_device_would_refuse(plain, launch, message):
    assert message in plain.run(**{"kernel": "blocks"} | launch)


def test_the_order_follows_from_the_seed(plain):
    def first_culprits(seed):
        plain.library.simt_seed(seed)
        return [plain.run("blocks", "misaligned").split(":")[1] for _ in range(4)]

    assert first_culprits(1) == first_culprits(1) != first_culprits(2)
    assert len({*first_culprits(1)}) > 1
    assert plain.run("blocks", "misaligned").endswith("[seed 1, launch 5]")


def test_limits_and_launches_are_counted(plain):
    before = plain.library.simt_launches()
    plain.run("blocks")
    assert plain.library.simt_launches() == before + 1
    assert plain.library.get_multiprocessors() == 4
    plain.library.simt_multiprocessors(20)
    assert plain.library.get_multiprocessors() == 20
    plain.library.simt_multiprocessors(4)


def test_half_precision(plain):
    bits = np.arange(1 << 16, dtype=np.uint16)
    converted = np.array([plain.library.half_to_float(int(b)) for b in bits], dtype=np.float32)
    np.testing.assert_array_equal(converted, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(converted), bits >= 1 << 15)


def test_fibers_without_assembly():
    samples = Samples(build_samples(replace={"tests/simt/fibers.h": ("#if !defined(__x86_64__) ||", "#if 1 ||")}))
    assert all(samples.run(kernel, seed=1) is None for kernel in KERNELS)
    assert "has ended" in samples.run("blocks", "exited_lanes")


def test_replacing_text():
    barrier = "  sync_block();\n  if (!*last) return;"
    sabotaged = Samples(
        build_samples(races=True, replace={"tests/simt/samples.cu": (barrier, "  if (!*last) return;")})
    )
    assert all("race: " in sabotaged.run("grid", seed=seed) for seed in SEEDS)
    with pytest.raises(ValueError, match="got 0 times"):
        build_samples(replace={"tests/simt/samples.cu": [(barrier, ""), (barrier, "")]})
    with pytest.raises(ValueError, match=r"got \d+ times: 'sync_block"):
        build_samples(replace={"tests/simt/samples.cu": ("sync_block();", "")})
    with pytest.raises(ValueError, match=r"there is no csrc/cuda/none\.cuh"):
        build_samples(replace={"csrc/cuda/none.cuh": ("a", "b")})


def test_the_twin_declares_what_the_device_does():
    def declared(path):
        text = path.read_text()
        functions = re.findall(r"^LINREG_DEVICE [\w<>*& ]+?(\w+)\(", text, re.MULTILINE)
        entries = re.findall(r"^(?:inline )?const char\* (limits|counters|launch)\(", text, re.MULTILINE)
        constants = re.findall(r"^constexpr int \w+ = \d+;", text, re.MULTILINE)
        macros = re.findall(r"^#define (LINREG_\w+)", text, re.MULTILINE)
        return {*functions, *entries, *constants, *macros}

    real = declared(ROOT / "csrc/cuda/device.cuh")
    assert {"shuffle_xor", "launch", "LINREG_KERNEL", "constexpr int kCounters = 64;"} <= real
    assert real == declared(HERE / "device.cuh")
