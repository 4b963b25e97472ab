"""Files that are either the old one or the new one, whatever moment the machine stops."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alice_nnunet.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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
    """A path beside path to write to; after the block it is on the disk under path's own name, in one step.

    When the block raises, path is as it was and the unfinished file is gone. A kill leaves at most one unfinished
    file, NAME.partial, which the next call for the same path writes over.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside path to fill; after the block it is on the disk under path's own name, in one step.

    Raises UserError if path exists. When the block raises, the unfinished folder is gone. A kill leaves at most one
    unfinished folder, NAME.partial, which the next call for the same path empties.
    """
    path = Path(path)
    if path.exists():
        raise UserError(
            f"{path} exists already and was not touched: choose another name, or remove it"
        )
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for entry in (*partial.rglob("*"), partial):
            sync(entry)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def write_json_atomically(path: Path, content: object) -> None:
    """Write content as indented JSON, UTF-8. Raises TypeError, and leaves path alone, where JSON cannot hold it."""
    text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file path; it is free again after the block, or when this process ends in any way.

    Raises UserError where another process holds it. Does nothing where the system or the file system has no locks.
    """
    with open(path, "w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is working in {path.parent}: wait until it is done"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def file_sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
