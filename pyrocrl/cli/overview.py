"""Commands that say what there is: list, show, choose."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrocrl.cli.app import app
from pyrocrl.cli.arguments import (
    Batch,
    Control,
    Counts,
    Env,
    Intervention,
    Json,
    Mechanism,
    Seed,
    SizeFactor,
    Source,
    Told,
    reading_options,
)
from pyrocrl.cli.sources import adjusted, command_line, described, read_data, told_targets
from pyrocrl.cli.tables import print_json, print_table
from pyrocrl.errors import one_of

if TYPE_CHECKING:
    from pyrocrl.judge.choose import Choice
    from pyrocrl.options import Option


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="[WHAT]", help="models, settings, datasets or assumptions.")
    ] = "models",
    assumptions: Annotated[bool, typer.Option("--assumptions", help="The same as WHAT = assumptions.")] = False,
    as_json: Json = False,
) -> None:
    """List the models, the simulation settings, the data sets, or which assumption buys which claim."""
    from pyrocrl import datasets, simulate, zoo

    one_of("WHAT", what, ("models", "settings", "datasets", "assumptions"))
    if assumptions or what == "assumptions":
        from pyrocrl.lab.assumptions import table, text

        found = table()
        if as_json:
            print_json([one.to_dict() for one in found])
        else:
            print(text(found))
        return
    if what == "models":
        cards = zoo.cards()
        if as_json:
            print_json([card.to_dict() for card in cards])
            return
        rows = [
            [c.name, c.status, "; ".join(dict.fromkeys(map(_identifies, c.claims))) or "nothing", c.title]
            for c in cards
        ]
        print_table(["model", "status", "identifies", "title"], rows)
        lacking = [f"{c.name} ({', '.join(c.reads_missing)})" for c in cards if c.reads_missing]
        print("\n" + textwrap.fill(f"values of features may be missing (--missing) for {', '.join(lacking)}", 120))
        return
    names = simulate.names() if what == "settings" else datasets.names()
    if as_json:
        print_json(names)
    elif what == "datasets":
        print("\n".join(names))
    else:
        rows = [[name, (inspect.getdoc(simulate.get(name)) or "").split("\n")[0]] for name in names]
        print_table(["setting", "what it is"], rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, its file, or a setting.")], as_json: Json = False
) -> None:
    """Show a model's card in short, or a setting's equations, and the options of either."""
    from pyrocrl import simulate, zoo
    from pyrocrl.options import options_of

    if not zoo.is_file(name):
        one_of("NAME", name, [*zoo.names(), *simulate.names()])
    if name not in simulate.names():
        kind = zoo.get(name, "NAME")
        told, text, options = kind.card.to_dict(), kind.card.markdown(short=True), kind.options()
    else:
        function = simulate.get(name)
        doc = inspect.getdoc(function) or ""
        told, text, options = {"name": name, "doc": doc}, f"# {name}\n\n{doc}\n", options_of(function)
    if as_json:
        print_json(told | {"options": [option.to_dict() for option in options.values()]})
    else:
        print(f"{text}\n## Options")
        _print_options(options.values())


@app.command()
@reading_options
def choose(
    reading: dict[str, Any],
    data: Source,
    latents: Annotated[
        int | None, typer.Option(metavar="K", help="Number of latents.  [default: as truth or targets say]")
    ] = None,
    intervention: Intervention = None,
    mechanism: Mechanism = None,
    values: Annotated[str, typer.Option(metavar="KIND", help="What latents are: continuous or binary.")] = "continuous",
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="FILE", help="A model in a file of yours; may be repeated.")
    ] = None,
    seed: Seed = 0,
    env: Env = None,
    control: Control = None,
    targets: Told = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    batch: Batch = None,
    as_json: Json = False,
) -> None:
    """Say which models these data can feed, what each would identify, and what the next stronger claim lacks."""
    from pyrocrl import zoo
    from pyrocrl.judge.choose import FEW_ROWS, environments
    from pyrocrl.judge.choose import choose as judged

    file, mode = told_targets(targets)
    source = {"data": data, "seed": seed} | described(env, control, file, counts, size_factor, batch) | reading
    rows = adjusted(read_data(source))
    found = judged(
        rows,
        latents,
        intervention=intervention,
        targets=mode,
        mechanism=mechanism,
        values=values,
        models=tuple(model or ()),
    )
    own = {zoo.get(file).card.name: file for file in model or ()}
    commands = {
        choice.model: command_line(own.get(choice.model, choice.model), choice.options, source)
        for choice in found
        if not choice.lacks
    }
    envs = environments(rows)
    if as_json:
        models = [choice.to_dict() | {"command": commands.get(choice.model)} for choice in found]
        print_json({"data": str(rows), "environments": envs, "models": models})
        return
    print(f"{rows}\n")
    _print_environments(envs, FEW_ROWS)
    print()
    _print_choices(found)
    held = [choice for choice in found if choice.identifies]
    for unread in sorted({choice.unread for choice in held}, key=len):
        without = f" that does not read {' or '.join(unread)}" if unread else ""
        print(f"\nto fit one{without}:")
        for choice in held:
            if choice.unread == unread:
                print(f"  {commands[choice.model]}")


def _identifies(claim: Any) -> str:
    names = [name for name in claim.up_to if name != "exact"]
    return f"{claim.what} up to {', '.join(names)}" if names else claim.what


def _print_options(options: Iterable[Option]) -> None:
    """Each option's name, default and allowed values, and below them what it means."""
    for option in options:
        told = option.to_dict()
        default = f", default {told['default']!r}" if "default" in told else ""
        print(f"- `{option.name}`: {told['allowed']}{default}")
        if option.meaning:
            print(textwrap.fill(option.meaning, 110, initial_indent="    ", subsequent_indent="    "))


def _print_environments(envs: Sequence[dict[str, Any]], least: int) -> None:
    def words(targets: list[str] | None) -> str:
        return "not known" if targets is None else ", ".join(targets) or "none: observational"

    print_table(["environment", "targets", "rows"], [[e["environment"], words(e["targets"]), e["rows"]] for e in envs])
    few = [e["environment"] for e in envs if e["few"]]
    if few:
        print(f"warning: fewer than {least} rows in {', '.join(few)}: estimates from them will be poor")


def _print_choices(found: Sequence[Choice]) -> None:
    lines = []
    for choice in found:
        held = "; ".join(claim.claim for claim in choice.identifies) or "nothing"
        more = choice.next.claim if choice.next else "-"
        lines.append([choice.model, held, more, "; ".join(choice.missing) or "-"])
    print_table(["model", "would identify", "next stronger claim", "missing"], lines)
    for heading, attribute in (("if a fit shows that", "open"), ("if you can say that", "given")):
        notes = {
            choice.model: list(dict.fromkeys(text for claim in choice.identifies for text in getattr(claim, attribute)))
            for choice in found
        }
        if any(notes.values()):
            print(f"\n{heading}:")
        for model, texts in notes.items():
            if texts:
                print(f"  {model}: {'; '.join(texts)}")
