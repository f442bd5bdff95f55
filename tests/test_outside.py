"""Models outside the package: a file, a class, an installed package; what a run of them may and may not start."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, Program, cli, io, zoo
from pyrocrl.cli.runs import RESULTS, RUN, VERDICT
from pyrocrl.infer import checkpoint, origin
from pyrocrl.models.vae import VAE

Capture = pytest.CaptureFixture[str]
TEXT = (Path(__file__).parent.parent / "models" / "vae.py").read_text()
SMALL = ["--latents", "2", "--chains", "1", "--epochs", "2", "--draws", "2", "--option", "hidden=4", "--quiet"]
QUICK = {"chains": 1, "epochs": 2, "progress": False, "device": "cpu"}


def model_text(name: str = "my_vae", title: str = "Mine", marker: Path | None = None) -> str:
    """A copy of the VAE, as a user makes it; each time it is run it adds a line to `marker`."""
    text = TEXT.replace("VAE(Program)", "MyVAE(Program)").replace("tuple[VAE,", "tuple[MyVAE,").replace("run(VAE)", "0")
    text = text.replace('name="vae"', f'name="{name}"').replace('title="Variational auto-encoder"', f'title="{title}"')
    assert text.count("MyVAE") == 2 and f'name="{name}"' in text
    return text if marker is None else f"{text}\nwith open({str(marker)!r}, 'a') as out:\n    out.write('run\\n')\n"


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Reports have tests of their own; here a file in their place saves most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrocrl.report.write", lambda *given: given[4].write_text("<html>"))
        yield


@pytest.fixture(scope="module")
def data() -> Data:
    return pyrocrl.simulate.draw("moran2022", seed=100, rows=120)


@pytest.fixture(scope="module")
def rows(data: Data, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(io.write(data, tmp_path_factory.mktemp("data") / "rows.npz"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def file(tmp_path: Path, marker: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(model_text(marker=marker))
    return path


def runs(marker: Path) -> int:
    """How often the model's file was run."""
    return len(marker.read_text().splitlines()) if marker.exists() else 0


def fitted(model: zoo.Model, data: Data, **more: object) -> Fit:
    return pyrocrl.fit(pyrocrl.build(model, data, latents=2, hidden=4), data, **QUICK, **more)


def forget() -> None:
    """As a new process would find it: no file of a user has been run."""
    for name in [name for name in sys.modules if name.startswith("pyrocrl_model_")]:
        del sys.modules[name]


