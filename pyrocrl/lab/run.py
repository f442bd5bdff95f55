"""What `python models/NAME.py` does, and the table of the package's models."""

from __future__ import annotations

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


def table() -> str:
    """The package's models as a markdown table, made from their cards: what README shows."""
    lines = ["| model | what it is | identifies | needs | status |", "|---|---|---|---|---|"]
    for name in built_in():
        card = get(name).card
        claims = "; ".join(claim.head() for claim in card.claims) or "nothing (baseline)"
        needs = "environments, targets " + " or ".join(card.targets) if card.needs_env else "–"
        lines.append(f"| [`{name}`](models/{name}.py) | {card.summary} | {claims} | {needs} | {card.status} |")
    return "\n".join(lines)
