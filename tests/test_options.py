"""What a model assumes is an option: recorded in its config, refused where it makes no sense, and felt by the fit."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pyro
import pytest
import torch

from pyrocrl import InputError, Program, simulate, zoo
from pyrocrl.parts import escapees
from pyrocrl.parts.latent_sem import LatentSEM

DATA: dict[str, dict[str, Any]] = {
    "causal_flow": {"name": "cauca", "samples": 200, "latents": 2, "layers": 1},
    "discrepancy_vae": {"name": "zhang2023", "samples": 100, "latents": 2, "mixing": "linear", "features": 4},
    "do_polynomial": {"name": "ahuja2023", "samples": 300, "latents": 2, "features": 8},
    "linear_sem_lin": {"name": "squires2023_hard", "samples": 200, "latents": 2, "features": 4},
    "linear_sem_nonlin": {"name": "buchholz2023_hard", "samples": 200, "latents": 2},
    "mechanism_shift": {"name": "mechanism_shift2024", "samples": 100, "latents": 2, "environments": 2, "shifts": 1},
    "invariant_prediction": {"name": "peters2016", "rows": 20, "latents": 3},
    "observed_dag": {"name": "squires2020", "samples": 20, "latents": 3, "settings": 1, "told": False},
    "sparse_vae": {"name": "moran2022", "rows": 200},
    "unknown_targets": {"name": "jiang2023", "samples": 300, "latents": 2, "features": 6},
}
SMALL: dict[str, dict[str, Any]] = {
    "discrepancy_vae": {"variation": 0.01},
    "causal_flow": {"width": 4, "steps": 2},
    "linear_sem_lin": {"escapees": True},
    "linear_sem_nonlin": {"width": 4, "steps": 2},
    "mechanism_shift": {"inducing": 4},
    "sparse_vae": {"latents": 2, "decoder": "linear"},
}
# model, option, another value than its default
FELT = [
    ("causal_flow", "correlation_error", 0.2),
    ("discrepancy_vae", "unmixed", 9.0),  # where no map is drawn, see SMALL
    ("do_polynomial", "fixed_sd", 0.2),
    ("linear_sem_lin", "escape_alpha", 30.0),
    ("linear_sem_nonlin", "correlation_error", 0.2),
    ("mechanism_shift", "change_log_odds", 1.0),
    ("mechanism_shift", "edge_log_odds", -3.0),
    ("invariant_prediction", "neighbours", 0.5),
    ("invariant_prediction", "target_probability", 0.5),
    ("observed_dag", "neighbours", 0.5),
    ("observed_dag", "target_probability", 0.5),
    ("sparse_vae", "slab", 0.01),
    ("unknown_targets", "mask_probability", 0.01),
    ("unknown_targets", "level_precision", 5.0),
    ("unknown_targets", "noise_shape", 90.0),
    ("unknown_targets", "noise_rate", 9.0),
    ("unknown_targets", "equivalent_sample_size", 30.0),
]


def begun(name: str, **options: Any) -> Program:
    """A program that was started on small data (but one whose start takes seconds) and finished, and not trained."""
    data = simulate.draw(**DATA[name], seed=0)
    torch.manual_seed(0)
    program = zoo.get(name).from_data(data, **SMALL.get(name, {}), **options).double()
    with torch.no_grad():
        for step in (program.finish,) if name == "discrepancy_vae" else (program.initialise, program.finish):
            step(data, torch.Generator().manual_seed(0))
    return program


def numbers(program: Program) -> list[torch.Tensor]:
    """The state and the read-outs."""
    readouts = (program.graph(), program.mask(), program.targets_matrix())
    out = [*program.state_dict().values(), *(part for part in readouts if part is not None)]
    assert not any(part.isnan().any() for part in out)
    return out


def same(program: Program, other: Program) -> bool:
    return all(torch.equal(a, b) for a, b in zip(numbers(program), numbers(other), strict=True))


base = cache(begun)


@pytest.mark.parametrize(("name", "option", "value"), FELT)
def test_an_assumption_is_recorded_and_felt(name: str, option: str, value: float) -> None:
    program, other = base(name), begun(name, **{option: value})
    assert program.config[option] != value
    assert other.fresh().config[option] == value
    assert not same(program, other)


def test_what_is_felt_is_the_option() -> None:
    """Without a change of options nothing moves."""
    for name in ("mechanism_shift", "sparse_vae", "unknown_targets", "do_polynomial", "discrepancy_vae"):
        assert same(base(name), begun(name)), name


BOUNDED = [(name, option) for name, option, _ in FELT if "log_odds" not in option]


@pytest.mark.parametrize(
    ("name", "option"),
    [*BOUNDED, ("mechanism_shift", "edge_sd"), ("observed_dag", "edge_sd"), ("discrepancy_vae", "slab")],
)
@pytest.mark.parametrize("value", [-1.0, "much"])
def test_an_assumption_out_of_range_is_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{option}: found .*; allowed: a number"):
        begun(name, **{option: value})


def log_prior(**options: Any) -> float:
    torch.manual_seed(0)
    sem = LatentSEM(3, 4, escapees=True, **options)
    with torch.no_grad():
        for parameter in sem.parameters():
            parameter.copy_(torch.randn_like(parameter))
        trace = pyro.poutine.trace(sem.prior).get_trace()
    return float(trace.log_prob_sum())


def test_priors_of_a_latent_sem() -> None:
    """Each option moves the log prior; those of targets and escapees by the amount that their formula says."""
    base = log_prior()
    assert log_prior(spike=0.5) != base
    sem = LatentSEM(3, 4, escapees=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in sem.parameters():
            parameter.copy_(torch.randn_like(parameter))
    share = sem.escape_logit.detach().sigmoid()
    gain = (share.log() + 2.0 * (1 - share).log()).sum()  # from Beta(1, 3) to Beta(2, 5)
    assert log_prior(escape_prior=escapees.Prior(2.0, 5.0)) - base == pytest.approx(float(gain), rel=1e-4)
    none = sem.target_logits.detach()[1:].softmax(-1)[:, -1].sum()
    gain = none * math.log(0.9 / 0.5) + (3 - none) * math.log(0.1 / 0.5)
    assert log_prior(none_probability=0.9) - base == pytest.approx(float(gain), rel=1e-4)
    for options in ({"spike": 0.0}, {"none_probability": 1.0}, {"escape_prior": escapees.Prior(0.0, 3.0)}):
        with pytest.raises(InputError, match="a number"):
            LatentSEM(3, 4, **options)  # type: ignore[arg-type]
