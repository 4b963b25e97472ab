"""The installed commands without the seconds in which each of them imports torch and nnU-Net.

A process that has imported them waits at a socket. Small programs of the commands' names, in a
folder to put first on PATH, pass it their arguments, environment, folder and open files; it forks,
and the fork calls the command's own entry point. So whole pages of shell commands run in a real
shell at the cost of what they do.
"""

import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
name = os.path.basename(sys.argv[0])
request = json.dumps([name, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.makefile().read() or 1))
"""


@contextmanager
def warm_commands(folder: Path, appended: dict[str, list[str]] | None = None) -> Iterator[Path]:
    """Programs for all alice-* and nnUNetv2_* commands, as long as the context lasts.

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
        words = [sys.executable, __file__, str(listening.fileno()), json.dumps(appended or {})]
        server = subprocess.Popen(words, pass_fds=[listening.fileno()])
        try:
            yield programs
        finally:
            server.terminate()
            server.wait()


def commands() -> dict:
    """Entry points by the command's name."""
    return {
        point.name: point
        for point in entry_points(group="console_scripts")
        if point.name.startswith(("alice-", "nnUNetv2_"))
    }


def serve(listening: socket.socket, appended: dict[str, list[str]]) -> None:
    """Answer one request after the other with the exit code of the command.

    It ends when the process that started this one has ended.
    """
    import nnunetv2.run.run_training  # noqa: F401  what takes long, and nothing that starts threads

    import alice_nnunet.networks.unetr  # noqa: F401

    forks = multiprocessing.get_context("fork")
    gc.freeze()  # a fork that collects garbage would copy all that is imported
    listening.settimeout(1)

    parent = os.getppid()
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue

        with connection:
            header, files, _, _ = socket.recv_fds(connection, 4, 3)
            request = json.loads(connection.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))
            child = forks.Process(target=run, args=(*request, files, appended))
            child.start()
            for file in files:
                os.close(file)
            child.join()
            connection.sendall(str(child.exitcode).encode())


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


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2]))
