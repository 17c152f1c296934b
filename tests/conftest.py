# SPDX-License-Identifier: BSD-3-Clause
import math
import os
import signal

import pytest
import torch

SIMT = os.environ.get("LINREG_EXT_SIMT")  # a module of tests/simt, to be tested in place of the CPU kernels
if SIMT:
    from simt.module import install

    install(SIMT)

import linreg_ext  # noqa: E402

try:
    from hypothesis import settings
except ImportError:  # the tests that need it are skipped
    pass
else:  # the same examples at every run, or with `--hypothesis-profile long`, as `make test-long` has it, new ones
    settings.register_profile("short", deadline=None, max_examples=50, stateful_step_count=30, derandomize=True)
    settings.register_profile("long", deadline=None, max_examples=1000, stateful_step_count=50, print_blob=True)
    settings.load_profile("short")

# A job that a script has put into the background ignores Ctrl-C, and what the tests press it in would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HAS_CUDA = torch.cuda.is_available() and linreg_ext.build_info()["cuda"] is not None


def pytest_collection_modifyitems(items):
    """The cases of a shape that a CPU computes by PyTorch's matrix products have the mark of those."""
    for item in items:
        shape = item.callspec.params.get("shape") if hasattr(item, "callspec") else None
        if isinstance(shape, tuple) and len(shape) == 3 and shape[2] >= 16 and math.prod(shape) >= 1 << 15:
            item.add_marker(pytest.mark.products)


@pytest.fixture(params=["cpu", "cuda"] if HAS_CUDA else ["cpu"])
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _fresh_state():
    """Every test starts from one seed and leaves the number of threads as it found it."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
