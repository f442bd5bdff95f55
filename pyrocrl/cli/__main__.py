"""`python -m pyrocrl.cli` is the program `pyrocrl`."""

import sys

from pyrocrl.cli import main

sys.exit(main())
