"""Files that are always complete: either the old or the new one, whenever the machine stops."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from alice_nnunet.errors import UserError


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
    empties.
    """
    path = Path(path)
    if path.exists():
        raise UserError(
            f"{path} exists already and was not changed: choose another name, or remove it"
        )

    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    try:
        yield partial
        for entry in (*partial.rglob("*"), partial):
            sync(entry)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def write_json_atomically(path: Path, content: object) -> None:
    """Write content as indented JSON in UTF-8, or raise TypeError and leave `path` unchanged."""
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` until the block ends, or this process, in whatever way.

    Raises UserError at once if another process holds it. If the file system has no locks, the block
    runs without one.
    """
    path.touch()
    lock = FileLock(path)

    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process{holder(path)} is working in {path.parent}: wait until it has finished"
        ) from None
    except (OSError, NotImplementedError):
        yield
        return

    # The text is for people. Windows does not let anyone write to a locked file.
    started = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {started}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.write_text("")
        lock.release()


def holder(path: Path) -> str:
    """Text on who holds a lock file, " (process PID on HOST, since TIME)", or "" if unknown."""
    try:
        text = path.read_text()
    except OSError:
        return ""
    return f" ({text})" if text else ""


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
