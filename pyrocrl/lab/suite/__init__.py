"""Settings of the verdict suite (`pyrocrl.lab.verdicts`): worlds to draw from and what is right of them, by family."""

from __future__ import annotations

from pyrocrl.lab.suite import (
    actions,
    columns,
    concepts,
    content,
    counts,
    covers,
    curves,
    equations,
    factors,
    linked_rows,
    mechanisms,
    modulation,
    observed,
    states,
    supports,
    surfaces,
    target_steps,
    view_sights,
)
from pyrocrl.lab.suite.case import Case


def cases() -> list[Case]:
    """All of them."""
    every = (
        states.dictionary_cases,
        equations.linear_cases,
        equations.network_cases,
        equations.shift_cases,
        states.state_cases,
        factors.factor_cases,
        factors.triangular_cases,
        factors.loading_cases,
        counts.count_cases,
        factors.lasso_cases,
        factors.product_cases,
        counts.product_count_cases,
        factors.tail_cases,
        factors.subspace_cases,
        factors.pure_cases,
        factors.cluster_cases,
        covers.cover_cases,
        modulation.held_cases,
        states.mixture_cases,
        equations.score_cases,
        modulation.modulated_cases,
        linked_rows.pair_cases,
        linked_rows.hidden_map_cases,
        actions.perturbation_cases,
        actions.mechanism_cases,
        linked_rows.view_cases,
        linked_rows.series_cases,
        equations.response_cases,
        observed.graph_cases,
        states.oracle_cases,
        curves.curve_cases,
        concepts.concept_cases,
        content.content_cases,
        content.style_cases,
        supports.support_cases,
        surfaces.surface_cases,
        columns.column_cases,
        mechanisms.mechanism_sparsity_cases,
        target_steps.step_cases,
        target_steps.acted_cases,
        view_sights.sight_cases,
    )
    return [case for some in every for case in some()]
