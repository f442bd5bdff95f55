"""Cards: what they refuse, and what they say; the wording of errors."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from pyrocrl.claims.card import CONDITIONS, UP_TO, Claim, ModelCard, Reference
from pyrocrl.errors import InputError, one_of, reject

REFERENCE = Reference("Moran et al.", 2022, "Identifiable deep models", "TMLR", "https://arxiv.org/abs/2110.10804")
LATENTS = Claim("latents", ("permutation", "elementwise"), ("the decoder is injective",), ("two_anchors",))
MASK = Claim("mask", ("permutation",), needs=("two_anchors",))
CARD = ModelCard(
    name="sparse_vae",
    title="Sparse VAE",
    family="decoder",
    summary="Each feature depends on a few latents.",
    assumes=("additive noise",),
    claims=(LATENTS, MASK),
    references=(REFERENCE,),
    differs=("an ELBO is optimised",),
    likelihoods=("gaussian", "negative_binomial"),
    settings=("moran2022",),
    needs_env=True,
    targets=("known", "unknown"),
    when=("features are many", "features are few"),
)


def test_a_claim_is_a_sentence():
    assert LATENTS.sentence() == (
        "latents up to permutation and elementwise, if the decoder is injective; " + CONDITIONS["two_anchors"]
    )
    assert Claim("latents", ("permutation", "sign", "scale")).sentence() == (
        "latents up to permutation, sign and scale"
    )
    assert Claim("graph", ("transitive closure",)).sentence() == "graph up to transitive closure"
    assert Claim("graph", ()).sentence() == Claim("graph", ("exact",)).sentence() == "graph exactly"


def test_a_claim_says_for_which_options_it_is_made():
    soft = Claim("graph", (), (), ("two_anchors",), {"intervention": ("soft", "shift"), "invariant": True})
    where = "where `intervention` is soft or shift and `invariant` is True"
    assert soft.sentence() == f"graph exactly, {where}, if {CONDITIONS['two_anchors']}"
    card = replace(CARD, claims=(MASK, soft))
    assert soft.sentence() in card.markdown() and soft.sentence() == card.to_dict()["claims"][1]["sentence"]
    assert json.loads(json.dumps(card.to_dict()))["claims"][1]["when"]["intervention"] == ["soft", "shift"]
    assert soft.holds({"intervention": "shift", "invariant": True}) and soft.holds({"invariant": True})
    assert not soft.holds({"intervention": "perfect", "invariant": True}) and not soft.holds({"invariant": False})


def test_every_group_of_the_vocabulary_makes_a_claim():
    for what, names in UP_TO.items():
        for name in names:
            maps = {"linear": "a linear map", "affine": "an affine map"}
            maps |= {"nested": "a linear map within every intersection of views"}
            maps |= {"kept": "an invertible map of each block, and of those that all pairs which keep it keep too"}
            words = (maps | {"block": "an invertible map of all latents together"}).get(name, name)
            assert Claim(what, (name,)).sentence() == (
                f"{what} exactly" if name == "exact" else f"{what} up to {words}"
            )


def test_a_card_is_json_and_a_page():
    plain = json.loads(json.dumps(CARD.to_dict()))
    assert plain["name"] == "sparse_vae" and plain["claims"][0]["up_to"] == ["permutation", "elementwise"]
    assert [claim["sentence"] for claim in plain["claims"]] == [claim.sentence() for claim in CARD.claims]
    page = CARD.markdown()
    texts = ("# Sparse VAE", LATENTS.sentence(), REFERENCE.url, "needs environments", "known, unknown")
    for text in (*texts, "Do not use it when features are few."):
        assert text in page
    assert "\n\n\n" not in page and page.endswith("\n")


def test_a_card_says_what_is_approximate_and_nothing_where_all_is_exact():
    assert CARD.to_dict()["approximate"] == "" and "approximate" not in CARD.markdown()
    said = replace(CARD, approximate="Targets are plugged in: summing them out would cost as many fits.")
    assert said.to_dict()["approximate"] == said.approximate
    assert f"## Plugged in or approximate\n\n- {said.approximate}" in said.markdown()


def test_a_card_without_claims_says_so():
    card = ModelCard("vae", "VAE", "baseline", "A plain VAE.")
    assert "makes no claim" in card.markdown() and "## References" not in card.markdown()
    assert card.status == "experimental" and card.to_dict()["claims"] == []


def test_cards_are_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError, match="'name'"):
        CARD.name = "other"
    assert replace(CARD) == CARD and hash(replace(CARD)) == hash(CARD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Claim("factors", ()), r"Claim.what: found 'factors'; allowed: graph, latents, .*"),
        (lambda: Claim("latents", ("permutations",)), r"did you mean 'permutation'"),
        (lambda: Claim("graph", ("scale",)), r"Claim.up_to of graph: found 'scale'; allowed: exact, interventional"),
        (lambda: Claim("graph", ("exact", "markov equivalence")), r"up_to of graph: .* allowed: one of"),
        (lambda: Claim("latents", ("linear", "elementwise")), r"linear and elementwise; allowed: .*combined"),
        (lambda: Claim("latents", "scale"), r"Claim.up_to: found 'scale' of type str; allowed: a tuple"),
        (lambda: Claim("latents", ("scale", "scale")), r"each name once"),
        (lambda: Claim("mask", (), needs=("two_anchor",)), r"did you mean 'two_anchors'"),
        (lambda: Claim("mask", (), given=(" ",)), r"Claim.given: .*none blank"),
        (lambda: Claim("mask", (), when="soft"), r"Claim.when: found 'soft'; allowed: a mapping"),
        (
            lambda: Claim("mask", (), when={"intervention": ()}),
            r"Claim.when: found \(\) for .intervention.; a",
        ),
        (lambda: replace(REFERENCE, year=22), r"Reference.year: found 22; allowed: 1800 to 2100"),
        (lambda: replace(REFERENCE, year="2022"), r"Reference.year: found '2022'; allowed: int"),
        (lambda: replace(REFERENCE, url="arxiv.org"), r"Reference.url"),
        (lambda: replace(REFERENCE, title=""), r"Reference.title: .*not blank"),
        (lambda: replace(CARD, name="Sparse VAE"), r"ModelCard.name: found 'Sparse VAE'"),
        (lambda: replace(CARD, status="beta"), r"ModelCard.status"),
        (lambda: replace(CARD, targets=("relabeled",)), r"did you mean 'relabelled'"),
        (lambda: replace(CARD, references=()), r"ModelCard.references: found none"),
        (lambda: replace(CARD, claims=(MASK, MASK)), r"ModelCard.claims: .*twice|each name once"),
        (lambda: replace(CARD, claims=("latents",)), r"a tuple of Claim"),
        (lambda: replace(CARD, assumes=["noise"]), r"of type list; allowed: a tuple"),
        (lambda: replace(CARD, approximate=" "), r"ModelCard.approximate: found ' '; allowed: text"),
        (lambda: replace(CARD, needs_env=1), r"ModelCard.needs_env: found 1; allowed: bool"),
        (lambda: replace(CARD, when=("features are many",)), r"ModelCard.when: found 1 texts; allowed: two"),
    ],
)
def test_bad_cards_are_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_errors_are_value_errors_on_one_short_line():
    with pytest.raises(ValueError, match=r"x: found a b; allowed: c") as caught:
        reject("x", "a\n  b", "c")
    assert isinstance(caught.value, InputError)
    with pytest.raises(InputError) as caught:
        reject("x", "y" * 10_000, "less")
    assert len(str(caught.value)) < 400


def test_one_of_returns_the_word_or_names_the_nearest():
    assert one_of("likelihood", "gaussian", ("gaussian", "poisson")) == "gaussian"
    with pytest.raises(InputError, match=r"likelihood: found 'gausian' \(did you mean 'gaussian'\?\); allowed: g"):
        one_of("likelihood", "gausian", ("gaussian", "poisson"))
    with pytest.raises(InputError, match="found 3; allowed: nothing"):
        one_of("likelihood", 3, ())
