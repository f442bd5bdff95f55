"""Sparse mechanism shifts: which structural equations differ in which environment, and the graph they are on.

    change ~ N(-1.4, 1), edge ~ N(0, 1): log odds that a mechanism differs, and of an edge        (), ()
    order ~ uniform, graph[j, k] ~ Bernoulli(edge) if j precedes k                  (parent, child)
    targets[e, k] ~ Bernoulli(change): environment e has a mechanism k of its own   (env, latent)
    grid_k ~ uniform: the kernel's width and t_k                                    (latent,)
    precision_mk = 1 / s_mk^2 ~ Gamma(1, .1)                                        (mechanism, latent)
    w_mkb ~ N(0, (t_k s_mk)^2)                                                      (mechanism, latent, basis)
    z_i,k ~ N(sum_b w_mkb phi_b(z_i,parents), s_mk^2), m = m(e_i, k)                (data, latent)
    x_i = z_i                                                                       (data, feature)

m(e, k) is environment e's own mechanism where it is a target of k, else the one that the others share; a `reference`
environment is no target. phi are 1, the parents and the basis of a Gaussian process of the parents with a squared
exponential kernel, through inducing points (subset of regressors; mechanism="linear" leaves them out); features enter
them in units of their deviation over all rows, and so do w and s. `coefficients` and `noise` are w and s of each
environment, `base_coefficients` and `base_noise` the shared ones.

`model` keeps `change` and `edge`, with a normal guide, and sums out the rest exactly: w and s by conjugacy, width and
t over the grid, targets over all subsets of environments, graphs and orders by a dynamic program over subsets. The data
enter through the second moments of phi and z in each environment, gathered once for each set of parents. `recover`
draws the rest given the two, exactly: order, graph, grid, targets, precision, w. Coefficients of absent parents and
mechanisms of no environment have their prior.

*Identified:* nothing is to be found of the latents, all are observed. Targets, and the graph exactly, if the equations
are nonlinear with additive Gaussian noise; if they are linear, the graph up to Markov equivalence, and targets where no
equivalent graph needs as few. Targets are relative to the `reference` environment, or without one to the largest group
of environments that share a mechanism.

Perry, von Kuegelgen & Schoelkopf (2022), Causal discovery in heterogeneous environments under the sparse mechanism
shift hypothesis; Huang et al. (2020), Causal discovery from heterogeneous/nonstationary data; Chen, Bello, Aragam &
Ravikumar (2023), iSCAN.

*Differs from the paper in* being a posterior over graphs and shifts together: the papers test or score one conditional
at a time (Perry: the graph with the fewest shifts of an equivalence class; iSCAN: shifts between two environments,
without the graph).

Longer than other models because its story has every quantity that the fit sums out: shifts, grid and mechanisms, and a
read-out for each.

*For a variant, copy this file and change* `_basis`: what equations may look like.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import Categorical, Law, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import orders, regression, sharing
from pyrocrl.lab.studies.latent_graphs import ShiftedMechanisms
from pyrocrl.options import Bounds, Positive
from pyrocrl.parts.observed_equations import ObservedLatents
from pyrocrl.program import check_rows

MOST_LATENTS = 7  # moments are kept for each of the 2**latents sets of parents
WIDTHS = (0.5, 1.0, 2.0)  # of the kernel, in deviations of one parent, times sqrt(parents)
RATIOS = (1.0, 10.0, 100.0)  # t^2: variance of a weight over that of the noise
CANDIDATES = 1500  # rows from which inducing points are taken

ADDITIVE = "equations are nonlinear with additive Gaussian noise"
STRAIGHT = "equations are linear with additive Gaussian noise"
FEWEST = "no Markov equivalent graph explains the environments by as few shifts"
SUFFICIENT = "no unobserved variable acts on two observed ones"
SHARED = "the environments that share a mechanism are more than those that have any other one in common"
COMPARED = ("observational_environment",)
NONLINEAR, LINEAR = {"mechanism": "nonlinear"}, {"mechanism": "linear"}


class MechanismShift(ObservedLatents, Program):
    card = ModelCard(
        name="mechanism_shift",
        title="Sparse mechanism shifts",
        family="interventions",
        summary="Several environments in which few structural equations differ: which ones in which environment, and "
        "the graph, by exact sums over both.",
        when=(
            "the causal variables themselves are measured, seven at most, in two to ten environments between which "
            "few mechanisms differ",
            "the variables are latent, something unobserved acts on two of them, or most mechanisms change from one "
            "environment to another",
        ),
        assumes=(
            "latents are observed: x = z",
            "z follows structural equations with additive Gaussian noise and without cycles",
            "all environments have the same graph, and few equations differ between them",
        ),
        claims=(
            Claim("targets", (), (SUFFICIENT, ADDITIVE), COMPARED, NONLINEAR | {"reference": True}),
            Claim("targets", (), (SUFFICIENT, ADDITIVE, SHARED), (), NONLINEAR | {"reference": False}),
            Claim("graph", (), (SUFFICIENT, ADDITIVE), ("nonlinear_equations",), NONLINEAR),
            Claim("targets", (), (SUFFICIENT, STRAIGHT, FEWEST), COMPARED, LINEAR | {"reference": True}),
            Claim("targets", (), (SUFFICIENT, STRAIGHT, FEWEST, SHARED), (), LINEAR | {"reference": False}),
            Claim("graph", ("markov equivalence",), (SUFFICIENT, STRAIGHT), (), LINEAR),
        ),
        references=(
            Reference(
                "Perry, von Kuegelgen & Schoelkopf",
                2022,
                "Causal discovery in heterogeneous environments under the sparse mechanism shift hypothesis",
                "NeurIPS",
                "https://arxiv.org/abs/2206.02013",
            ),
            Reference(
                "Huang, Zhang, Zhang, Ramsey, Sanchez-Romero, Glymour & Schoelkopf",
                2020,
                "Causal discovery from heterogeneous/nonstationary data",
                "JMLR",
                "https://jmlr.org/papers/v21/19-232.html",
            ),
            Reference(
                "Chen, Bello, Aragam & Ravikumar",
                2023,
                "iSCAN: identifying causal mechanism shifts among nonlinear additive noise models",
                "NeurIPS",
                "https://arxiv.org/abs/2306.17361",
            ),
        ),
        differs=(
            "a posterior over graphs and shifts together in place of tests of one conditional at a time",
            "any number of environments from two to ten, with or without one to compare with",
        ),
        status="stable",
        needs_env=True,
        targets=("unknown",),
    )
    recipe = Recipe.unannealed(
        epochs=150, batch_size=None, lr=0.05, held_out=0.05, patience=None, keep="last", dtype=torch.float64, chains=4
    )
    constants = ("mean", "spread", "centre")
    uses_rows = False
    new_rows = True
    knows_interventions = True
    sites = {
        "z": Site(("data", "latent")),
        "graph": Site(("parent", "child"), discrete=True),
        "targets": Site(("env", "latent"), discrete=True),
        "coefficients": Site(("env", "latent", "basis")),
        "noise": Site(("env", "latent")),
        "base_coefficients": Site(("latent", "basis")),
        "base_noise": Site(("latent",)),
        "width": Site(("latent",)),
        "precision": Site(("mechanism", "latent")),
        "w": Site(("mechanism", "latent", "basis")),
    }

    def __init__(
        self,
        features: Annotated[int, Bounds(2, MOST_LATENTS), "columns of x, which are the latents; read off the data"],
        latents: Annotated[int, Bounds(2, MOST_LATENTS), "as many as features"],
        environments: Annotated[int, Bounds(2, sharing.MAX_ENVIRONMENTS), "how many; read off the data"],
        mechanism: Literal["nonlinear", "linear"] = "nonlinear",
        reference: bool = True,
        inducing: Annotated[int, Bounds(2, 1000)] = 48,
        change_log_odds: float = -1.4,
        change_sd: Positive = 1.0,
        edge_log_odds: float = 0.0,
        edge_sd: Positive = 1.0,
    ) -> None:
        """mechanism: form of the structural equations. reference: whether environment 0 is what the others are compared
        with. inducing: inducing points of a nonlinear mechanism. change_log_odds, change_sd: prior mean and deviation
        of the log odds that a mechanism differs; edge_log_odds, edge_sd: the same of an edge.

        Raises InputError unless latents = features, of 2 to 7, and there are 2 to 10 environments.
        """
        super().__init__()
        if latents != features:
            reject("latents", repr(latents), f"{features}, as many as features: the latents are observed")
        self.change_prior, self.edge_prior = (change_log_odds, change_sd), (edge_log_odds, edge_sd)
        self.nonlinear = mechanism == "nonlinear"
        count = inducing if self.nonlinear else 0
        self.widths = WIDTHS if self.nonlinear else WIDTHS[:1]
        differs, double = sharing.subsets(environments, reference), torch.float64
        size, widths = 1 + latents + count + latents, len(self.widths)  # of (phi, z)
        self.loc = nn.Parameter(torch.tensor([change_log_odds, edge_log_odds]))
        self.log_scale = nn.Parameter(torch.full((2,), -1.0))
        self.register_buffers(
            centre=torch.zeros(count, latents, dtype=double),  # inducing points, standardised
            mean=torch.zeros(latents, dtype=double),
            spread=torch.ones(latents, dtype=double),
            # sums of products of (phi, z) over the rows of each environment, by set of parents and width
            moments=torch.zeros(2**latents, widths, environments, size, size, dtype=double),
            count=torch.full((environments,), 2.0, dtype=double),
            # log evidence of the rows by child, set of parents, (width, ratio), subset of environments that differ
            evidence=torch.zeros(latents, 2**latents, widths * len(RATIOS), len(differs), dtype=double),
            differs=differs.clone(),
        )

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        d, envs = self.config["latents"], self.config["environments"]
        change = pyro.sample("change", self._log_odds(*self.change_prior))  # ()
        edge = pyro.sample("edge", self._log_odds(*self.edge_prior))  # ()
        edges = orders.edge_log_odds(d, edge)
        order = pyro.sample("order", orders.Order(edges))  # (latent,)
        graph = pyro.sample("graph", orders.Graph(edges, order))  # (parent, child)
        latent = pyro.plate("latent", d, dim=-1)
        with pyro.plate("env", envs, dim=-2), latent:  # a reference differs nowhere
            chance = change.double().sigmoid() * self.differs.double().amax(0)[:, None]
            targets = pyro.sample("targets", dist.Bernoulli(chance))  # (env, latent)
        with latent:
            grid = pyro.sample("grid", dist.Categorical(logits=chance.new_zeros(self.evidence.shape[2])))
        width, ratio = self._cell(grid)  # (latent,)
        with pyro.plate("mechanism", 1 + envs, dim=-2), latent:  # the shared one, then each environment's own
            like = torch.full_like(ratio, regression.SHAPE)
            precision = pyro.sample("precision", dist.Gamma(like, regression.RATE))  # (mechanism, latent)
            scale = (ratio / precision).sqrt()[..., None].expand(-1, -1, self.moments.shape[-1] - d)
            w = pyro.sample("w", Normal(torch.zeros_like(scale), scale).to_event(1))  # (mechanism, latent, basis)
        self._tell(targets, width, w, precision)
        with self.rows(batch):
            own = self._acting(targets, batch)  # (rows, latent)

            def equation(k: int, z: Tensor) -> Normal:
                return self._equation(k, z, graph[:, k], width[k], w[own[:, k], k], precision[own[:, k], k])

            z = self.along(order.tolist(), equation, w.new_zeros(len(batch), d), batch.x)  # (rows, latent)
            pyro.sample("x", dist.Delta(z, event_dim=1), obs=batch.x)  # (rows, feature)

    def model(self, batch: Batch) -> None:
        change = pyro.sample("change", self._log_odds(*self.change_prior))
        edge = pyro.sample("edge", self._log_odds(*self.edge_prior))
        log_jacobian = -self.count.sum() * self.spread.log().sum()  # of standardising
        total = self._known.log_total(change, edge) + log_jacobian
        law = Law((), (len(batch), self.config["features"]), lambda _: total)
        pyro.sample("x", law, obs=batch.x)  # all rows at once, by their moments

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        change, edge = kept["change"], kept["edge"]
        scores = self._known.scores(change, edge)
        order = pyro.sample("order", orders.Order(scores))
        chosen = orders.parent_sets(pyro.sample("graph", orders.Graph(scores, order)))  # (latent,)
        node = torch.arange(len(chosen), device=chosen.device)
        joint = self._known.joint(change)[node, chosen]  # (latent, grid, subset)
        latent = pyro.plate("latent", len(node), dim=-1)
        with latent:
            grid = pyro.sample("grid", Categorical(logits=joint.logsumexp(-1)))
        targets = pyro.sample("targets", sharing.Targets(joint[node, grid], self.differs.double()))
        own = self.moments.double()[chosen, grid // len(RATIOS)]  # (latent, env, ...)
        known = sharing.regressions(own, self.count.double(), targets, self._cell(grid)[1])
        with pyro.plate("mechanism", len(known.rate), dim=-2), latent:
            precision = pyro.sample("precision", known.precision())
            pyro.sample("w", known.weights(precision))

    def guide(self, batch: Batch) -> None:
        for i, name in enumerate(("change", "edge")):
            pyro.sample(name, Normal(self.loc[i], self.log_scale[i].exp()))

    def _log_odds(self, mean: float, sd: float) -> Normal:
        return Normal(torch.full_like(self.loc[0], mean), torch.full_like(self.loc[0], sd))

    def _cell(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Width and t^2 (latent,) by the cells of the grid (latent,)."""
        widths, ratios = (torch.tensor(v, dtype=torch.float64, device=grid.device) for v in (self.widths, RATIOS))
        return widths[grid // len(RATIOS)], ratios[grid % len(RATIOS)]

    def _basis(self, z: Tensor, mask: Tensor, width: Tensor) -> Tensor:
        """phi (rows, ..., basis) of standardised z (rows, ..., latent): mask (..., latent) says which are parents."""
        size = mask.sum(-1, keepdim=True)
        unit = size.clamp_min(1.0).sqrt()
        linear = z * mask / unit
        parts = [torch.ones_like(linear[..., :1]), linear]
        if self.nonlinear:
            white = regression.inducing_basis(z, self.centre.double(), mask / unit / width[..., None])
            parts.append(white * (size > 0))
        return torch.cat(parts, -1)

    def _equation(self, k: int, z: Tensor, mask: Tensor, width: Tensor, w: Tensor, precision: Tensor) -> Normal:
        """Law of latent k (rows,) given z (rows, latent): mask (latent,) its parents; w (rows, basis) and precision
        (rows,) of the mechanism that each row follows."""
        mean, spread = self.mean.double(), self.spread.double()
        phi = self._basis((z.double() - mean) / spread, mask, width)
        return Normal(mean[k] + spread[k] * (phi * w).sum(-1), spread[k] * precision.rsqrt())

    def _acting(self, targets: Tensor, batch: Batch) -> Tensor:
        """(rows, latent) the mechanism that rows follow: the shared one, 0, or 1 + the environment whose own it is; of
        several that act together, of the last."""
        if batch.together is not None:
            hit, last = sharing.acting_together(targets, batch.together)
            return (hit * (1 + last)).expand(len(batch), -1)
        return (targets[batch.env] > 0.5) * (1 + batch.env[:, None])

    def _tell(self, targets: Tensor, width: Tensor, w: Tensor, precision: Tensor) -> None:
        """Read-outs: what each environment has, and what they share."""
        hit, noise = targets > 0.5, precision.rsqrt()
        pyro.deterministic("width", width)  # (latent,)
        pyro.deterministic("coefficients", torch.where(hit[..., None], w[1:], w[:1]))  # (env, latent, basis)
        pyro.deterministic("noise", torch.where(hit, noise[1:], noise[:1]))  # (env, latent)
        pyro.deterministic("base_coefficients", w[0])  # (latent, basis)
        pyro.deterministic("base_noise", noise[0])  # (latent,)

    @property
    def _known(self) -> sharing.Evidence:
        return sharing.Evidence(self.evidence.double(), self.differs.double(), self.config["reference"])

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities, exact at the guide's mean of the log odds."""
        return orders.edge_probabilities(self._known.scores(*self.loc))

    @torch.no_grad()
    def targets_matrix(self) -> Tensor:
        """(env, latent) probabilities that a mechanism differs, exact at the guide's mean of the log odds."""
        return self._known.target_probabilities(*self.loc)

    @torch.no_grad()
    def nonlinearity(self) -> Tensor | None:
        """(parent, child) log evidence of the nonlinear basis less that of its linear part, over parents' sets."""
        if not self.nonlinear:
            return None
        d, count, differs = self.config["latents"], self.count.double(), self.differs.double()
        straight = [*range(1 + d), *range(self.moments.shape[-1] - d, self.moments.shape[-1])]
        own = self.moments.double()[:, :1][..., straight, :][..., straight]
        plain = self._known._replace(table=sharing.regression_evidence(own, count, differs, RATIOS))
        known = self._known.joint(self.loc[0]).flatten(2).logsumexp(-1)  # (child, set)
        gain = known - plain.joint(self.loc[0]).flatten(2).logsumexp(-1)
        there = orders.members(d, gain.device).mT[:, None].double()  # (parent, 1, set)
        share = (self._known.scores(*self.loc) + there.log()).softmax(-1).nan_to_num()  # (parent, child, set)
        return (share * gain).sum(-1)

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | graph, targets, weights, noise)."""
        if "precision" not in sites:
            sites = sites | self.recovered(batch, sites)
        (width, _), own, x = self._cell(sites["grid"]), self._acting(sites["targets"], batch), batch.x.double()
        graph, w, precision = sites["graph"], sites["w"], sites["precision"]
        laws = [
            self._equation(k, x, graph[:, k], width[k], w[own[:, k], k], precision[own[:, k], k])
            for k in range(x.shape[1])
        ]
        return torch.stack([law.log_prob(x[:, k]) for k, law in enumerate(laws)]).sum(0)

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        return super().from_data(data, **({"latents": data.features, "reference": data.control is not None} | options))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Inducing points among rows drawn at random; then all evidence, in closed form."""
        batch = data.tensors(dtype=torch.float64)
        self.put(mean=batch.x.mean(0), spread=batch.x.std(0))
        z = (batch.x - self.mean) / self.spread
        self.count.copy_(torch.bincount(batch.env, minlength=len(self.count)))
        check_rows(data, 2)
        likely = self.count.double().reciprocal()[batch.env]  # evenly from all environments
        some = z[torch.multinomial(likely, min(CANDIDATES, len(z)), generator=generator)]
        self.put(centre=regression.spread_out(some, len(self.centre)))
        for s, mask in enumerate(orders.members(z.shape[1]).double()):
            for i, width in enumerate(self.widths):
                values = torch.cat([self._basis(z, mask, torch.tensor(width)), z], -1)
                for e in range(len(self.count)):
                    own = values[batch.env == e]
                    self.moments[s, i, e] = own.mT @ own
        self.evidence.copy_(sharing.regression_evidence(self.moments, self.count, self.differs, RATIOS))
        self.loc.add_(0.3 * torch.randn(2, generator=generator))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("mechanism_shift2024", seed=seed, samples=300, latents=3, environments=4, shifts=1, reference=True)
        return cls.from_data(data, inducing=16), data

    studies = (ShiftedMechanisms("mechanism_shift2024", seeds=10, held_out=0.1, identified=False),)


if __name__ == "__main__":
    run(MechanismShift)
