"""Pictures of a posterior: masks, graphs, agreement of chains, latents by environment, fit and calibration.

Every function takes the `xarray.DataTree` that `fit.posterior()` returns (or plain arrays) and returns a
`matplotlib.figure.Figure`; nothing touches pyplot's state, so save it with `figure.savefig(path)` or let a notebook
show it. Averages over chains use the tree's `chain_weight`. The numbers behind a picture are functions as well:
`latent_means`, `inclusion`, `loadings` and `shifts`. A tree without what a picture needs raises InputError.
"""

from __future__ import annotations

from pyrocrl.show.plots.chains import agreement, objective, targets
from pyrocrl.show.plots.environments import latents_by_env, predictive
from pyrocrl.show.plots.graphs import effects, graph, mask, weights
from pyrocrl.show.plots.numbers import (
    chain_weights,
    edges,
    explained,
    inclusion,
    latent_means,
    loadings,
    posterior_mean,
    ranking,
    shifts,
    strongest,
)
from pyrocrl.show.plots.truth import calibration, recovery

__all__ = [
    "agreement",
    "calibration",
    "chain_weights",
    "edges",
    "effects",
    "explained",
    "graph",
    "inclusion",
    "latent_means",
    "latents_by_env",
    "loadings",
    "mask",
    "objective",
    "posterior_mean",
    "predictive",
    "ranking",
    "recovery",
    "shifts",
    "strongest",
    "targets",
    "weights",
]
