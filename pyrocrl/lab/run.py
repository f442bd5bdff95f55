"""What `python models/NAME.py` does, and the table of the package's models."""

from __future__ import annotations

from inspect import signature

from pyrocrl.claims.card import CONDITIONS
from pyrocrl.infer.fitted import Fit
from pyrocrl.program import Program
from pyrocrl.zoo import built_in, get


def run(program: type[Program], seed: int = 0) -> Fit:
    """Fit a model's own example and print how well it recovers the truth: what `python models/NAME.py` does."""
    from pyrocrl.infer.fit import fit
    from pyrocrl.judge.diagnose import diagnose
    from pyrocrl.judge.evaluate import evaluate

    example, data = program.example(seed)
    result = fit(example, data, seed=seed)
    print(result)
    for name, value in evaluate(result, data).items():
        print(f"  {name}: {value}")
    print(diagnose(result, data))
    return result


def table(link: str = "", *, whole: bool = False) -> str:
    """All models as a markdown table, made from their cards: README's, with the first claim on each thing, what it
    leaves open in brackets, and how rows must be told, a line for all of which these are the same; and that of the
    site, a line a model, with all claims and needs and how targets may be told (whole). link: where names lead."""
    where, open_to = "" if link else ", in [models](models)", "" if whole else " (up to)"
    lines: dict[object, tuple[list[str], str]] = {}  # names and the rest of each line
    for name in built_in():
        card = get(name).card
        nothing = "nothing: the baseline" if card.family == "baseline" else "nothing"
        first = {claim.what: claim for claim in reversed(card.claims)}
        heads = [claim.head() for claim in card.claims] if whole else [first[c.what].brief() for c in card.claims]
        claims = "; ".join(dict.fromkeys(heads)) or nothing
        targets = f"; targets {' or '.join(card.targets)}" if whole and card.targets else ""
        kinds = {"environments": card.needs_env, "pairs": card.needs_pairs}
        kinds |= {"views": card.needs_views, "series": card.needs_series}
        options = signature(get(name).__init__).parameters
        kinds |= {"an auxiliary variable": "aux" in options and "memory" not in options}
        kinds |= {"actions or series": "memory" in options}
        wanted = [f"{kind}{targets}" for kind, needed in kinds.items() if needed]
        if whole and card.claims and not card.needs_env:
            wanted += [CONDITIONS[need] for need in card.claims[0].needs if need != "more_features_than_latents"]
        trial = "†" if card.status == "experimental" else ""
        called = f"[`{name}`]({link.format(name)})" if link else f"`{name}`"
        rest = f"{claims} | {'; '.join(wanted) or '–'}"
        lines.setdefault(name if whole else rest, ([], rest))[0].append(called + trial)
    head = f"| model{where} († experimental) | identifies{open_to} | needs |\n|---|---|---|"
    return "\n".join([head, *(f"| {', '.join(names)} | {rest} |" for names, rest in lines.values())])
