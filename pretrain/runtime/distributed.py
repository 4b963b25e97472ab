"""One run in several processes, one for each GPU: started here or by torchrun, joined, and waiting for each other."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alice_nnunet.errors import UserError
from alice_nnunet.ranks import rank, together, world

PATIENCE = timedelta(
    days=7
)  # for preprocessing and learning the matcher, which process 0 does for all
GRACE = 20.0  # seconds that the others get to end when one process has failed
ORPHANS_STOP = "ALICE_STOP_WITH_STDIN"


def launched() -> bool:
    """Whether torchrun, SLURM with its variables translated (docs/how-to/cluster.md), or launch() started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, arguments: list[str], device: torch.device) -> int:
    """Run alice-pretrain with arguments in so many processes on this machine. Returns the exit code of the first that fails, or 0.

    SIGTERM, SIGUSR1 and Ctrl-C are passed on. Raises UserError where there are not so many GPUs.
    """
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"-num_gpus {processes}: torch sees {torch.cuda.device_count()} CUDA devices here"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        ORPHANS_STOP: "1",
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))
        ),
    }
    command = [sys.executable, "-m", "alice_nnunet.pretrain", *arguments]
    children: list[subprocess.Popen] = []
    pass_on = lambda number, frame: [child.send_signal(number) for child in children]
    earlier = {number: signal.signal(number, pass_on) for number in stop_signals()}
    try:
        for number in range(processes):
            environment = {**shared, "RANK": str(number), "LOCAL_RANK": str(number)}
            children.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, start_new_session=True
                )
            )
        return wait_for(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def wait_for(children: list[subprocess.Popen]) -> int:
    """Exit code of the first child that fails, after the others have ended or had their time; 0 when all end well."""
    while not any(child.poll() for child in children):
        if all(child.poll() == 0 for child in children):
            return 0
        time.sleep(0.1)
    failed = next(child.returncode for child in children if child.poll())
    deadline = time.monotonic() + GRACE
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    return failed if failed > 0 else 128 - failed


def stop_signals() -> list[int]:
    """The signals that ask a run to save and end, on this system."""
    return [
        getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)
    ]


@dataclass(frozen=True)
class Team:
    """This process among those of its run. device: its own. patient: group for long waits, None for a process alone."""

    device: torch.device
    patient: dist.ProcessGroup | None = None

    def first(self, action: Callable):
        """What action returns; process 0 does it alone, before all others."""
        if rank() == 0:
            result = action()
        self.wait()
        return result if rank() == 0 else action()

    def wait(self) -> None:
        """Until all processes are here, for days if need be. Raises UserError where another has ended instead."""
        if self.patient is not None:
            try:
                dist.barrier(self.patient)
            except RuntimeError as error:
                raise UserError(
                    "another process of this run has ended; its own message says why"
                ) from error


@contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """The processes that torchrun or launch() started, or this one alone. device: cpu, or cuda: each has one of its own."""
    if not launched():
        yield Team(device)
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"this is process {local} on a machine of {torch.cuda.device_count()} CUDA devices: start one for each"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if ORPHANS_STOP in os.environ:
        threading.Thread(target=stop_with_launcher, daemon=True).start()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Team(device, dist.new_group(backend="gloo", timeout=PATIENCE) if together() else None)
    dist.destroy_process_group()  # not after an error: the others may be gone, and it would wait for them


def stop_with_launcher() -> None:
    """Wait for the end of the process that started this one, even a killed one, then ask this one to save and end."""
    os.read(0, 1)  # not sys.stdin, whose lock would be in the way when this process ends
    os.kill(os.getpid(), signal.SIGTERM)


def parallel(model: nn.Module) -> nn.Module:
    """model, with its gradients averaged over the processes in backward. Its buffers are the same everywhere by themselves."""
    if not together():
        return model
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
    return DistributedDataParallel(
        model, devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def unsynchronised(model: nn.Module, more_to_come: bool) -> AbstractContextManager:
    """Inside, backward of a parallel() model keeps its gradients to itself where more are to be added before they are used."""
    return (
        model.no_sync()
        if more_to_come and isinstance(model, DistributedDataParallel)
        else nullcontext()
    )


def largest(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers."""
    if not together():
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def gather_lists(items: list) -> list:
    """The items of all processes, in the order of ranks."""
    if not together():
        return items
    lists = [None] * world()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def own_share(step: int, size: int) -> range:
    """Numbers of this process's samples in a step of size samples for each process: the steps of all make one stream."""
    first = (step * world() + rank()) * size
    return range(first, first + size)
