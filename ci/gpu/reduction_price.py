#!/usr/bin/env python3
"""What it costs two GPUs to gather partial sums and add them by the tree, against an all-reduce that adds as it likes.

Prints one JSON object: microseconds for a decode step's [1, 4096] and a prefill's [2048, 4096] f32 partial sums.
Needs torch with NCCL and two GPUs.
"""

import json
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def microseconds(work, times):
    """Mean time of `work` on this rank's stream, after a few that warm up."""
    for _ in range(10):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    dist.barrier()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / times


def rank_main(rank, world, port):
    """One rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NCCL_NVLS_ENABLE="0")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=world)
    found = {}
    for rows, times in ((1, 500), (2048, 30)):
        mine = torch.randn(rows * 4096, device="cuda")
        both = torch.empty(world * mine.numel(), device="cuda")

        def tree():
            dist.all_gather_into_tensor(both, mine)
            torch.add(both[: mine.numel()], both[mine.numel() :], out=mine)

        found[f"rows {rows}"] = {
            "gather_and_add_us": microseconds(tree, times),
            "all_reduce_us": microseconds(lambda: dist.all_reduce(mine), times),
        }
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(rank_main, args=(2, 29517), nprocs=2)
