"""Files that are always complete: either the old or the new one, whenever the machine stops."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from alice_nnunet.errors import UserError

SIGN_OF_LIFE = 10.0  # seconds between two in which the holder of a lock writes its name
SIGNS_TO_WAIT_FOR = 3.5  # as many may fail to come before the holder counts as ended


def sync(path: Path) -> None:
    """Force the content of a file, or the list of names in a folder, onto the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder

    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; after the block, it replaces `path` in one step.

    If the block raises, `path` is unchanged and the unfinished file is removed. A kill leaves at
    most one unfinished file, NAME.partial, which the next call for the same path overwrites.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")

    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` to fill; after the block, it becomes `path` in one step.

    Raises UserError if `path` exists. If the block raises, the unfinished folder is removed. A kill
    leaves at most one unfinished folder, NAME.partial, which the next call for the same path
    empties. Only one process at a time fills it.
    """
    path = Path(path)
    require_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    lock = path.with_name(path.name + ".lock")

    with locked_for_once(lock):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            for entry in (*partial.rglob("*"), partial):
                sync(entry)
            partial.replace(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    sync(path.parent)


def require_new(path: Path) -> None:
    """Raise UserError if something has this name already."""
    if path.exists():
        raise UserError(
            f"{path} exists already and was not changed: choose another name, or remove it"
        )


def require_writable(folder: Path, variable: str) -> None:
    """Make a folder. Raises UserError where that, or writing into it, is not possible.

    Args:
        folder: in the folder that the variable names.
        variable: of the environment, such as nnUNet_results.
    """
    reason = "Permission denied"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(
        f"cannot write to {folder} ({reason}): check the environment variable {variable}"
    ) from None


def write_json_atomically(path: Path, content: object) -> None:
    """Write content as indented JSON in UTF-8, or raise TypeError and leave `path` unchanged."""
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


class Held(UserError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` until the block ends, or this process, in whatever way.

    The system's own lock (flock) ends with its process: nothing stale remains on one machine. Some
    network file systems keep such locks to one machine, or have none. So the holder also writes its
    name into the file every SIGN_OF_LIFE seconds. Who finds the name of another machine in a lock
    that the system gives away writes its own name, and watches whether the other one comes back.

    Raises:
        Held: Another process holds the lock.
    """
    path.open("a").close()
    found = holder(path)
    lock = FileLock(path)

    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise held(path, found) from None
    except (OSError, NotImplementedError):  # no locks here
        if found and host_of(found) == socket.gethostname() and is_alive(found):
            raise held(path, found) from None

    started = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    name = f"process {os.getpid()} on {socket.gethostname()}, since {started}"
    ended = threading.Event()
    signs = threading.Thread(target=give_signs, args=(path, name, ended), daemon=True)
    try:
        if found and host_of(found) != socket.gethostname():
            watch(path, name, found)
        write_name(path, name)
        signs.start()
        yield
    finally:
        ended.set()
        if signs.ident is not None:
            signs.join()
            write_name(path, "")
        lock.release()


@contextmanager
def locked_for_once(path: Path) -> Iterator[None]:
    """As locked(), in a folder that is the user's: the lock file is removed after the block."""
    with locked(path):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows keeps open files
                path.unlink()


@contextmanager
def locked_in_turn(path: Path) -> Iterator[None]:
    """As locked(), but wait while another process holds the lock, and say so."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(locked(path))
                break
            except Held:
                if not told:
                    who = holder(path) or "another process"
                    print(f"waiting for {who}, which works in {path.parent}", flush=True)
                    told = True
                time.sleep(0.5)
        yield


def give_signs(path: Path, name: str, ended: threading.Event) -> None:
    """Write the holder's name into its lock file again and again, until it has ended."""
    while not ended.wait(SIGN_OF_LIFE):
        write_name(path, name)


def watch(path: Path, name: str, found: str) -> None:
    """Wait whether the holder that was found writes its name again. Raises Held if it does."""
    seconds = SIGNS_TO_WAIT_FOR * SIGN_OF_LIFE
    print(
        f"{path} names {found}, which may have been killed: waiting {seconds:.0f} s for a sign "
        "of life",
        flush=True,
    )

    write_name(path, name)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(SIGN_OF_LIFE / 10)
        now = holder(path)
        if now and now != name:
            raise held(path, now)


def write_name(path: Path, name: str) -> None:
    """Write into a lock file, if it is still there. Windows lets nobody write to a locked one."""
    with contextlib.suppress(OSError), path.open("r+") as file:
        file.write(name)
        file.truncate()


def holder(path: Path) -> str:
    """The text of a lock file: "process PID on HOST, since TIME", or "" if nobody holds it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def held(path: Path, text: str) -> Held:
    """The error for a lock that another process holds. text: of the lock file."""
    who = f"{text}," if text else "another process"
    return Held(
        f"{who} is working in {path.parent}: wait until it has finished (lock file: {path.name})"
    )


def at_work(path: Path) -> str:
    """The name in a lock file if its process still works, "" if nobody does.

    A process of this machine must exist. Another machine's must have given a sign of life lately.
    """
    text = holder(path)
    if not text:
        return ""

    if host_of(text) == socket.gethostname():
        return text if is_alive(text) else ""
    silent = time.time() - path.stat().st_mtime
    return text if silent < SIGNS_TO_WAIT_FOR * SIGN_OF_LIFE else ""


def host_of(text: str) -> str:
    """The host in the text of a lock file."""
    return text.partition(" on ")[2].partition(", since")[0]


def is_alive(text: str) -> bool:
    """Whether the process in the text of a lock file exists on this machine."""
    number = text.removeprefix("process ").split(" ")[0]
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError where a disk has less room than something takes at least.

    Args:
        folder: of the disk; it need not exist yet.
        needed: bytes.
        what: takes them, such as "two checkpoints".
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent

    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} take at least {needed / 1e9:.3g} GB, and the disk of {folder} has "
            f"{free / 1e9:.3g} GB free: free some space, or choose another disk"
        )


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
