"""Names of states: of what discrete latents are called nothing is identified, so truths and draws are renamed first.

A state is named by nothing but the rows that are in it. Names are brought to those of a reference, latent by latent, so
that most rows have the same ones, and with them whatever else lists states: rows of tables, levels, probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pyrocrl.claims.indeterminacy import Alignment

Labels = NDArray[np.int64]


def together(own: Labels, reference: Labels, names: int, others: int) -> Labels:
    """(name, name of the reference) how many rows have both; own, reference: (rows,) names 0, 1, ..., below `names` and
    `others`."""
    return np.bincount(own * others + reference, minlength=names * others).reshape(names, others)


def called_alike(table: Labels) -> int:
    """In how many rows of `together` names agree, where each is matched with one of the reference's at most."""
    return int(table[linear_sum_assignment(table, maximize=True)].sum())


def renamed(own: Labels, reference: Labels, names: int) -> Labels:
    """(name,) what each name is called in the reference, such that most rows are called the same."""
    return np.asarray(linear_sum_assignment(together(own, reference, names, names), maximize=True)[1])


def renamed_all(own: Labels, reference: Labels, names: int) -> Labels:
    """(latent, name) `renamed`, latent by latent; own, reference: (rows, latent)."""
    return np.stack([renamed(a, b, names) for a, b in zip(own.T, reference.T, strict=True)])


def called(own: NDArray, names: Labels) -> Labels:
    """Names (rows, latent) in the words of `names` (latent, name)."""
    return np.stack([to[a] for a, to in zip(own.T.astype(int), names, strict=True)], 1)


def latents_by_labels(own: Labels, reference: Labels, names: int) -> Alignment:
    """The order of latents (rows, latent) in which names, once brought to the reference's, agree most beyond chance."""
    latents = own.shape[1]
    agreement = np.zeros((latents, latents))
    for k in range(latents):
        most = np.bincount(reference[:, k], minlength=names).max() / len(reference)
        if most == 1:
            continue
        for j in range(latents):
            alike = called_alike(together(own[:, j], reference[:, k], names, names)) / len(own)
            agreement[j, k] = max(0.0, (alike - most) / (1 - most))
    order, places = linear_sum_assignment(agreement, maximize=True)
    order = order[np.argsort(places)]
    ones = np.ones(latents)
    return Alignment(order, ones, 0 * ones, np.arange(latents), agreement[order, np.arange(latents)])


def brought(value: NDArray, axes: Sequence[int], names: NDArray[np.int64], latent: int = 0) -> NDArray:
    """An array whose `axes` list states of the latents on axis `latent`, in the order that `names` (latent, name), of
    `renamed`, say."""
    out = np.moveaxis(np.array(value), latent, 0)
    for k, called in enumerate(names):
        for axis in axes:
            at = axis % value.ndim
            out[k] = np.take(out[k], np.argsort(called), at - (at > latent))
    return np.moveaxis(out, 0, latent)
