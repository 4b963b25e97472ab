"""One run in several processes, one for each GPU: started here or by torchrun, joined, in step."""

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
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.stop import stop_signals
from alice_nnunet.ranks import rank, together, world

PROGRAM = [sys.executable, "-m", "alice_nnunet.pretrain"]  # what launch() starts
LONG_WAIT = timedelta(days=7)  # while process 0 preprocesses and learns the matcher for all
SECONDS_TO_END = 20.0  # for the others when one process has failed
STOP_WITH_LAUNCHER = "ALICE_STOP_WITH_STDIN"  # set for processes that launch() has started


def launched() -> bool:
    """Whether this process was started as one of several.

    By torchrun, by launch(), or by SLURM with its variables translated
    (docs/how-to/cluster.md).
    """
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, arguments: list[str], device: torch.device) -> int:
    """Run alice-pretrain in several processes on this machine.

    SIGTERM, SIGUSR1 and Ctrl-C are passed on.

    Args:
        processes: How many.
        arguments: Of alice-pretrain.
        device: cpu, or cuda where each has a GPU of its own.

    Returns:
        The exit code of the first that fails, or 0.

    Raises:
        UserError: There are not so many GPUs.
    """
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"-num_gpus {processes}: torch sees {torch.cuda.device_count()} CUDA devices here"
        )

    command = [*PROGRAM, *arguments]
    shared = environment_of_all(processes)
    children: list[subprocess.Popen] = []

    def pass_on(number: int, frame) -> None:
        for child in children:
            child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in stop_signals()}
    try:
        for number in range(processes):
            own = {"RANK": str(number), "LOCAL_RANK": str(number)}
            child = subprocess.Popen(
                command, env=shared | own, stdin=subprocess.PIPE, start_new_session=True
            )
            children.append(child)
        return wait_for(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def environment_of_all(processes: int) -> dict[str, str]:
    """The environment by which so many processes on this machine find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        STOP_WITH_LAUNCHER: "1",
    }


def wait_for(children: list[subprocess.Popen]) -> int:
    """Wait until all children end, or one fails and the others have ended or had their time.

    Returns:
        The exit code of the first that fails, 0 when all end well.
    """
    while not any(child.poll() for child in children):
        if all(child.poll() == 0 for child in children):
            return 0
        time.sleep(0.1)

    failed = next(child.returncode for child in children if child.poll())
    deadline = time.monotonic() + SECONDS_TO_END
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    return failed if failed > 0 else 128 - failed  # a signal, as shells report it


@dataclass(frozen=True)
class Team:
    """This process among those of its run.

    Attributes:
        device: This process's own.
        patient: Group for long waits, None for a process alone.
    """

    device: torch.device
    patient: dist.ProcessGroup | None = None

    def first(self, action: Callable):
        """Run action in process 0 alone, then in all others. Returns what it returns."""
        if rank() == 0:
            result = action()
        self.wait()
        return result if rank() == 0 else action()

    def share(self, value: Any) -> Any:
        """The value that process 0 gives, in all processes; waits for it, for days if need be.

        Raises:
            UserError: Another process has ended instead.
        """
        if self.patient is None:
            return value

        values = [value]
        with explained():
            dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes are here, for days if need be.

        Raises:
            UserError: Another process has ended instead.
        """
        if self.patient is None:
            return
        with explained():
            dist.barrier(self.patient)


@contextmanager
def explained() -> Iterator[None]:
    """Turn torch's error about processes that are gone into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended; its own message says why"
        ) from error


@contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """Join the processes that torchrun or launch() started, or stay alone.

    Args:
        device: cpu, or cuda, of which each process takes one of its own.
    """
    if not launched():
        yield Team(device)
        return

    if device.type == "cuda":
        device = own_gpu()
    if STOP_WITH_LAUNCHER in os.environ:
        threading.Thread(target=stop_with_launcher, daemon=True).start()

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    patient = dist.new_group(backend="gloo", timeout=LONG_WAIT) if together() else None
    yield Team(device, patient)  # type: ignore[arg-type]  # a number only outside the group

    # Not after an error: the others may be gone, and this would wait for them.
    dist.destroy_process_group()


def own_gpu() -> torch.device:
    """The GPU of this process, from now on torch's default one."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"this is process {local} on a machine of {torch.cuda.device_count()} CUDA devices: "
            "start one for each"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def stop_with_launcher() -> None:
    """Wait until the process that started this one ends, even by SIGKILL; then save and end."""
    os.read(0, 1)  # not sys.stdin, whose lock would be in the way when this process ends
    os.kill(os.getpid(), signal.SIGTERM)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, its gradients averaged over the processes in backward.

    Its buffers are not broadcast: they are the same everywhere by themselves.
    """
    if not together():
        return model
    devices = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(
        model, devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def unsynchronised(model: nn.Module, more_to_come: bool) -> AbstractContextManager:
    """A context in which backward of a parallel() model does not average gradients yet.

    more_to_come: whether others are added to them before they are used.
    """
    if more_to_come and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


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
    lists: list = [None] * world()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def own_share(step: int, size: int) -> range:
    """Numbers of this process's samples in a step: the steps of all make one stream.

    size: samples of each process in a step.
    """
    first = (step * world() + rank()) * size
    return range(first, first + size)
