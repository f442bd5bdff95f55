"""Tables and JSON on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from pyrocrl.lab.reproduce import format_table

    print(format_table(header, rows))


def print_json(value: Any) -> None:
    from pyrocrl.io.posteriors import finite

    print(json.dumps(finite(value), indent=1))
