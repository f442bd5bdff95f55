"""What is reproduced: published settings with their options, and real screens with their scores."""

from __future__ import annotations

from typing import Any

from pyrocrl.lab.screens import PATHWAY, SCREENS, PerturbationScreen, Screen
from pyrocrl.lab.studies import Actions, Escapees, Pairs, ShiftedMechanisms, Skeleton, Study, TwoModels

__all__ = [
    "STUDIES",
    "Actions",
    "Escapees",
    "Pairs",
    "PerturbationScreen",
    "Screen",
    "ShiftedMechanisms",
    "Skeleton",
    "Study",
    "TwoModels",
]

LINEAR = ("varici2024_linear", {"samples": 10_000})
UNKNOWN = {"targets": "unknown", "latents": 5}


def _moran(**build: Any) -> tuple[Study, ...]:
    return tuple(Study("moran2022", {"rho": rho}, build) for rho in (0.0, 0.8))


STUDIES: dict[str, tuple[Study, ...]] = {
    "vae": _moran(latents=5),
    "sparse_vae": (
        *_moran(latents=5),
        Study("perturb_seq", {"rows": 3000}, {"latents": 6}),
        Screen("papalexi2021", build={"latents": 15}, seeds=1, knockouts=PATHWAY),
    ),
    "gmm_vae": (Study("kivva2022_2d", held_out=0.1), Study("kivva2022_5d", held_out=0.1)),
    "discrepancy_vae": (
        Study("zhang2023", {"mixing": "identity"}, UNKNOWN, identified=False),
        Study("zhang2023", {"mixing": "linear"}, UNKNOWN, identified=False),
        Study("zhang2023", {"mixing": "linear", "intervention": "perfect"}, UNKNOWN | {"intervention": "perfect"}),
        Study("zhang2023", {"mixing": "linear", "intervention": "variance"}, UNKNOWN | {"intervention": "variance"}),
        Study(
            "zhang2023",
            {"mixing": "linear", "mechanism": "linear"},
            UNKNOWN | {"mechanism": "linear"},
            identified=False,
        ),
        Study(
            "zhang2023",
            {"mixing": "mlp", "intervention": "perfect"},
            UNKNOWN | {"intervention": "perfect", "decoder": "mlp"},
        ),
        Study("zhang2023", {"mixing": "mlp"}, UNKNOWN | {"decoder": "mlp"}, identified=False),
        Pairs("zhang2023", {"mixing": "linear", "pairs": [[0, 1], [0, 3], [2, 3]]}, UNKNOWN, identified=False),
        TwoModels(*LINEAR, {"intervention": "perfect", "mechanism": "linear"}),
        *SCREENS,
    ),
    "do_polynomial": tuple(
        Study("ahuja2023", {"degree": degree}, {"degree": degree, "targets": "unknown"}) for degree in (2, 3)
    ),
    "causal_flow": (
        Study("cauca", {"samples": 200_000}, held_out=0.05),
        Study(
            "cauca", {"samples": 50_000, "latents": 3, "interventions": 2}, {"targets": "unknown"}, 20, held_out=0.05
        ),
    ),
    "extrapolation": (Actions("saengkyongam2024", {"samples": 40_000}, {"latents": 2}, held_out=0.1),),
    "linear_sem_nonlin": (
        *(Study("buchholz2023_hard", {"samples": 20_000, "latents": latents}) for latents in (5, 10)),
        *(Study("buchholz2023", {"samples": 20_000, "latents": latents}) for latents in (5, 10)),
        Study("perturb_seq", {"rows": 6000}),
        TwoModels(*LINEAR),
    ),
    "mechanism_shift": (ShiftedMechanisms("mechanism_shift2024", seeds=10, held_out=0.1, identified=False),),
    "unknown_targets": (Skeleton("jiang2023", seeds=10, held_out=0.1, identified=False),),
    "score_crl": (
        Study("varici2024_quadratic", {"samples": 20_000}),
        Study("varici2024_general", {"samples": 10_000}, {"transform": "general"}),
        TwoModels(*LINEAR),
    ),
    # samples: twice the rows of the published sizes, for one half is fitted
    "linear_sem_lin": (
        *(Study("squires2023_hard", {"samples": 2 * n}, seeds=42) for n in (500, 1_000, 2_500, 10_000)),
        *(Study("varici2024_linear", {"samples": 2 * n}, seeds=12) for n in (5_000, 10_000, 50_000)),
        Study("squires2023_soft", {"samples": 20_000}, {"intervention": "soft"}, identified=False),
        Study("perturb_seq", {"rows": 6000}),
        Escapees("perturb_seq", {"rows": 6000, "escapees": 0.25}, {"escapees": True}),
    ),
}
