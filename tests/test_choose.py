"""`choose`: what cards ask against what data hold, without a fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pyrocrl
from pyrocrl import Batch, Claim, Data, InputError, ModelCard, Program, Reference, cli, simulate, zoo
from pyrocrl.claims import conditions
from pyrocrl.claims.card import ASSUMPTIONS, CONDITIONS, TARGETS
from pyrocrl.cli import sources
from pyrocrl.judge.choose import Choice, choose, environments
from pyrocrl.options import Size, choices
from pyrocrl.program import Latents, Targets

PAPER = Reference("Squires et al.", 2023, "Linear causal disentanglement", "ICML", "https://arxiv.org/abs/2211.16467")
BOTH = ("observational_environment", "one_intervention_per_latent")
EXACT = Claim("graph", (), ("noise is Gaussian",), (*BOTH, "perfect_interventions"))
CLOSURE = Claim("graph", ("transitive closure",), (), (*BOTH, "nonlinear_or_replaced"))


def card(name: str, *claims: Claim, **more: object) -> ModelCard:
    return ModelCard(name, name, "test", "A card.", claims=claims, references=(PAPER,), **more)  # type: ignore[arg-type]


CARDS = {
    "graphs": card("graphs", EXACT, CLOSURE, needs_env=True, targets=("known", "relabelled")),
    "twice": card("twice", Claim("latents", ("scale",), (), ("two_interventions_per_latent",)), targets=("unknown",)),
    "sparse": card("sparse", Claim("mask", (), (), ("two_anchors", "more_features_than_latents"))),
    "settings": card("settings", Claim("latents", ("linear",), (), ("enough_settings",))),
    "counts": card("counts", Claim("latents", ("affine",)), likelihoods=("negative_binomial",)),
    "baseline": card("baseline"),
}


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "names", lambda: sorted(CARDS))
    monkeypatch.setattr(zoo, "get", lambda name: model(CARDS[name]))


def model(own: ModelCard) -> type[Program]:
    """A model of this card that can be built, and no more."""

    class Built(Program):
        card = own

        def story(self, batch: Batch) -> None: ...

        def guide(self, batch: Batch) -> None: ...

    def untold(self: Program, latents: Latents) -> None: ...

    def told(self: Program, latents: Latents, targets: Targets = "known") -> None: ...

    def moved(self: Program, latents: Latents, aux: Size = 1) -> None: ...

    reads_aux = any("enough_settings" in claim.needs for claim in own.claims)
    return type(own.name, (Built,), {"__init__": moved if reads_aux else told if "known" in own.targets else untold})


def data(targets: dict[str, tuple[int, ...]] | None, rows: int = 120, **more: object) -> Data:
    """Six features in environments ctrl, a, b, c."""
    env = np.repeat(["ctrl", "a", "b", "c"], rows)
    return Data(np.random.default_rng(0).normal(size=(len(env), 6)), env, targets, **more)  # type: ignore[arg-type]


def by_name(found: list[Choice]) -> dict[str, Choice]:
    return {choice.model: choice for choice in found}


def heads(choice: Choice) -> list[str]:
    return [claim.claim for claim in choice.identifies]


NO_TARGETS = "targets: found None in the data; allowed: a mapping environment -> latents, known or up to relabelling"
WHOLE = {"a": (0,), "b": (1,), "c": (2,)}


def test_all_needs_met_says_the_strongest_claim_and_what_a_person_judges(cards: None) -> None:
    found = choose(data(WHOLE))
    assert [choice.model for choice in found][:2] == ["graphs", "sparse"]
    best = found[0]
    assert heads(best) == ["graph exactly"] and best.next is None and best.missing == ()
    assert best.identifies[0].given == ("noise is Gaussian",)


def test_what_is_missing_for_the_next_stronger_claim(cards: None) -> None:
    graphs = by_name(choose(data({"a": (1,), "b": (1,), "c": (1,)}), latents=4))["graphs"]
    assert heads(graphs) == []
    assert graphs.missing == ("one perfect intervention on each of latent_0, latent_2, latent_3",)
    one = by_name(choose(data({"a": (0,), "b": (0,)}), latents=2))["graphs"]
    assert one.missing == ("one perfect intervention on latent_1",)


def test_soft_interventions_leave_the_weaker_claim_and_name_the_stronger(cards: None) -> None:
    graphs = by_name(choose(data(WHOLE), intervention="soft"))["graphs"]
    assert heads(graphs) == ["graph up to transitive closure"]
    assert graphs.next is not None and graphs.next.claim == "graph exactly"
    assert graphs.missing == ("perfect interventions",)


@pytest.mark.parametrize("kind", ["shift", "variance"])
def test_what_a_linear_mixing_can_absorb_identifies_no_graph(cards: None, kind: str) -> None:
    graphs = by_name(choose(data(WHOLE), intervention=kind))["graphs"]
    assert heads(graphs) == [] and graphs.next is not None
    bent = by_name(choose(data(WHOLE), intervention=kind, mechanism="nonlinear"))["graphs"]
    assert heads(bent) == ["graph up to transitive closure"]


def test_two_interventions_are_counted_one_by_one(cards: None) -> None:
    env = np.repeat(["ctrl", "a", "b", "c", "d"], 120)
    x = np.random.default_rng(0).normal(size=(600, 6))
    twice = by_name(choose(Data(x, env, {"a": (0,), "b": (0,), "c": (1,)}), latents=3))["twice"]
    assert twice.missing == ("one more intervention on latent_1 and two interventions on latent_2",)


def test_no_observational_environment(cards: None) -> None:
    graphs = by_name(choose(data({"ctrl": (0,), **WHOLE})))["graphs"]
    assert graphs.missing == ("an observational environment",)


def test_unknown_targets_are_left_to_a_fit_where_there_are_enough_of_them(cards: None) -> None:
    found = by_name(choose(data(None, control="ctrl"), latents=1))
    assert found["graphs"].lacks == (NO_TARGETS,)
    assert found["graphs"].identifies == () and NO_TARGETS in found["graphs"].missing
    assert found["twice"].identifies[0].state == "open"
    assert found["twice"].identifies[0].open == (CONDITIONS["two_interventions_per_latent"],)
    more = by_name(choose(data(None, control="ctrl"), latents=2))["twice"]
    assert more.missing == ("two interventions on each of the 2 latents",)


def test_one_environment(cards: None) -> None:
    one = Data(np.random.default_rng(0).normal(size=(50, 6)), targets={})
    assert "env: found one environment; allowed: two or more" in by_name(choose(one, latents=3))["graphs"].missing
    found = by_name(choose(Data(one.x), latents=3))
    assert "one perfect intervention on each of the 3 latents" in found["graphs"].missing
    assert found["sparse"].identifies[0].open == (CONDITIONS["two_anchors"],)


def test_an_environment_without_rows_does_not_count(cards: None) -> None:
    whole = data(WHOLE)
    part = whole.rows_at(whole.env != whole.env_names.index("b"))
    assert by_name(choose(part))["graphs"].missing == ("one perfect intervention on latent_1",)


def test_the_number_of_latents_is_told_known_or_asked_for(cards: None) -> None:
    unknown = by_name(choose(data(None)))
    assert unknown["sparse"].missing == ("the number of latents",)
    assert by_name(choose(data(None), latents=2))["sparse"].missing == ()
    assert by_name(choose(data(None), latents=6))["sparse"].missing == ("more than 6 features",)
    truth = data(None, truth={"z": np.zeros((480, 6))})
    assert by_name(choose(truth))["sparse"].missing == ("more than 6 features",)


def test_auxiliary_variables_and_counts(cards: None) -> None:
    aux = np.tile(np.arange(4), 120)
    assert heads(by_name(choose(data(None, aux=aux), latents=3))["settings"]) == ["latents up to a linear map"]
    few = by_name(choose(data(None, aux=aux), latents=4))["settings"]
    assert few.missing == ("an auxiliary variable with 5 values or more",)
    floats = "x: found floats, of which counts has no law; allowed: counts"
    assert by_name(choose(data(None), latents=3))["counts"].lacks == (floats,)
    counted = Data(np.random.default_rng(0).poisson(3.0, (50, 6)))
    found = by_name(choose(counted, latents=3))
    assert found["counts"].lacks == ()
    assert (
        "x: found counts, of which sparse has no law; allowed: features that are no counts" in found["sparse"].lacks[0]
    )


def test_models_that_do_not_read_what_ties_rows_together_are_not_recommended() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    each: dict[str, dict[str, object]] = {
        "series": {"series": np.repeat([0, 1], 100)},
        "pair": {"pair": np.arange(200) // 2},
        "aux": {"aux": rng.normal(size=(200, 3))},
    }
    readers = {
        "series": {"snica_lin", "mechanism_sparsity"},
        "pair": {"content_style", "weakly_supervised_nonlin", "weakly_supervised_pairs"},
        "aux": {"extrapolation", "mechanism_sparsity"},
    }
    for name, structure in each.items():
        rows = Data(x, **structure)  # type: ignore[arg-type]
        assert {choice.model for choice in choose(rows, latents=3) if not choice.lacks} == readers[name], name
        with pytest.raises(InputError, match=rf"^{name}: found .* vae does not read; allowed: none") as said:
            pyrocrl.build("vae", rows, latents=3)
        with pytest.raises(InputError) as of_fit:
            pyrocrl.fit(pyrocrl.build("vae", Data(x), latents=3), rows, progress=False)
        assert str(of_fit.value) == str(said.value)
        assert f"data.without('{name}'), in the shell --without {name}" in str(said.value)
        assert pyrocrl.build("vae", rows.without(name), latents=3).config["latents"] == 3
        assert getattr(rows, name) is not None, "the rows themselves stay as they are"
        with pytest.raises(InputError, match=rf"^without: found '{name}', which these data do not tell; allowed: noth"):
            Data(x).without(name)
    with pytest.raises(InputError, match=r"^without: found 'views'; allowed: aux, pair, series$"):
        rows.without("views")


def test_the_shell_leaves_out_what_is_not_to_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    source = ["choose", "--data", "halva2021_linear", "--json"]
    assert cli.main(source) == 0 and cli.main([*source, "--without", "series"]) == 0
    first, second = (json.loads(text + "}")["models"] for text in capsys.readouterr().out.split("\n}\n")[:2])
    named = [{m["model"] for m in found if m["command"]} for found in (first, second)]
    assert "snica_lin" in named[0] - named[1] and "heavy_tailed_fa" in named[1] - named[0]
    [command] = [m["command"] for m in second if m["model"] == "heavy_tailed_fa"]
    assert command.startswith("pyrocrl fit heavy_tailed_fa --data halva2021_linear") and "--without series" in command
    assert cli.main([*source, "--without", "aux"]) == 2
    assert capsys.readouterr().err == "pyrocrl: without: found 'aux', which these data do not tell; allowed: series\n"


def test_models_that_do_not_read_environments_or_views_come_after_those_that_do() -> None:
    found = [c for c in choose(simulate.draw("squires2023_hard", 0, samples=100)) if not c.lacks and c.identifies]
    unread = [choice.unread for choice in found]
    assert unread == sorted(unread) and set(unread) == {(), ("environments",)}
    assert found[0].model == "linear_sem_lin" and by_name(found)["linear_latent_sem"].unread
    views = choose(simulate.draw("yao2024", 0, rows=200))
    assert {choice.model for choice in views if not choice.lacks and not choice.unread} == {"multiview"}
    assert views[0].model == "multiview" and by_name(views)["vae"].unread == ("views",)
    one = choose(Data(np.random.default_rng(0).normal(size=(100, 8))), latents=2)
    assert not any(choice.unread for choice in one)


def test_few_rows_are_marked() -> None:
    rows = environments(data(WHOLE, rows=99))
    assert [r["environment"] for r in rows] == ["ctrl", "a", "b", "c"] and all(r["few"] for r in rows)
    assert rows[0]["targets"] == [] and rows[2]["targets"] == ["latent_1"]
    assert not any(r["few"] for r in environments(data(None, rows=100)))


def test_every_model_of_the_zoo_is_judged_from_its_card() -> None:
    found = choose(simulate.draw("squires2023_hard", seed=100, samples=120, latents=3, features=6))
    assert sorted(choice.model for choice in found) == zoo.names()
    plain = json.loads(json.dumps([choice.to_dict() for choice in found]))
    assert all(entry.keys() >= {"model", "lacks", "claims", "identifies", "next", "missing"} for entry in plain)
    linear = by_name(found)["linear_sem_lin"]
    assert not linear.missing and {claim.what for claim in linear.identifies} == {"latents", "graph"}
    assert found[-1].identifies == ()


def table(targets: dict[str, tuple[int, ...]] | None = None) -> Data:
    """2,000 rows of 40 continuous features, a control and four environments."""
    env = np.repeat(["ctrl", "a", "b", "c", "d"], 400)
    x = np.random.default_rng(0).normal(size=(2000, 40))
    return Data(x, env, targets, control="ctrl")


EACH = {"a": (0,), "b": (1,), "c": (2,), "d": (3,)}


@pytest.mark.parametrize("targets", [None, EACH])
@pytest.mark.parametrize("told", [{}, {"intervention": "soft"}, {"intervention": "shift", "mechanism": "nonlinear"}])
def test_what_is_recommended_can_be_built_and_what_is_not_is_refused_in_the_same_words(
    targets: dict[str, tuple[int, ...]] | None, told: dict[str, str]
) -> None:
    rows = table(targets)
    for choice in choose(rows, latents=4, **told):  # type: ignore[arg-type]
        try:
            program = pyrocrl.build(choice.model, rows, **choice.options)
        except InputError as error:
            assert str(error) in choice.lacks, choice.model
        else:
            unlike = zoo.get(choice.model).card.values != "continuous"
            assert bool(choice.lacks) == unlike, choice.model
            for name, word in told.items():
                if name in program.config and word != "nonlinear":
                    assert program.config[name] == word
            held = {claim.head() for claim in program.claims()}
            assert {claim.claim for claim in choice.identifies} <= held


def test_models_of_other_data_are_not_recommended() -> None:
    found = by_name(choose(table(), latents=4))
    assert found["mechanism_shift"].lacks == ("features: found 40; allowed: a whole number from 2 to 7",)
    assert found["unknown_targets"].lacks == ("values: found 'continuous'; allowed: 'binary': latents are on or off",)
    assert not by_name(choose(table(), latents=4, values="binary"))["unknown_targets"].lacks
    assert by_name(choose(table(), latents=4, values="binary"))["vae"].lacks == (
        "values: found 'binary'; allowed: 'continuous': latents are numbers",
    )


def test_what_a_program_refuses_of_its_data_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: Program, data: Data) -> None:
        raise InputError("aux: found none; allowed: doses")

    monkeypatch.setattr(zoo.get("vae"), "check", check)
    assert by_name(choose(table(), latents=4))["vae"].lacks == ("aux: found none; allowed: doses",)


def test_assumptions_that_are_not_told_are_each_models_own() -> None:
    found = by_name(choose(table(EACH), latents=4))
    for name in ("discrepancy_vae", "linear_sem_lin"):
        own = zoo.get(name).options()
        for word in ("intervention", "mechanism"):
            if word in own:
                assert found[name].options[word] == own[word].default
    assert "perfect interventions" in found["discrepancy_vae"].missing  # it takes them for shifts
    exact = by_name(choose(table(EACH), latents=4, intervention="perfect"))["discrepancy_vae"]
    assert "graph exactly" in heads(exact)


def test_words_of_assumptions_are_those_of_models() -> None:
    for name in zoo.names():
        for option in ("intervention", "mechanism", "targets"):
            told = zoo.get(name).options().get(option)
            assert told is None or set(choices(told.hint)) <= ASSUMPTIONS[option].keys(), name
    assert tuple(TARGETS) == sources.TARGET_MODES


def test_every_condition_of_the_data_is_one_of_the_cards() -> None:
    assert conditions.CHECKS.keys() <= CONDITIONS.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intervention": "hard"}, "intervention: found 'hard'; allowed: perfect, shift, soft, variance"),
        ({"targets": "known"}, "targets: found 'known' for data that list none; allowed: 'unknown'"),
        ({"targets": "guess"}, "targets: found 'guess'; allowed: known, relabelled, unknown"),
        ({"mechanism": "cubic"}, "mechanism: found 'cubic'; allowed: linear, nonlinear"),
        ({"latents": 0}, "latents: found 0; allowed: a whole number from 1 on"),
    ],
)
def test_bad_input(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(data(None), **options)  # type: ignore[arg-type]


def test_targets_of_an_absent_latent_and_data_of_another_kind() -> None:
    with pytest.raises(InputError, match="targets: found latent 2 for environment 'c'; allowed: latents 0 to 1"):
        pyrocrl.choose(data(WHOLE), latents=2)
    with pytest.raises(InputError, match="data: found a ndarray"):
        pyrocrl.choose(np.zeros((3, 2)))  # type: ignore[arg-type]


def test_shifts_are_not_taken_for_interventions_that_replace_mechanisms() -> None:
    found = by_name(choose(data(WHOLE), intervention="shift"))
    for name in ("linear_sem_lin", "linear_sem_nonlin", "score_crl", "causal_flow", "do_polynomial"):
        assert not found[name].identifies
    assert by_name(choose(data(WHOLE)))["linear_sem_nonlin"].identifies
