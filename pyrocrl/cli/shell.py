"""A command line run: what goes wrong is one line and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from pyrocrl.cli.app import Interrupted, app
from pyrocrl.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _mend_streams()
    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"pyrocrl: warning: {' '.join(str(message).split())}\n"
    try:
        code = app(args=arguments, prog_name="pyrocrl", standalone_mode=False)
        return _complain("interrupted", 130) if code == 130 else code if isinstance(code, int) else 0
    except InputError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Interrupted as error:
        return _complain(str(error), 130)
    except Exception as error:
        if type(error).__name__ == "Abort":  # Ctrl-C under older typers
            return _complain("interrupted", 130)
        if hasattr(error, "format_message"):  # the command line itself: typer's, or click's under older typers
            return _complain(_usage(error, arguments), 2) if str(error) or error.format_message() else 0
        if os.environ.get("PYROCRL_TRACEBACK"):
            raise
        hint = "" if type(error).__name__ == "FitError" else " (PYROCRL_TRACEBACK=1 shows where)"
        return _complain(f"failed: {error or type(error).__name__}{hint}", 1)
    finally:
        warnings.formatwarning = shown


def _mend_streams() -> None:
    """What was closed at the start goes nowhere, rather than into the first file that is opened; a character that the
    terminal's encoding lacks is printed as its escape."""
    for place in range(3):
        try:
            os.fstat(place)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """A usage error in one line, with the value that was found."""
    message = str(error.format_message()).rstrip(".")
    names = getattr(getattr(error, "param", None), "opts", None) or []
    for name in names:
        for place, argument in enumerate(arguments):
            if argument == name and place + 1 < len(arguments):
                message += f"; found {arguments[place + 1]!r}"
            elif argument.startswith(f"{name}="):
                message += f"; found {argument.partition('=')[2]!r}"
    command = getattr(getattr(error, "ctx", None), "command_path", "pyrocrl")
    return f"{message}; `{command} --help` says what is allowed"


def _complain(message: str, code: int) -> int:
    print(f"pyrocrl: {' '.join(message.split())}", file=sys.stderr)
    return code
