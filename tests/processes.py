# SPDX-License-Identifier: BSD-3-Clause
"""Runs checks in several processes that form a gloo group, with one thread each."""

import datetime
import traceback
import warnings

import torch
import torch.distributed as dist


def join(rank, size, folder, seconds=60):
    """Make this process a member of the group, which waits for another one for at most some seconds."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timeout)


def _work(rank, size, checks, folder):
    warnings.simplefilter("ignore")
    join(rank, size, folder)
    failure = ""
    for check in checks:
        torch.manual_seed(0)
        try:
            check()
        except BaseException:
            failure = f"rank {rank}, {check.__name__}: {traceback.format_exc()}"
            break  # the processes may be out of step
    torch.save(failure, f"{folder}/{rank}.pt")
    if not failure:
        dist.barrier()
    dist.destroy_process_group()


def run_in_processes(size, checks, folder):
    """Run all checks in one set of processes, since starting them takes longer than the checks."""
    torch.multiprocessing.start_processes(_work, (size, checks, str(folder)), nprocs=size, start_method="spawn")
    failures = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    assert not any(failures), "\n".join(failures)
