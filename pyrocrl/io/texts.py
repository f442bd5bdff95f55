"""Bytes of files as text, and damaged files in one line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyrocrl.errors import InputError, reject

SEPARATORS = (",", ";", "\t", "|")  # tried in this order where a header does not have the one of its suffix


def separator(path: Path, header: str) -> str:
    """What separates the columns of a table: as its suffix says, or else what its header has."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return next((sep for sep in (usual, *SEPARATORS) if sep in header), usual)


def text_of(path: Path, argument: str) -> str:
    check_text(path, argument)
    return path.read_text(encoding="utf-8-sig")


def check_text(path: Path, argument: str) -> None:
    """Raise InputError unless the file holds UTF-8 and no NUL, at which pandas would end a cell without a word."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            start = 0
            while block := file.read(2**20):
                if b"\0" in block:
                    found = f"{str(path)!r} with a NUL at byte {start + block.index(0)} (no text, or UTF-16)"
                    reject(argument, found, "a text in UTF-8")
                decoder.decode(block)
                start += len(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        found = f"{str(path)!r} with the byte {error.object[error.start]:#x}, which is not UTF-8"
        reject(argument, found, "a text in UTF-8 (iconv makes it one)")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        reject(argument, f"{str(path)!r} ({getattr(error, 'strerror', error)})", "a readable text file")


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Every reader has its own exceptions for a damaged file: one line for all."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reject("path", f"{str(path)!r}, which cannot be read ({reason})", f"a whole {path.suffix} file")
