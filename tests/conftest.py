# SPDX-License-Identifier: BSD-3-Clause
import itertools
import math
import os
import signal
from collections.abc import Iterable

import pytest
import torch

SIMT = os.environ.get("LINREG_EXT_SIMT")  # a module from tests/simt, to test in place of the CPU kernels
if SIMT:
    from simt.module import install

    install(SIMT)

import linreg_ext  # noqa: E402

if SIMT:
    linreg_ext.least_squares._LANE_FEATURES = -1  # only the CPU kernels have a descent

try:
    from hypothesis import settings
except ImportError:  # the tests that need it are skipped
    pass
else:  # the same examples in every run, or new ones with `--hypothesis-profile long`
    settings.register_profile("short", deadline=None, max_examples=25, stateful_step_count=30, derandomize=True)
    settings.register_profile(  # derandomize: where the variable CI is set, Hypothesis would ignore the seed
        "long", deadline=None, max_examples=150, stateful_step_count=50, print_blob=True,
        derandomize=False, database=None,
    )  # fmt: skip
    settings.load_profile("short")

# A background job of a script ignores Ctrl-C, and the tests that send it would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def cases(core: Iterable = (), extended: Iterable = ()) -> list:
    """The values of a parameter, of which `make test` leaves out the extended ones."""
    return [*core, *(pytest.param(value, marks=pytest.mark.extended) for value in extended)]


def crossed(every: int, /, **values: Iterable) -> pytest.MarkDecorator:
    """Parametrize by every combination of values. `make test` takes those whose indices add up to a multiple of `every`:
    all values are among them, and all pairs of values if there are more than two lists."""
    named = [v.items() if isinstance(v, dict) else [(str(value), value) for value in v] for v in values.values()]
    sizes, core, parameters = [len(v) for v in named], [], []
    for chosen in itertools.product(*map(enumerate, named)):
        indices, pairs = zip(*chosen, strict=True)
        names, arguments = zip(*pairs, strict=True)
        is_core = sum(indices) % every == 0
        core += [indices] * is_core
        parameters.append(pytest.param(*arguments, id="-".join(names), marks=() if is_core else pytest.mark.extended))
    for lists in itertools.combinations(range(len(sizes)), min(2, len(sizes) - 1)):
        kept = {tuple(indices[i] for i in lists) for indices in core}
        assert len(kept) == math.prod(sizes[i] for i in lists), f"every {every} is too few for {tuple(values)}"
    return pytest.mark.parametrize(tuple(values), parameters)


HAS_CUDA = torch.cuda.is_available() and linreg_ext.build_info()["cuda"] is not None


def pytest_collection_modifyitems(items):
    """Mark the shapes that a CPU computes by PyTorch's matrix products."""
    for item in items:
        shape = item.callspec.params.get("shape") if hasattr(item, "callspec") else None
        if isinstance(shape, tuple) and len(shape) == 3 and shape[2] >= 16 and math.prod(shape) >= 1 << 15:
            item.add_marker(pytest.mark.products)


@pytest.fixture(params=["cpu", "cuda"] if HAS_CUDA else ["cpu"])
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _fresh_state():
    """Every test starts from the same seed and restores the number of threads."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
