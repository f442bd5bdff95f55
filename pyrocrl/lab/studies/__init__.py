"""Studies: rows of models' tables of results, a file a family; models list theirs."""

from pyrocrl.lab.studies.study import Study, readable

__all__ = ["Study", "readable"]
