"""Structured ICA of a linear mixing: independent sources, told apart by dynamics that switch between states.

    transition_kr ~ Dirichlet(2, and 10 more for staying)                             (latent, state before, state)
    intercept_ks ~ N(0, 1);  partial_ksl ~ Uniform(-1, 1)                             (latent, state), (.., lag)
    ratio_ks ~ LogNormal(0, 3^2) for s > 0;  scale_ks = ratio_ks, scale_k0 = 1        (latent, state)
    spread_k ~ LogNormal(1, 2^2)                                                      (latent,)
    mixing A_jk ~ N(0, 1)                                                             (latent, latent)
    state_tk ~ transition[state_t-1,k], any in a series' first row                    (data, latent)
    z_tk ~ N(intercept_ks + sum_l coefficient_ksl z_t-l,k, scale_ks^2), s = state_tk  (data, latent)
    x_t = lift A z_t + offset + r_t,  r_t ~ N(0, tau^2) off the span of A             (data, feature)

coefficient are those of the stationary autoregression with these partial autocorrelations; in a series' first rows,
as many as lags, z_tk ~ N(0, spread_k^2). lift, offset and tau are those of the principal subspace of x, in which there
is no noise: z are functions of x. Series may be of any lengths; where rows are left out, those after them begin anew.

`model` sums out all sequences of states, exactly (`exact.switching`). Each chain climbs to the most probable unmixing
from a random one by expectation-maximisation (`constructions.sources`); its guide draws unmixing and dynamics together
from a normal approximation about the maximum.

*Identified:* latents up to permutation, scale and shift (of x the mean is taken off), if they are independent of each
other and no two have the same dynamics, up to scale. Covariances between rows a few steps apart are then diagonal in
the latents alone (Belouchrani et al. 1997); states that change tell apart what these do not (Hälvä et al. 2021). Two
Gaussian sources with one spectrum, or without memory, may be rotated into each other: evidence against dynamics that
two latents share shows it. Noise of features among the latents is not modelled: the test of dynamics and, with more
features than latents, the noise in the other directions tell of it; with as many the verdict rests on there being none.

Hälvä, Le Corff, Lehéricy, So, Zhu, Gassiat & Hyvärinen (2021), Disentangling identifiable features from noisy data with
structured nonlinear ICA; Belouchrani, Abed-Meraim, Cardoso & Moulines (1997), A blind source separation technique using
second-order statistics.

*Differs from the paper in* a linear mixing without noise within its span, which makes the sum over states exact; a
posterior over unmixing and dynamics in place of a maximum.

Longer than other models because states are drawn back given z, and dynamics read out for their tests.

*For a variant, copy this file and change* `story`: the law of a source given its state, and with it the density of rows
in `pyrocrl.exact.switching`.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import sources
from pyrocrl.constructions.sources import RATIO, START, STICK
from pyrocrl.constructions.subspaces import FLOOR, frame
from pyrocrl.dists import Law, LogNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import switching
from pyrocrl.exact.switching import Dynamics, Timeline
from pyrocrl.lab.studies.linked_rows import SwitchingSources
from pyrocrl.options import Size, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.parts.unmixed import Unmixed, frame_buffers
from pyrocrl.program import Features, Latents, check_sizes

DRAWS = 200
LAW = "each latent is an autoregression that switches between states, independent of all others"
NOISELESS = "features have no noise of their own among the latents"
NEEDS = ("dynamics_apart",)


class SnicaLin(Unmixed, Program):
    card = ModelCard(
        name="snica_lin",
        title="Structured ICA, linear mixing",
        family="time",
        summary="Independent sources of time series, told apart by dynamics of their own that switch between states.",
        when=(
            "rows are steps of one or more series and latents are independent, each with dynamics of its own",
            "latents drive each other, or features have noise of their own that matters beside innovations",
        ),
        assumes=("x is linear in the latents", LAW, NOISELESS),
        claims=(Claim("latents", ("permutation", "scale", "shift"), (LAW, NOISELESS), NEEDS),),
        references=(
            Reference(
                "Hälvä, Le Corff, Lehéricy, So, Zhu, Gassiat & Hyvärinen",
                2021,
                "Disentangling identifiable features from noisy data with structured nonlinear ICA",
                "NeurIPS",
                "https://arxiv.org/abs/2106.09620",
            ),
            Reference(
                "Belouchrani, Abed-Meraim, Cardoso & Moulines",
                1997,
                "A blind source separation technique using second-order statistics",
                "IEEE Transactions on Signal Processing",
                "https://doi.org/10.1109/78.554307",
            ),
        ),
        differs=(
            "a linear mixing, without noise within its span",
            "a posterior over unmixing and dynamics in place of a maximum",
        ),
        needs_series=True,
        approximate="Unmixing and dynamics are drawn from a normal approximation about their maximum; states given "
        "these are exact.",
    )
    counted = "evidence"
    recipe = Recipe.unannealed(epochs=1, batch_size=None, lr=1e-4, held_out=0.05, dtype=torch.float64, chains=4)
    checks = {"dynamics": (LAW,), "noiseless": (NOISELESS,), "factors": ()}
    new_rows = True
    labels = {"state": ("before", "after", "states")}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "state": Site(("data", "latent"), discrete=True),
        "unmixing": Site(("latent", "feature"), {"latent": 1}, unit=-1),
        "loadings": Site(("feature", "latent"), {"latent": -1}, unit=1),
        "transition": Site(("latent", "before", "after")),
        "coefficient": Site(("latent", "states", "lag")),
        "scale": Site(("latent", "states"), {"latent": "spread"}),
    }

    def __init__(self, features: Features, latents: Latents, states: Size = 2, lags: Size = 2) -> None:
        """states: of each latent's dynamics, from those of the largest innovations on; lags: rows before on which a row
        depends.

        Raises InputError for fewer than 2 latents, or more than features.
        """
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        check_memory("states", states, 8.0 * DRAWS * latents * states * (states + lags))
        square = (latents, latents)
        self.spread = LogNormalBlock(latents)
        shapes = {"transition": (latents, states, states), "intercept": (latents, states)}
        shapes |= {"partial": (latents, states, lags), "ratio": (latents, states - 1), "mixing": square}
        self.drawn = DrawnBlock(DRAWS, **shapes).double()
        self.drawn.transition.fill_(1 / states)
        self.drawn.ratio.fill_(1.0)
        self.drawn.mixing.copy_(torch.eye(latents))
        self.register_buffers(
            **frame_buffers(features, latents),
        )

    # -- the story, what is fitted, and the way back -----------------------------------------------------------

    def _globals(self, batch: Batch) -> tuple[Dynamics, Tensor]:
        """What samples of all sites but rows' own make."""
        d, states, lags = (self.config[name] for name in ("latents", "states", "lags"))
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        stay = 2.0 * one + STICK * torch.eye(states, dtype=batch.dtype, device=batch.device)
        out = {"transition": pyro.sample("transition", dist.Dirichlet(stay.expand(d, states, states)).to_event(2))}
        out["intercept"] = pyro.sample("intercept", Normal(0 * one.expand(d, states), one).to_event(2))
        out["partial"] = pyro.sample("partial", dist.Uniform(-one.expand(d, states, lags), one).to_event(3))
        out["ratio"] = pyro.sample("ratio", LogNormal(0 * one.expand(d, states - 1), RATIO * one).to_event(2))
        out["spread"] = pyro.sample("spread", LogNormal(START[0] * one.expand(d), START[1] * one).to_event(1))
        out["mixing"] = pyro.sample("mixing", Normal(0 * one.expand(d, d), one).to_event(2))
        return self._law(out)

    @staticmethod
    def _law(sites: Mapping[str, Tensor]) -> tuple[Dynamics, Tensor]:
        """Dynamics, and the unmixing of y (latent, latent)."""
        own = {name: value.double() for name, value in sites.items()}
        scale = torch.cat([torch.ones_like(own["spread"][..., None]), own["ratio"]], -1)
        coefficient = switching.coefficients(own["partial"])
        law = Dynamics(own["intercept"], coefficient, scale, own["transition"], own["spread"])
        return law, torch.linalg.inv(own["mixing"])

    def story(self, batch: Batch) -> None:
        law, unmixing = self._globals(batch)
        pyro.deterministic("unmixing", unmixing @ self.project.double())
        pyro.deterministic("loadings", self.lift.double() @ torch.linalg.inv(unmixing))
        pyro.deterministic("coefficient", law.coefficient)
        pyro.deterministic("scale", law.scale)
        line = Timeline(*batch.in_time())
        told = None if batch.x is None else self._y(batch) @ unmixing.mT
        with self.rows(batch):
            state = pyro.sample("state", switching.StateChains(law.transition, line))  # (rows, latent)
            start = torch.zeros(len(batch), self.config["latents"], dtype=unmixing.dtype, device=batch.device)
            z = self.along(
                range(self.config["latents"]),
                lambda k, _: switching.Autoregression(state[:, k], line, law, k),
                start,
                told,
            )  # (rows, latent)
            pyro.sample("x", self._mixed(z, unmixing), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        law, unmixing = self._globals(batch)
        with self.rows(batch):
            rows = Law((len(batch),), (self.config["features"],), lambda _: self._log_likelihood(batch, law, unmixing))
            pyro.sample("x", rows, obs=batch.x)

    def recover(self, batch: Batch, **kept: Tensor) -> None:
        law, unmixing = self._law(kept)
        share = self._filtered(batch, law, unmixing).share
        with self.rows(batch):
            pyro.sample("state", switching.StateChainsGiven(share, law.transition, Timeline(*batch.in_time())))

    def guide(self, batch: Batch) -> None:
        pyro.sample("spread", self.spread().to_event(1))
        self.drawn.sample()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_t | rows of its series before, global sites); states summed out."""
        return self._log_likelihood(batch, *self._law(sites))

    def _log_likelihood(self, batch: Batch, law: Dynamics, unmixing: Tensor) -> Tensor:
        z = self._y(batch) @ unmixing.mT
        log = self._filtered(batch, law, unmixing).log.sum(-1)
        volume: Tensor = self._mixed(z, unmixing).log_prob(batch.x.double())
        return Timeline(*batch.in_time()).back(log) + volume

    def _filtered(self, batch: Batch, law: Dynamics, unmixing: Tensor) -> switching.Filtered:
        line = Timeline(*batch.in_time())
        z = line.lay(self._y(batch) @ unmixing.mT)
        return switching.filtered(switching.log_emission(z, line.since, law), line.since, law.transition)

    # -- read-outs ---------------------------------------------------------------------------------------------

    def _mode(self) -> Dynamics:
        """The dynamics at the medians of the draws."""
        sites = {name: getattr(self.drawn, name).sort(0).values[DRAWS // 2] for name in self.drawn.names}
        sites["transition"] = sites["transition"] / sites["transition"].sum(-1, keepdim=True)
        return self._law(sites | {"spread": self.spread.loc.exp()})[0]

    @torch.no_grad()
    def state_shares(self, batch: Batch) -> Tensor:
        """(rows, latent, state) posterior probabilities."""
        z, since, law = self._in_time(batch)
        share = switching.smoothed(switching.log_emission(z, since, law), since, law.transition).share
        return Timeline(*batch.in_time()).back(share)

    def dynamics_apart(self, batch: Batch) -> tuple[Tensor, int]:
        return switching.evidence_apart(*self._in_time(batch))

    def innovations_below(self, batch: Batch) -> Tensor:
        return switching.below(*self._in_time(batch))

    def _in_time(self, batch: Batch) -> tuple[Tensor, Tensor, Dynamics]:
        """Latents in the order of time, how many rows are right before each, and the dynamics' medians."""
        line = Timeline(*batch.in_time())
        return line.lay(self._y(batch) @ self.unmixing.double().mT), line.since, self._mode()

    # -- from data ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Expectation-maximisation from a random unmixing, then draws about its maximum."""
        batch, d = data.tensors(self.project.device, torch.float64), self.config["latents"]
        states, lags = self.config["states"], self.config["lags"]
        order, since = batch.in_time()
        least = 2 * d * (d + states * (lags + 2))
        if int((since >= lags).sum()) < least:
            reject("series", f"{int((since >= lags).sum())} rows after {lags} others", f"{least} or more")
        self.put(**frame(batch.x, torch.ones_like(batch.env, dtype=torch.bool), d, FLOOR)._asdict())
        y = self._y(batch)[order]
        found = sources.best(y, since, states, lags, generator)
        with torch.enable_grad():
            drawn = sources.draws(found, y, since, DRAWS, generator)
        self.put(unmixing=drawn.unmixing)
        for name in self.drawn.names:
            getattr(self.drawn, name).copy_(drawn.sites[name])
        spread = drawn.sites["spread"].log()
        self.spread.set(spread.mean(0), spread.std(0).clamp_min(1e-3))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("halva2021_linear", seed=seed, rows=300, latents=2, features=5, series=3)
        return cls.from_data(data), data

    studies = (
        SwitchingSources("halva2021_linear", {"rows": 20_000}),
        SwitchingSources("halva2021_linear", {"rows": 4_000, "latents": 6}),
        SwitchingSources("halva2021_linear", {"rows": 4_000, "noise": 0.1}),
        SwitchingSources("halva2021_linear", {"rows": 4_000, "sources": "autoregressive"}),
    )


if __name__ == "__main__":
    run(SnicaLin)
