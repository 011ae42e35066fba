"""Functions run in several processes that share a gloo group; what each returns comes back in the order of ranks."""

import os
import pickle
import socket
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(processes, function, *args):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one, (processes, _free(), folder, function, args), nprocs=processes)
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(processes)]


def _one(rank, processes, port, folder, function, args):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(processes))
    dist.init_process_group("gloo")
    try:
        found = function(rank, *args)
        dist.barrier()
        Path(folder, str(rank)).write_bytes(pickle.dumps(found))
    finally:
        dist.destroy_process_group()


def _free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
