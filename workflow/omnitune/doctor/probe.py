"""Runs on each node of an allocation (`omnitune doctor`): prints what it sees and whom it reaches, as JSON."""

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from omnitune.distributed.processes import interface_towards

MEGABYTES, ROUNDS = 64, 5
WAIT = timedelta(seconds=60)


def reach_others(rank: int, size: int, address: str, port: int) -> float:
    """Sums numbers over all nodes, on a GPU where there is one; gives GB per second that a node has had summed."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if not cuda and (interface := interface_towards(address)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    place = f"tcp://{address}:{port}"
    dist.init_process_group("nccl" if cuda else "gloo", init_method=place, rank=rank, world_size=size, timeout=WAIT)
    numbers = torch.ones(MEGABYTES * 250_000, device=device)
    dist.all_reduce(numbers)
    if numbers[-1].item() != size:
        raise RuntimeError(f"the sum over {size} nodes is {numbers[-1].item()}")
    started = time.monotonic()
    for _ in range(ROUNDS):
        dist.all_reduce(numbers)
    numbers[-1].item()
    seconds = time.monotonic() - started
    dist.destroy_process_group()
    return ROUNDS * MEGABYTES / 1e3 / seconds


def main() -> None:
    """Arguments: a file that the caller has just made, and where node 0 listens."""
    token, address, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    sees = token.is_file()
    own = token.with_name(f"{token.name}-{rank}") if sees else None
    row = {"host": f"{socket.gethostname()} ({os.environ.get('SLURMD_NODENAME', rank)})", "sees": sees, "clock": 0.0}
    if own:
        own.touch()
        row["clock"] = time.time() - own.stat().st_mtime
        own.unlink()
    row |= {"gpus": torch.cuda.device_count(), "backend": "nccl" if torch.cuda.is_available() else "gloo"}
    row |= {"error": "", "gigabytes_per_second": 0.0}
    if size > 1:
        try:
            row["gigabytes_per_second"] = reach_others(rank, size, address, port)
        except Exception as error:  # whatever a network does is what is asked for
            row["error"] = " ".join(str(error).split())[:300]
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
