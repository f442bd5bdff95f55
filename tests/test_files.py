"""Files appear whole or not at all, on a full disk too; one process writes a folder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import pyrocrl
from pyrocrl import InputError, io
from pyrocrl.files import LOCK, held, write_bytes
from pyrocrl.infer import checkpoint
from pyrocrl.show import report

resource = pytest.importorskip("resource", reason="no limits on files' sizes on this system")
NOISE = np.random.default_rng(0).standard_normal((2, 100, 200))
WRITERS: dict[str, Callable[[Path], object]] = {
    "run.json": lambda path: io.write_json({"a": NOISE}, path),
    "data.npz": lambda path: io.write(pyrocrl.Data(NOISE[0]), path),
    "posterior.nc": lambda path: io.write_tree(
        xr.DataTree.from_dict({"posterior": xr.Dataset({"z": (("chain", "draw", "data"), NOISE)})}), path
    ),
    "checkpoint.safetensors": lambda path: checkpoint.write(path, {"a": torch.as_tensor(NOISE)}, {}),
    "report.html": lambda path: report._write("a" * 200_000, path, "report.html"),
}


@contextmanager
def full_disk() -> Iterator[None]:
    """Writes beyond 50,000 bytes of a file fail, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_in_one_line_and_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("old")
    with full_disk(), pytest.raises(InputError, match=r"path: found .*File too large.*; allowed: a place that can be"):
        WRITERS[name](path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {name: "old"}
    WRITERS[name](path)
    assert [p.name for p in tmp_path.iterdir()] == [name] and path.stat().st_size > 50_000


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_late_failures_leave_nothing_either(
    call: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bytes(b"old", tmp_path / "a")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_bytes(b"new", path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("sync") or sync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("rename") or replace(*paths))
    write_bytes(b"a", tmp_path / "a")
    assert done == ["sync", "rename", "sync"]


# -- one at a time -----------------------------------------------------------------------------------------------

HOLD = "import sys; from pyrocrl.files import held\nwith held(sys.argv[1], 'out'): print('mine', flush=True); input()"


def test_another_process_is_refused_until_the_first_ends_or_dies(tmp_path: Path) -> None:
    for end in (lambda p: p.communicate("\n"), lambda p: (p.kill(), p.communicate())):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as process:
            assert process.stdout.readline() == "mine\n"
            line = f"out: found {tmp_path}, which process {process.pid} is writing; allowed: another folder, or wait"
            with pytest.raises(InputError, match=line), held(tmp_path, "out"):
                pass
            end(process)
        with held(tmp_path, "out"), held(tmp_path, "out"):  # after a kill, over the dead one's lock
            assert (tmp_path / LOCK).read_text() == str(os.getpid())
        assert not list(tmp_path.iterdir())


def test_another_thread_is_refused(tmp_path: Path) -> None:
    said: list[str] = []

    def try_it() -> None:
        try:
            with held(tmp_path, "out"):
                said.append("mine")
        except InputError as error:
            said.append(str(error))

    with held(tmp_path, "out"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(said) == 1 and f"which process {os.getpid()} is writing" in said[0]
