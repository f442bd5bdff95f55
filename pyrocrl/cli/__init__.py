"""The command line. Exit code 0: done; 2: bad input, one line says what is allowed; 1: failed, one line says why.

Whatever is heavy (torch, Pyro, matplotlib) is imported inside the commands.
"""

# isort: off
from pyrocrl.cli.app import app
from pyrocrl.cli import overview, fits, uses, perturbations, studies  # in the order in which --help lists them
from pyrocrl.cli.shell import main

__all__ = ["app", "fits", "main", "overview", "perturbations", "studies", "uses"]
