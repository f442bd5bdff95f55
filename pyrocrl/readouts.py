"""What can be read off a fitted program: latents, masks, graphs, and what verdicts ask of it.

A model writes the read-outs that it has. Each of the others says that there is nothing to be read, by None, or refuses:
then a claim that needs it cannot be made by that model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrocrl.batch import Batch


@dataclass(frozen=True)
class Partners:
    """Of the rows after whose partners are here, (pair, latent) all: `below`, the distribution function of each
    latent's noise given the row before and all other latents; `changed`, the probability that it was changed, as the
    others say; `moved`, the size of its difference in units of the noise that is not shared; `before`, its noise in the
    row before."""

    below: Tensor
    changed: Tensor
    moved: Tensor
    before: Tensor


@dataclass(frozen=True)
class SetApart:
    """Of the rows after whose partners are here: `moved`, by how much noise of each latent differs from that of the row
    before, which is `before`, in deviations of it; `now`, latents; all (pair, latent). chance: (pair, latent + 1) of
    what changed, the last none."""

    moved: Tensor
    before: Tensor
    now: Tensor
    chance: Tensor


@dataclass(frozen=True)
class Offsets:
    """By how much perturbations move latents: mean, error (env, latent), 0 and 1 for the control. spanned: shares,
    descending, about 1 for each direction of latents that the offsets span and about 0 beyond; mixed: (latent,) whether
    other axes, of which the latent is a part, are moved by as few perturbations."""

    mean: Tensor
    error: Tensor
    spanned: Tensor
    mixed: Tensor


@dataclass(frozen=True)
class Carries:
    """How actions carry latents: turn (env, latent, latent), shift (env, latent), the identity and 0 for the control.
    free: (map, latent, latent + 1) a basis [D, c] of the affine maps z + D z + c that commute with all of them; mixing:
    where some of them mix latents, what each does, in words; bent: latents to which bent maps that commute as well may
    add something. error: of latents, in their deviations, that stays however many pairs there are."""

    turn: Tensor
    shift: Tensor
    free: Tensor
    mixing: tuple[str, ...]
    bent: tuple[str, ...]
    error: float


@dataclass(frozen=True)
class Stepped:
    """Of rows that follow others, in the order of time, (rows, latent) all: `below`, the distribution function of each
    latent given the row before and whether it is a target; `hit`, whether it is one, in {0, 1}; `before`, latents in
    the row before; `now`, in the row itself."""

    below: Tensor
    hit: Tensor
    before: Tensor
    now: Tensor


@dataclass(frozen=True)
class Patterns:
    """Evidence of what actions act on: varies (latent,), that they differ in whether they act on each latent; apart
    (latent, latent), that no two latents have this in common: see `exact.interactions.Patterns`."""

    varies: Tensor
    apart: Tensor


@dataclass(frozen=True)
class Ties:
    """What ties views: see `exact.shared_factors.Ties`; factors: how many latents a view has, shared and private."""

    tied: Tensor
    shown: Tensor
    common: Tensor
    chance: Tensor
    within: Tensor
    factors: int


@dataclass(frozen=True)
class Columns:
    """Of the slopes of features by latents: contrast (rows,), 0 where their columns are orthogonal; rise (), of its
    mean where latents' normal scores are turned by the turn that raises it least, axes (latent, latent) that turn;
    chance (), what either would be in the mean for errors of the map alone."""

    contrast: Tensor
    rise: Tensor
    chance: Tensor
    axes: Tensor


@dataclass(frozen=True)
class Sights:
    """What views show. sees: (view, latent) probabilities that a view sees a latent; margin: by how many nats of log
    evidence the next best answer is below it; weakest (view,), blurred, together (view, view): see
    `exact.view_factors.Sights`."""

    sees: Tensor
    margin: Tensor
    weakest: Tensor
    blurred: Tensor
    together: Tensor


@dataclass(frozen=True)
class PartnersShare:
    """What rows of a pair share, as pairs tell that were not trained on: see `constructions.content_pairs.Shared`."""

    gap: Tensor
    gap_error: Tensor
    trained: Tensor
    left: Tensor
    left_error: Tensor


@dataclass(frozen=True)
class KeptBlocks:
    """What pairs of each kind keep, as pairs tell that were not trained on. names: of the blocks; block: (latent,) the
    block of each; keeps: (kind, block) which they are said to keep; told: a `constructions.kept_blocks.Kept`."""

    names: list[str]
    block: Tensor
    keeps: Tensor
    told: Any


class ReadOuts:
    """Read-outs of a `Program`, none of which says anything yet; its latents are for a model to write."""

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(rows, latent) posterior mean of the latents."""
        raise TypeError(f"{type(self).__name__} has no latents read-out")

    def beside(self, batch: Batch) -> dict[str, Tensor]:
        """Posterior means of sites of rows beside z, by name."""
        return {}

    @property
    def reads_innovations(self) -> bool:
        """Whether `latents` are innovations, latents less what parents give: where equations are not identified."""
        return False

    def mask(self) -> Tensor | None:
        """(feature, latent) posterior inclusion probabilities, or None."""
        return None

    def firing(self, batch: Batch) -> Tensor | None:
        """(rows, latent) probabilities that a latent is not 0 in a row, or None. Models whose claims need sparse codes
        must have it."""
        return None

    def silent(self, batch: Batch) -> Tensor | None:
        """(rows, latent) probabilities that a row is without a latent, all but 0 there, or None. Models whose claims
        may rest on zeros of latents must have it, and `silent_share`."""
        return None

    def silent_share(self) -> Tensor:
        """(draw, latent) share of all rows that are without a latent, in draws of the posterior."""
        raise TypeError(f"{type(self).__name__} says nothing of rows without a latent")

    def pure(self) -> Tensor | None:
        """(feature, latent) probabilities that a feature is pure: that a latent has all but a twentieth of its squared
        loadings. Independent between features; or None. Models whose claims need pure features must have it."""
        return None

    def non_gaussian(self) -> Tensor | None:
        """(latent,) probabilities that a latent's innovation, what parents do not give of it, is not normal, or None.
        Models whose claims need innovations to tell directions, or latents that are not normal, must have it."""
        return None

    def axes(self) -> Tensor | None:
        """(latent,) mean squared cosine, over the posterior, of a latent's loadings with their mean, in units of noise,
        or None. Models whose claims need that tails tell latents from mixtures must have it."""
        return None

    def number_told(self) -> Tensor | None:
        """(draw,) numbers of latents in draws of the posterior, or None. Models whose claims need that their number is
        told must have it."""
        return None

    def values_apart(self) -> Tensor:
        """(latent, place, place) how far features are apart at any two of evenly spaced ranks of a latent, the others
        as they are, in deviations of their noise. Models whose claims need that values are told must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of curves")

    def normal_lines(self) -> Tensor:
        """(latent,) part of the size of each latent's curves, in units of noise, that is lines of a normal latent.
        Models whose claims need curves that are none must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of curves")

    def number_margin(self) -> Tensor:
        """() log evidence of its number of latents less that of the best other number that was tried. Models whose
        claims need that numbers are apart must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of other numbers of latents")

    def clusters_margin(self) -> Tensor | None:
        """() log evidence of its clusters of features less that of the best ones with two of them merged or one split,
        or None. Models whose claims need clusters that are apart must have it."""
        return None

    def states_margin(self) -> Tensor | None:
        """() log evidence of its latents' numbers of states less that of the best answer with two states merged or a
        component more, or None. Models whose claims need states that are apart must have it."""
        return None

    def turned(self) -> Tensor | None:
        """(4,) of the most probable answer in which two latents are turned so that other features are pure: how many
        nats it is less probable than its own, the cosine of these features' loadings, its deviation, and how many
        entries of the mask it has more; infinite where there is none.
        Models whose claims need latents that no turn replaces must have it."""
        return None

    def loading_matrix(self) -> tuple[Tensor, Tensor] | None:
        """Means and deviations (feature, latent) of linear loadings in the program's units, 0 where the story has none,
        or None. Models whose claims need loadings that differ from 0 must have it."""
        return None

    def latent_correlation(self) -> Tensor | None:
        """(latent, latent) correlations of the latents by the fitted law, or None where they have none."""
        return None

    def graph(self) -> Tensor | None:
        """(parent, child) posterior edge probabilities, or None."""
        return None

    def targets_matrix(self) -> Tensor | None:
        """(env, latent) posterior probabilities that an environment intervenes on a latent, or None."""
        return None

    def parents(self) -> Tensor | None:
        """(latent, 1) posterior probabilities that a latent is a parent of the response, or None. Models that claim
        parents must have it."""
        return None

    def invariance(self) -> tuple[Tensor, Tensor] | None:
        """p-values (set,) of the tests that the response's regression on a set of the other columns is the same in all
        environments (`exact.invariance`), and posterior probabilities (set,) that these are its parents; or None."""
        return None

    def row_targets(self, batch: Batch) -> Tensor | None:
        """(rows, latent + 1) posterior probabilities that a latent, or in the last column none, was changed between the
        row before and this one, or None."""
        return None

    def state_shares(self, batch: Batch) -> Tensor | None:
        """(rows, latent, state) posterior probabilities of the states of latents, or of their dynamics, or None."""
        return None

    def dynamics_apart(self, batch: Batch) -> tuple[Tensor, int]:
        """(latent, latent) log-likelihood of each two latents less that of dynamics which any combinations of both
        would have as well, and how many more numbers the former has. Models whose claims need that dynamics tell
        latents apart must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of dynamics")

    def action_patterns(self, batch: Batch) -> Patterns:
        """Evidence that actions differ in whether they act on each latent, and act on no two alike. Models whose claims
        need that actions tell latents apart must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of what actions act on")

    def rotated(self) -> Tensor:
        """(latent,) share of each latent's variance that the posterior of the unmixing leaves to other directions, its
        scale apart. Models whose claims need that dynamics, or a box, tell latents apart must have it."""
        raise TypeError(f"{type(self).__name__} does not say how far its axes are settled")

    def filling(self) -> Tensor | None:
        """(draw,) share of the rows that fill the box of the latents' support, or None. Models whose claims need that
        rows fill it must have it, latents being from -1 to 1 there."""
        return None

    def readings_margin(self) -> float | None:
        """By how many nats the likeliest other latents that were found are less likely than the chain's, infinite where
        there are none; None where a chain looks for no others."""
        return None

    def latent_maps(self) -> Tensor | None:
        """(draw, latent, latent) linear maps from latents as they are read to those that the equations may be of; None
        where they are the same."""
        return None

    def held_near(self) -> tuple[Tensor, Tensor]:
        """Values (env, latent) near which environments hold the latents that they condition on, in these' deviations,
        and their deviations. Models whose claims need that such levels differ must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of conditioning")

    def columns(self, batch: Batch) -> Columns:
        """How orthogonal the columns of the mixing are. Models whose claims rest on that must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of columns")

    def box_moved(self) -> Tensor:
        """(latent,) share of each axis of the box that rows fill which other laws of the other rows leave to other
        latents. Models whose claims need a box must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of a box")

    def noise_share(self, batch: Batch) -> Tensor | None:
        """(latent,) share of the variance of each latent, as it is read off the features, that is noise of theirs; None
        where no direction is free of latents."""
        return None

    def innovations_below(self, batch: Batch) -> Tensor:
        """(rows that have rows enough before them, latent) distribution function of each latent given those, in the
        order of time. Models that test dynamics must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of dynamics")

    def stepped(self, batch: Batch) -> Stepped:
        """How latents go on from the row before by the fitted law. Models whose steps have targets must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of steps")

    def targets_act(self, batch: Batch) -> Tensor:
        """(latent,) log evidence that a latent's law is another in steps of which it is a target. Models whose claims
        need that targets act must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of steps")

    def turned_by(self, batch: Batch) -> Tensor:
        """(latent, latent) by how many nats latents that are turned among each other, in all ways that were tried and
        that mix these two, are less probable at least. Models whose claims need that no turn fits must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of steps")

    def partners(self, batch: Batch) -> Partners:
        """How noise of the rows after is told by the fitted law from that of the rows before. Models that test how
        partners differ must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of pairs")

    def set_apart(self, batch: Batch) -> SetApart:
        """What changed between the rows of pairs. Models whose claims need that one latent does, and is set whatever
        the row before was, must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of pairs")

    def offsets(self) -> Offsets:
        """By how much perturbations move latents. Models whose claims need that offsets span all latents must have
        it."""
        raise TypeError(f"{type(self).__name__} says nothing of offsets")

    def partners_share(self) -> PartnersShare:
        """What rows of a pair share. Models whose claims need that they share the latents must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of what pairs share")

    def kept(self) -> KeptBlocks:
        """What pairs keep of blocks of latents. Models whose claims need that they keep what they say must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of blocks that pairs keep")

    def displaced(self, batch: Batch) -> Tensor:
        """(rows, feature) x as the fitted offsets move the row before; of rows that follow none, x itself. Models that
        test whether offsets are fixed must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of offsets")

    def carries(self) -> Carries:
        """How actions carry latents. Models whose claims need that mechanisms tell latents must have it."""
        raise TypeError(f"{type(self).__name__} says nothing of mechanisms")

    def parent_graphs(self) -> Tensor:
        """(draw, parent, latent) draws of which numbers of an action, and then which latents of the row before, are
        parents of a latent. Models whose claims need that parents tell latents must have it, and `given_parents`."""
        raise TypeError(f"{type(self).__name__} says nothing of parents")

    def given_parents(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows that have parents: latents, their means given these (row, latent), and the parents (row, parent)."""
        raise TypeError(f"{type(self).__name__} says nothing of parents")

    def translate(self, batch: Batch, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and deviation (rows, feature of the view) of a new measurement of this view given all others that each
        row has, and the mean (rows, latent) of the shared latents given these. Models of views must have it."""
        raise TypeError(f"{type(self).__name__} has no views")

    def ties(self) -> Ties:
        """What ties the views. Models whose claims need that they are tied must have it."""
        raise TypeError(f"{type(self).__name__} has no views")

    def sights(self) -> Sights:
        """What views show of the latents. Models that claim intersections of views must have it."""
        raise TypeError(f"{type(self).__name__} has no views that see some of the latents")

    def misfit(self, batch: Batch) -> Any:
        """Deviance of these rows' moments from those of the fitted law, and its degrees of freedom
        (`exact.goodness.Misfit`), or None where they say nothing of the fit."""
        return None

    def noise_of_equations(self, batch: Batch) -> Any:
        """What equations leave of these rows' latents, as they are told best (`constructions.affine.Noise`), or None
        where its law is not known."""
        return None

    def log_evidence(self) -> Tensor | None:
        """() log p(x), all else integrated out, as far as this chain knows the posterior, where chains differ in
        nothing else: chains are weighed by it. Or (part,) what else of the rows' law its latents are read from, summed
        over parts of the rows that are the same in all chains: chains that have less of it than its error explains
        are left out, and the others stacked. None where neither is known."""
        return None

    def evidence_spread(self) -> float:
        """Nats by which `log_evidence` of chains differs beside the rows' chance. That of two draws of a posterior of
        n parameters differs by sqrt(n), a chi-squared variable for each; so does that of bootstrapped chains."""
        return 0.0

    def row_worth(self) -> float:
        """What a row tells of linear equations, in that of one with normal noise of the same scale."""
        return 1.0

    def exact_draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor] | None:
        """`count` draws of the sites that `model` keeps from its own posterior, exact but for Monte Carlo and slow, by
        other means than the fit's; None where there are none but NUTS. `reference` takes them."""
        return None

    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Weights (component,), means and standard deviations (component, latent) of the latents' law where that is a
        mixture of independent Gaussians, or None. Models whose claims need components must have it."""
        return None

    def modulated_law(self) -> str | None:
        """Law of a latent given its environment (a key of `exact.goodness.MODULATED`) where environments modulate it,
        or None. Models whose claims need that they do must have it."""
        return None

    def implied(self) -> Any:
        """Moments of the environments beside those that the fitted equations imply (`exact.goodness.Gaussians`), or
        None where these say nothing of the fit."""
        return None

    def rivals(self, kinds: Sequence[str]) -> dict[str, float]:
        """Log evidence of other `kinds` of interventions (keys of `card.INTERVENTIONS`) less that of the kind told,
        each at its own maximum; empty where that is not known."""
        return {}

    def state_counts(self) -> Tensor | None:
        """(state,) expected rows in every combination of the states of binary latents, or None."""
        return None

    def cdf(self, batch: Batch) -> Tensor | None:
        """(rows, feature) distribution function of each feature's fitted law at the row, in its environment, or None
        where it is not closed."""
        return None

    def nonlinearity(self) -> Tensor | None:
        """(parent, child) log evidence that the child's equation is nonlinear where the parent is in it, or None."""
        return None

    def escaped(self, batch: Batch) -> Tensor | None:
        """(rows,) probability that a row's intervention did nothing to it, or None for models without escapees."""
        return None

    @property
    def actions_count(self) -> int:
        """How many numbers an action of `predict_action` has; 0 where the model knows no actions."""
        return 0

    def predict_action(self, action: Tensor, noise: Tensor) -> Tensor:
        """(rows, feature) mean of x under each row of `action` (rows, actions_count), averaged over `noise`
        (draws, latent), standard normal draws of what the action leaves open of the latents."""
        raise TypeError(f"{type(self).__name__} has no actions")

    def impute(self, batch: Batch, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Student's law of a new row at each of these places (place,) of the grid of pairs, batch * environments +
        environment, given all rows of `batch`: mean and scale (place, feature), degrees of freedom ()."""
        raise TypeError(f"{type(self).__name__} imputes nothing")

    def draw_profiles(self, batch: Batch, places: Tensor, draws: int) -> Tensor:
        """(draw, feature, place) profiles at these places (place,) of the grid of pairs, drawn jointly given all
        rows of `batch`."""
        raise TypeError(f"{type(self).__name__} imputes nothing")

    def auto_encode(self, x: Tensor) -> Tensor:
        """What becomes of rows x (.., feature), in the program's units, on their way through latents."""
        raise TypeError(f"{type(self).__name__} is no auto-encoder")

    def heavy_rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """(rows, latent) latents less their environment's centre, (rows,) their squared distances from it in units of
        the scatter, () degrees of freedom of the law that rows are of, or None where it is not Student's."""
        return None

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor | None:
        """(rows,) log p(x_i | global sites), rows' own latents summed out, where that is closed; the story says what it
        is in every other case."""
        return None