def refused(act: Callable[[], object]) -> str:
    """The one line that is said."""
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def complaint(capsys: Capture, *arguments: object) -> str:
    """The one line with which a command ends, exit code 2."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("pyrocrl: ") and err.count("\n") == 1
    return err


def said(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# -- a file and a class in Python ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [str, Path, zoo.get], ids=["text", "path", "class"])
def test_a_model_in_a_file_goes_all_the_way(
    given: Callable[[str], zoo.Model], file: Path, data: Data, tmp_path: Path
) -> None:
    model = given(str(file))
    found = fitted(model, data)
    assert type(found.program).__name__ == "MyVAE" and found.program.card.name == "my_vae"
    assert pyrocrl.diagnose(found, data).model == "my_vae"
    scores = pyrocrl.evaluate(found, data)
    path = found.save(tmp_path / "saved")
    forget()
    again = pyrocrl.load(path, data, program=given(str(file)))
    np.testing.assert_array_equal(again.latents(), found.latents())
    assert pyrocrl.evaluate(again, data)["mcc"] == scores["mcc"]
    assert type(pyrocrl.load(found.save(tmp_path / "twice"), program=model).program) is zoo.get(model)


def test_a_file_is_run_once_and_its_new_text_again(file: Path, marker: Path) -> None:
    first = zoo.get(file)
    assert zoo.get(str(file)) is first and runs(marker) == 1
    file.write_text(model_text(title="Mene", marker=marker))  # as long as before and within the same second
    second = zoo.get(file)
    assert second.card.title == "Mene" and first.card.title == "Mine" and runs(marker) == 2
    assert first.written_in != second.written_in


def test_two_files_with_one_class_name_do_not_clash(tmp_path: Path, data: Data) -> None:
    paths = [tmp_path / folder / "model.py" for folder in ("a", "b")]
    for path, title in zip(paths, ("One", "Two"), strict=True):
        path.parent.mkdir()
        path.write_text(model_text(title=title))
    first, second = map(zoo.get, paths)
    assert (first.card.title, second.card.title) == ("One", "Two") and first.__module__ != second.__module__
    assert sys.modules[first.__module__].MyVAE is first and sys.modules[second.__module__].MyVAE is second
    with pytest.warns(UserWarning, match="the text of MyVAE is not that of the fit's model"):
        pyrocrl.load(fitted(first, data).save(tmp_path), program=second)


def test_helpers_dataclasses_and_imported_programs_are_no_second_model(tmp_path: Path) -> None:
    path = tmp_path / "with_helpers.py"
    more = (
        "from dataclasses import dataclass\nfrom pyrocrl.models.vae import VAE\n@dataclass\nclass Sizes:\n    n: int\n"
    )
    path.write_text(f"{model_text()}\n{more}\nAgain = MyVAE\n")
    assert zoo.get(path).__name__ == "MyVAE"


def test_neighbours_are_found_only_where_python_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyrocrl_test_neighbour.py").write_text("TITLE = 'From next door'\n")
    path = tmp_path / "model.py"
    path.write_text(model_text() + "\nfrom pyrocrl_test_neighbour import TITLE\n")
    forget()
    before = list(sys.path)
    assert "ModuleNotFoundError: No module named 'pyrocrl_test_neighbour'" in refused(lambda: zoo.get(path))
    assert sys.path == before and not [name for name in sys.modules if name.startswith("pyrocrl_model_")]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "TITLE" in vars(sys.modules[zoo.get(path).__module__])


# -- what a run may start ------------------------------------------------------------------------------------------


def test_no_file_is_run_unless_it_is_named(file: Path, marker: Path, data: Data, tmp_path: Path) -> None:
    path = fitted(file, data).save(tmp_path / "saved")
    came = checkpoint.read(path)[1]["meta"]["origin"]
    assert came["kind"] == "file" and came["file"] == str(file) and came["class"] == "MyVAE"
    forget()
    before = runs(marker)
    line = refused(lambda: pyrocrl.load(path))
    assert f"allowed: program={str(file)!r}, or its class (in the shell --model" in line
    assert "only run where it is named" in line

    whole = file.read_text()
    file.write_text(whole + "# changed\n")
    line = refused(lambda: pyrocrl.load(path))
    assert f"found {str(file)!r} changed since the fit; allowed: program=" in line
    assert runs(marker) == before, "nothing was run"
    with pytest.warns(UserWarning, match=r"the text of MyVAE is not that of the fit's model, the model in '.*my_model"):
        taken = pyrocrl.load(path, program=file)
    assert taken.program.card.name == "my_vae" and runs(marker) == before + 1

    file.unlink()
    assert f"found no file {str(file)!r}" in refused(lambda: pyrocrl.load(path))
    moved = tmp_path / "elsewhere.py"
    moved.write_text(whole)
    assert pyrocrl.load(path, program=moved).program.card.name == "my_vae", "no warning: the text is the same"


@pytest.mark.parametrize("name", ["{file}", "my_model", "./my_model.py"])
def test_names_in_a_forged_header_start_nothing(
    name: str, file: Path, marker: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that says it is of a built-in or installed model, with a file or a module for its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "saved.safetensors"
    tensors, header = checkpoint.read(fitted("vae", data).save(path))
    name = name.format(file=file)
    entry = {"kind": "entry point", "name": name, "value": "my_model:MyVAE", "package": "p 1"}
    class_ = {"kind": "class", "class": name, "module": "my_model"}
    for came in (None, {"kind": "built-in"}, entry, class_):
        meta = header["meta"] | {"origin": came}
        checkpoint.write(path, tensors, header | {"model": name, "meta": meta, "module": "my_model", "class": "MyVAE"})
        refused(lambda: pyrocrl.load(path))
    for came in (3, {"kind": "file"}, {"kind": "other"}, {"kind": "file", "file": 3, "sha256": "0"}, {}):
        checkpoint.write(path, tensors, header | {"meta": header["meta"] | {"origin": came}})
        assert "path: found a checkpoint whose model came from" in refused(lambda: pyrocrl.load(path))
    assert runs(marker) == 0 and "my_model" not in sys.modules


def test_checkpoints_without_an_origin_are_those_of_built_in_models(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    found = fitted("vae", data)
    assert found.meta["origin"] == {"kind": "built-in"}
    del found.meta["origin"]
    assert type(pyrocrl.load(found.save(path)).program) is VAE


def test_a_class_without_a_file_has_to_be_given(data: Data, tmp_path: Path) -> None:
    notebook = types.ModuleType("pyrocrl_test_notebook")
    sys.modules[notebook.__name__] = notebook
    try:
        exec(model_text(), vars(notebook))
        path = fitted(notebook.MyVAE, data).save(tmp_path)
        assert notebook.MyVAE.written_in is None
        line = refused(lambda: pyrocrl.load(path))
        assert "a fit of the class 'MyVAE', which was in no file; allowed: program=the class" in line
        assert type(pyrocrl.load(path, program=notebook.MyVAE).program) is notebook.MyVAE
    finally:
        del sys.modules[notebook.__name__]


def test_a_changed_file_that_no_longer_takes_the_options_is_told(file: Path, data: Data, tmp_path: Path) -> None:
    path = fitted(file, data).save(tmp_path)
    file.write_text(model_text().replace("hidden: Size = 64", "width: Size = 64").replace("(hidden, hidden)", "(4, 4)"))
    with pytest.warns(UserWarning, match="is not that of the fit's model"):
        assert "which does not fit my_vae" in refused(lambda: pyrocrl.load(path, program=file))
    file.write_text(model_text("another"))
    assert "path: found a checkpoint of 'my_vae'; allowed: one of 'another'" in refused(
        lambda: pyrocrl.load(path, program=file)
    )


# -- resume --------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """In place of a kill."""


def stop(epoch: int) -> None:
    if epoch == 3:
        raise Stop


def test_an_interrupted_fit_is_resumed_with_the_same_text_only(file: Path, data: Data, tmp_path: Path) -> None:
    options = {"seed": 1, "chains": 1, "epochs": 4, "progress": False, "device": "cpu", "checkpoint_every": 2}
    whole = pyrocrl.fit(pyrocrl.build(file, data, latents=2, hidden=4), data, **options)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        pyrocrl.fit(pyrocrl.build(file, data, latents=2, hidden=4), data, out=out, on_epoch=stop, **options)
    assert checkpoint.read(out)[1]["origin"]["file"] == str(file)
    text = file.read_text()
    file.write_text(text + "# changed\n")
    changed = pyrocrl.build(file, data, latents=2, hidden=4)
    line = refused(lambda: pyrocrl.fit(changed, data, out=out, resume=True, **options))
    assert line.startswith("resume: found a fit of the model in ") and "begun with another text of it" in line
    file.unlink()
    moved = tmp_path / "moved.py"
    moved.write_text(text)
    forget()
    resumed = pyrocrl.fit(pyrocrl.build(moved, data, latents=2, hidden=4), data, out=out, resume=True, **options)
    for name, value in whole.chains.params.items():
        assert torch.equal(value, resumed.chains.params[name]), name
    assert pyrocrl.load(out, program=moved).meta["epochs"] == 4


def test_what_is_edited_during_a_fit_is_not_taken_for_what_was_fitted(file: Path, data: Data, tmp_path: Path) -> None:
    text = file.read_text()
    found = fitted(file, data, on_epoch=lambda epoch: file.write_text(text + "# meanwhile\n") and None)
    path = found.save(tmp_path)
    assert "changed since the fit" in refused(lambda: pyrocrl.load(path))


# -- the shell -----------------------------------------------------------------------------------------------------


def test_the_shell_from_fit_to_report(file: Path, marker: Path, rows: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert "Mine" in said(capsys, "show", file)
    assert json.loads(said(capsys, "show", file, "--json"))["name"] == "my_vae"
    assert "my_vae" in said(capsys, "fit", file, "--data", rows, "--out", out, *SMALL)
    assert sorted(p.name for p in out.iterdir()) == sorted(RESULTS)
    record = json.loads((out / RUN).read_text())
    assert record["model"] == "my_vae" and record["origin"]["file"] == str(file)
    assert "my_vae" in said(capsys, "evaluate", out, "--model", file)
    (out / VERDICT).unlink()
    assert "claims nothing" in said(capsys, "report", out, "--model", file)
    assert json.loads((out / VERDICT).read_text())["model"] == "my_vae"

    forget()
    before = runs(marker)
    for command in ("evaluate", "report"):
        assert f"--model {str(file)!r}" in complaint(capsys, command, out)
    file.write_text(file.read_text() + "# changed\n")
    assert "changed since the fit" in complaint(capsys, "report", out)
    assert runs(marker) == before
    with pytest.warns(UserWarning, match="is not that of the fit's model"):
        assert cli.main(["report", str(out), "--model", str(file)]) == 0
    file.unlink()
    assert "found no file" in complaint(capsys, "evaluate", out)


def test_the_shell_resumes(
    file: Path, rows: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command = ["fit", file, "--data", rows, "--out", out, *SMALL]
    command[command.index("--epochs") + 1] = "14"
    with monkeypatch.context() as patch:
        fit = pyrocrl.fit
        patch.setattr(pyrocrl, "fit", lambda *args, **more: fit(*args, **more, on_epoch=lambda e: 1 / (12 - e)))
        assert cli.main([str(c) for c in command]) == 1
    text = file.read_text()
    file.write_text(text + "# changed\n")
    assert "begun with another text" in complaint(capsys, *command, "--resume")
    file.write_text(text)
    said(capsys, *command, "--resume")
    (out / RUN).unlink()  # as if it had been killed before the report
    file.write_text(text + "# changed\n")
    assert "--resume: found a fit of the model in" in complaint(capsys, *command, "--resume")
    file.write_text(text)
    said(capsys, *command, "--resume")
    assert (out / RUN).exists()


def test_compare_and_choose_take_files(file: Path, rows: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "compared"
    small = ["--latents", "2", "--chains", "1", "--epochs", "2", "--quiet", "--option", "vae.hidden=4"]
    options = ["--data", rows, "--out", out, *small, "--option", "my_vae.hidden=5"]
    assert "my_vae" in said(capsys, "compare", file, "vae", *options)
    assert json.loads((out / "my_vae" / RUN).read_text())["build"]["hidden"] == 5
    namesake = tmp_path / "namesake.py"
    namesake.write_text(model_text())
    line = complaint(capsys, "compare", file, namesake, "--data", rows, "--out", tmp_path / "new")
    assert "found my_vae, my_vae; allowed: models whose cards have different names" in line
    found = json.loads(said(capsys, "choose", "--data", rows, "--model", file, "--json"))
    assert sorted(m["model"] for m in found["models"]) == sorted([*zoo.names(), "my_vae"])


# -- bad files -----------------------------------------------------------------------------------------------------

HEAD = "import os\n\n"
BAD: dict[str, tuple[str, str]] = {
    "syntax": (HEAD + "def f(:\n    pass\n", "SyntaxError: invalid syntax in '{file}', line 3; allowed: "),
    "import": (HEAD + "import no_such_thing\n", "No module named 'no_such_thing' in '{file}', line 3; allowed: "),
    "exception": (
        HEAD + "def f():\n    raise ValueError('two\\nlines')\n\nf()\n",
        "found ValueError: two lines in '{file}', line 4; allowed: ",
    ),
    "exit": (HEAD + "import sys\nsys.exit(0)\n", "SystemExit: 0 in '{file}', line 4; allowed: "),
    "null bytes": ("\0", "in '{file}'"),
    "no card": (
        "from pyrocrl import Program\nclass A(Program):\n    pass\n",
        "TypeError: A: a Program needs a `card`, a pyrocrl.ModelCard in '{file}', line 2; allowed: ",
    ),
    "nothing": ("x = 1\n", "found no Program (no class) in '{file}'; allowed: one subclass of pyrocrl.Program"),
    "another class": ("class Other: ...\n", "found no Program (Other) in '{file}'; allowed: "),
    "imported": ("from pyrocrl.models.vae import VAE\n", "found no Program (no class) in '{file}'; allowed: "),
    "two": (
        model_text() + "\nclass Second(MyVAE):\n    pass\n",
        "found 2 Programs (MyVAE, Second) in '{file}'; allowed: one subclass of pyrocrl.Program in the file, or the cl",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(case: str, rows: str, tmp_path: Path, capsys: Capture) -> None:
    text, line = BAD[case]
    file = tmp_path / "bad.py"
    file.write_text(text)
    line = line.format(file=file)
    found = refused(lambda: zoo.get(file))
    assert found.startswith("model: found ") and line in found
    assert "MODEL: found " in (told := complaint(capsys, "fit", file, "--data", rows, "--out", tmp_path / "new"))
    assert line in told and not (tmp_path / "new").exists()
    assert line in complaint(capsys, "show", file)


def test_what_is_no_model(file: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    data = pyrocrl.simulate.draw("moran2022", seed=0, rows=20)
    cases: list[tuple[object, str]] = [
        ("./", "the folder '.'; allowed: a .py file"),
        ("./my_modle.py", "no file 'my_modle.py' (did you mean 'my_model.py'?); allowed: an existing .py file"),
        (tmp_path / "none" / "model.py", "no file "),
        ("./rows.csv", "'rows.csv'; allowed: a file ending in .py"),
        ("my_model", "'my_model' (did you mean './my_model.py'?); allowed: a model's name or file"),
        ("sparse_vea", "'sparse_vea' (did you mean 'sparse_vae'?); allowed: "),
        (3, "3; allowed: "),
        (None, "None; allowed: "),
        (Program, "the class Program; allowed: a subclass of pyrocrl.Program"),
        (dict, "the class dict; allowed: a subclass of pyrocrl.Program"),
    ]
    for model, line in cases:
        found = refused(lambda model=model: pyrocrl.build(model, data))  # type: ignore[misc]
        assert found.startswith("model: found ") and line in found
    assert "did you mean './my_model.py'" in complaint(capsys, "fit", "my_model", "--data", "moran2022", "--out", "new")
    assert "(did you mean 'my_model.py'?)" in complaint(capsys, "show", "./my_modle.py")


# -- installed packages --------------------------------------------------------------------------------------------

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes a package with a model and registers it as pip would; returns the module's file."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(
        text: str, entries: str = "my_vae = outside_a:MyVAE", package: str = "outside-a", version: str = "1"
    ) -> Path:
        module = package.replace("-", "_")
        info = site / f"{module}-0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[pyrocrl.models]\n{entries}\n")
        (site / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        return site / f"{module}.py"

    yield make
    for name in ("outside_a", "outside_b"):
        sys.modules.pop(name, None)


def test_an_installed_model_is_like_a_built_in_one(
    install: Install, marker: Path, data: Data, rows: str, tmp_path: Path, capsys: Capture
) -> None:
    install(model_text(marker=marker))
    assert zoo.names() == sorted([*zoo.built_in(), "my_vae"])
    assert zoo.get("vae") is VAE
    said(capsys, "list", "settings")
    said(capsys, "show", "vae")
    assert runs(marker) == 0, "neither names nor other models import it"
    assert "my_vae" in said(capsys, "list") and runs(marker) == 1
    assert "my_vae" in [card["name"] for card in json.loads(said(capsys, "list", "--json"))]
    assert "my_vae" in said(capsys, "choose", "--data", rows)
    out = tmp_path / "run"
    said(capsys, "fit", "my_vae", "--data", rows, "--out", out, *SMALL)
    assert "my_vae" in said(capsys, "evaluate", out)
    assert "claims nothing" in said(capsys, "report", out)
    found = fitted(zoo.get("my_vae"), data)
    came = found.meta["origin"]
    assert (came["kind"], came["name"], came["package"]) == ("entry point", "my_vae", "outside-a 1")
    np.testing.assert_array_equal(pyrocrl.load(found.save(tmp_path / "saved"), data).latents(), found.latents())


def test_an_installed_model_that_is_gone_or_changed_is_told(install: Install, data: Data, tmp_path: Path) -> None:
    module = install(model_text())
    path = fitted("my_vae", data).save(tmp_path / "saved")
    del sys.modules["outside_a"]
    module.write_text(model_text() + "# a longer text, so that python's cache knows\n")
    line = refused(lambda: pyrocrl.load(path))
    assert "a fit of 'my_vae' of outside-a 1, changed since the fit; allowed: program='my_vae' to take it as it" in line
    with pytest.warns(UserWarning, match="the text of MyVAE is not that"):
        pyrocrl.load(path, program="my_vae")
    install("", entries="")
    assert "'my_vae' of outside-a 1, which is not installed; allowed: program=" in refused(lambda: pyrocrl.load(path))


def test_installed_models_that_cannot_be_used(install: Install, capsys: Capture) -> None:
    cases = {
        "my_vae = outside_a:MyVAE": (
            "import no_such_thing",
            "which cannot be imported (ModuleNotFoundError: No module",
        ),
        "my_vae = outside_a:NotThere": (
            model_text(),
            "which cannot be imported (AttributeError: module 'outside_a' has",
        ),
        "my_vae = outside_a:torch": (model_text(), "which is no Program; allowed: a subclass of pyrocrl.Program"),
        "my_vae = outside_a:Program": (model_text(), "which is no Program"),
        "other = outside_a:MyVAE": (model_text(), "whose card is named 'my_vae'; allowed: one name in both"),
        "my_vae = not a place": (model_text(), "which cannot be imported"),
    }
    for entries, (text, line) in cases.items():
        sys.modules.pop("outside_a", None)
        install(text, entries)
        name, value = entries.split(" = ")
        found = refused(lambda name=name: zoo.get(name))  # type: ignore[misc]
        assert found.startswith(f"model: found {name!r} of outside-a 1, registered as {value!r}, ") and line in found
        assert line in complaint(capsys, "show", name)
        with pytest.warns(UserWarning, match="model: found"):
            assert [card.name for card in zoo.cards()] == zoo.built_in(), "the others are still listed"


def test_an_entry_point_with_a_name_that_is_taken(install: Install, marker: Path, data: Data, tmp_path: Path) -> None:
    install(model_text("vae", marker=marker), "vae = outside_a:MyVAE")
    line = "'vae' of outside-a 1 is not used: a model of pyrocrl has this name"
    with pytest.warns(UserWarning, match=line):
        assert zoo.get("vae") is VAE
    assert runs(marker) == 0 and zoo.names() == zoo.built_in()
    path = fitted(importlib.import_module("outside_a").MyVAE, data).save(tmp_path)
    assert "whose name a model of pyrocrl has now" in refused(lambda: pyrocrl.load(path))

    install(model_text(), "my_vae = outside_a:MyVAE")
    install(model_text(), "my_vae = outside_b:MyVAE", package="outside-b", version="2")
    assert "model: found 'my_vae' of outside-a 1 and of outside-b 2; allowed: one of these installed" in refused(
        lambda: zoo.get("my_vae")
    )


# -- origins -------------------------------------------------------------------------------------------------------


def test_a_class_knows_the_text_that_it_was_made_from() -> None:
    written = VAE.written_in
    assert written is not None and Path(written["file"]).read_text() == TEXT
    assert written["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert origin.origin(VAE) == {"kind": "built-in"}
    own = origin.origin(type("Own", (VAE,), {"__module__": __name__}))
    assert (own["kind"], own["class"], own["file"]) == ("file", "Own", str(Path(__file__).resolve()))
