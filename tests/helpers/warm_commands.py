"""The installed commands without the seconds in which each of them imports torch and nnU-Net.

A process that has imported them (see warm_processes) waits at a socket. Small programs of the
commands' names, in a folder to put first on PATH, pass it their arguments, environment, folder and
open files; it forks, and the fork calls the command's own entry point. So whole pages of shell
commands run in a real shell at the cost of what they do. The processes that a command spawns start
as quickly.
"""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from multiprocessing import connection, process
from pathlib import Path

from tests.helpers.warm_processes import WarmProcess, join_fork_server

# Commands of the tests' own.
OURS = {"stopping": "tests.helpers.stopping:command"}

CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
name = os.path.basename(sys.argv[0])
request = json.dumps([name, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
code = int(server.makefile().read() or 1)
if code < 0:  # of the signal that ended the command
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def warm_commands(folder: Path, appended: dict[str, list[str]] | None = None) -> Iterator[Path]:
    """Programs for all alice-* and nnUNetv2_* commands and OURS, as long as the context lasts.

    Args:
        folder: Where the folder of the programs, which is yielded, is made.
        appended: For names of commands, words put after the ones that they are called with.
    """
    address = str(folder / "socket")
    programs = folder / "bin"
    programs.mkdir()
    for name in commands():
        (programs / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (programs / name).chmod(0o755)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        server = WarmProcess(target=serve, args=(listening, appended or {}))
        server.start()
        process._children.discard(server)  # type: ignore[attr-defined]  # none that tests count
        try:
            yield programs
        finally:
            server.terminate()
            server.join()


def commands() -> dict[str, EntryPoint]:
    """Entry points by the command's name."""
    group = "console_scripts"
    ours = {name: EntryPoint(name, value, group) for name, value in OURS.items()}
    installed = {
        point.name: point
        for point in entry_points(group=group)
        if point.name.startswith(("alice-", "nnUNetv2_"))
    }
    return installed | ours


def serve(listening: socket.socket, appended: dict[str, list[str]]) -> None:
    """Start a process for each request, until the process that started this one has ended.

    Args:
        listening: Where the programs connect.
        appended: Of warm_commands.
    """
    join_fork_server()
    forks = multiprocessing.get_context("fork")
    parent = multiprocessing.parent_process()
    assert parent is not None

    while parent.sentinel not in (ready := connection.wait([listening, parent.sentinel])):
        assert ready == [listening]
        client, _ = listening.accept()
        with client:
            forks.Process(target=answer, args=(client, appended)).start()
        multiprocessing.active_children()  # joins those that have ended


def answer(client: socket.socket, appended: dict[str, list[str]]) -> None:
    """Run the command that a program asks for, and send it the exit code."""
    header, files, _, _ = socket.recv_fds(client, 4, 3)
    request = json.loads(client.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))

    forks = multiprocessing.get_context("fork")
    command = forks.Process(target=run, args=(*request, files, appended))
    command.start()
    for file in files:
        os.close(file)

    command.join()
    client.sendall(str(command.exitcode).encode())


def run(
    name: str,
    words: list[str],
    folder: str,
    environment: dict[str, str],
    files: list[int],
    appended: dict[str, list[str]],
) -> None:
    """Become the command called name.

    Args:
        name: Of the command.
        words: That it is called with.
        folder: That it is called in.
        environment: Its environment variables.
        files: Its standard input, output and error.
        appended: Of warm_commands.
    """
    for number, file in enumerate(files):
        os.dup2(file, number)

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *words, *appended.get(name, [])]
    sys.exit(commands()[name].load()())
