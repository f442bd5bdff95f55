"""Files that appear whole or not at all, and folders that one process writes at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pyrocrl.errors import check_path, reject

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # in a folder that is being written: the process's id
_held: dict[Path, int] = {}  # folder -> the thread of this process that writes it


@contextmanager
def replacing_path(path: str | Path, argument: str = "path") -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well: on the disk first, then renamed.

    Until then it stands beside its place, ending in .part; it is removed however else the block ends, an interrupt
    included. Raises InputError, about `argument`, where the place cannot be written or the disk is full.
    """
    check_path(argument, path)
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        reject(argument, f"{str(path)!r} ({error.strerror or error})", "a place that can be written")
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def replacing(path: str | Path, argument: str = "path") -> Iterator[BinaryIO]:
    """A file to write, open, which becomes `path` as `replacing_path` says."""
    with replacing_path(path, argument) as part, part.open("wb") as file:
        yield file


def write_bytes(content: bytes | memoryview, path: str | Path, argument: str = "path") -> Path:
    """Write `content`, all or nothing; raises InputError as `replacing` does."""
    with replacing(path, argument) as file:
        file.write(content)
    return Path(path)


def _sync_folder(folder: Path) -> None:
    """Have the disk know the new name; not every system lets a folder be opened."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def held(folder: str | Path, argument: str) -> Iterator[None]:
    """`folder`, made where there is none, is this thread's to write until the block ends; blocks may be nested.

    Raises InputError, about `argument`, where another process or thread writes it, or nobody can. What a dead process
    left is taken over. File systems without locks hold nobody back.
    """
    check_path(argument, folder)
    folder = Path(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = folder.resolve()
        lock = None if _held.get(key) == threading.get_ident() else _locked(folder, argument)
    except OSError as error:
        reject(argument, f"{folder} ({error.strerror or error})", "a folder that can be written")
    if lock is None:
        yield
        return
    _held[key] = threading.get_ident()
    try:
        yield
    finally:
        del _held[key]
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is still locked: afterwards it may be another's
            if new:
                folder.rmdir()  # if nothing was written
        os.close(lock)


def _locked(folder: Path, argument: str) -> int:
    """The folder's lock file, locked by this process and open."""
    while True:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = os.read(lock, 20).decode(errors="replace") or "another one"
            os.close(lock)
            reject(argument, f"{folder}, which process {process} is writing", "another folder, or wait for it")
        except OSError:  # no locks on this file system
            pass
        if (folder / LOCK).exists() and os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
            return lock
        os.close(lock)  # its owner removed it just now
