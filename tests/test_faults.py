"""Kills, NaNs and damaged files: what is lost, what goes on, what is said."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Data, FitError, InputError, ModelCard, Program, Recipe, Site, cli, io
from pyrocrl.cli import runs
from pyrocrl.dists import Normal
from pyrocrl.files import LOCK, held
from pyrocrl.infer import checkpoint, loop
from pyrocrl.models.vae import VAE

ARGUMENTS = ["--latents", "2", "--chains", "2", "--epochs", "30", "--draws", "3", "--option", "hidden=8", "--quiet"]
KILLED = """
import os, signal, sys
import pyrocrl
from pyrocrl import cli
whole = pyrocrl.fit
def fit(*args, **kwargs):
    return whole(*args, **kwargs, on_epoch=lambda epoch: epoch == 25 and os.kill(os.getpid(), signal.SIGKILL))
pyrocrl.fit = fit
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Reports have tests of their own; here a file in their place saves most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrocrl.report.write", lambda *given: given[4].write_text("<html>"))
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data file."""
    data = pyrocrl.simulate.draw("moran2022", seed=100, rows=120)
    return io.write(data, tmp_path_factory.mktemp("data") / "rows.npz")


def command(rows: Path, out: Path, *more: str) -> list[str]:
    return ["fit", "vae", "--data", str(rows), "--out", str(out), *ARGUMENTS, *more]


@pytest.fixture(scope="module")
def whole(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(command(rows, out)) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(runs.RESULTS)
    return out


def assert_same_result(a: Path, b: Path) -> None:
    mine, theirs = (checkpoint.read(p / runs.CHECKPOINT)[0] for p in (a, b))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    trees = [io.read_tree(p / runs.POSTERIOR) for p in (a, b)]
    for tree in trees:
        tree.attrs.pop("fit")  # which names the seconds, too
    assert trees[0].identical(trees[1])
    for name in (runs.SCORES, runs.VERDICT):
        assert unnamed(a / name) == unnamed(b / name)


def unnamed(path: Path) -> dict:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "fit"}


def test_a_killed_fit_is_resumed_to_the_same_result(
    rows: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, *command(rows, out)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert {p.name for p in out.iterdir()} == {runs.CHECKPOINT, LOCK}, (
        "the last good checkpoint and a lock that is open"
    )
    assert checkpoint.read(out)[1]["epoch"] == 20
    with pytest.raises(InputError, match="an interrupted fit"):
        pyrocrl.load(out)
    assert cli.main(["evaluate", str(out)]) == 2
    assert "an unfinished fit" in capsys.readouterr().err
    (out / "checkpoint.safetensors.1.part").write_bytes(b"half")  # as a kill in the middle of writing leaves it

    other = command(rows, out, "--resume")
    other[other.index("--latents") + 1] = "3"
    assert cli.main(other) == 2
    assert "resume: found a checkpoint with config" in capsys.readouterr().err
    assert cli.main(command(rows, out, "--resume")) == 0
    assert_same_result(out, whole)
    assert sorted(p.name for p in out.iterdir()) == sorted(runs.RESULTS)


def test_a_fit_killed_before_its_posterior_was_written_is_resumed(
    rows: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "late"
    out.mkdir()
    (out / runs.CHECKPOINT).write_bytes((whole / runs.CHECKPOINT).read_bytes())
    assert cli.main([*command(rows, out, "--resume"), "--seed", "1"]) == 2
    assert "--resume: found a fit with another seed" in capsys.readouterr().err
    assert cli.main(command(rows, out, "--resume")) == 0
    assert_same_result(out, whole)
    assert cli.main(command(rows, out, "--resume")) == 2
    assert "--resume: found a finished fit" in capsys.readouterr().err
    more = command(rows, out, "--more", "3")
    assert cli.main(more) == 2 and "--more: found 3 with --epochs" in capsys.readouterr().err
    at = more.index("--epochs")
    del more[at : at + 2]
    assert cli.main([*more, "--force"]) == 2 and "--more: found together with --force" in capsys.readouterr().err
    done = pyrocrl.load(out).meta["epochs"]
    assert cli.main(more) == 0 and pyrocrl.load(out).meta["epochs"] == done + 3
    assert cli.main(["evaluate", str(out)]) == 0, "all files are of the fit that went on"


def interrupted(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """A command to which Ctrl-C comes in epoch 25."""
    whole = pyrocrl.fit
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; workers of tests ignore it
    with monkeypatch.context() as patch:
        patch.setattr(
            pyrocrl,
            "fit",
            lambda *given, **more: whole(
                *given, **more, on_epoch=lambda epoch: epoch == 25 and os.kill(os.getpid(), signal.SIGINT)
            ),
        )
        try:
            return cli.main(args)
        finally:
            assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_ctrl_c_says_how_to_go_on_and_what_goes_on_ends_the_same(
    rows: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert interrupted(monkeypatch, *command(rows, out)) == 130
    line = f"pyrocrl: interrupted; `pyrocrl fit ... --resume` goes on with what is in {out}\n"
    assert capsys.readouterr().err == line
    assert [p.name for p in out.iterdir()] == [runs.CHECKPOINT] and checkpoint.read(out)[1]["epoch"] == 25
    longer = command(rows, out, "--resume")
    longer[longer.index("--epochs") + 1] = "40"
    assert cli.main(longer) == 2
    assert "resume: found a checkpoint with epochs 30; allowed: the same epochs as before" in capsys.readouterr().err
    assert cli.main(command(rows, out, "--resume")) == 0
    assert_same_result(out, whole)


def test_ctrl_c_before_there_is_a_checkpoint(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("pyrocrl.fit", "pyrocrl.zoo.get"):
        monkeypatch.setattr(place, stop)
        assert cli.main(command(rows, tmp_path / "run")) == 130
        said = capsys.readouterr().err
        early = "pyrocrl: interrupted before the first checkpoint; `pyrocrl fit ...` begins anew\n"
        assert said == (early if place == "pyrocrl.fit" else "pyrocrl: interrupted\n")
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("place", ["start", "step"])
def test_checkpoints_do_not_wait_for_the_end_of_an_epoch(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 20 seconds, here at once: a start or an epoch may take longer."""
    data = pyrocrl.simulate.draw("moran2022", seed=3, rows=80)
    options = {"chains": 3, "epochs": 2, "seed": 4, "progress": False, "batch_size": 16, "checkpoint_every": 99}
    whole = pyrocrl.fit(VAE(data.features, 2, hidden=4), data, **options)
    done: list[int] = []
    owner, method = {"start": (VAE, "initialise"), "step": (loop.Loop, "_step")}[place]
    original = getattr(owner, method)

    def once_more(*given: object) -> None:
        if len(done) == 2:
            raise RuntimeError("killed")
        done.append(1)
        original(*given)

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, once_more)
        with pytest.raises(RuntimeError, match="killed"):
            pyrocrl.fit(VAE(data.features, 2, hidden=4), data, out=tmp_path, **options)
    header = checkpoint.read(tmp_path)[1]
    assert header.get("step") == (2 if place == "step" else None)
    started: list[int] = []
    first = VAE.initialise
    monkeypatch.setattr(VAE, "initialise", lambda *given: started.append(1) or first(*given))
    resumed = pyrocrl.fit(VAE(data.features, 2, hidden=4), data, out=tmp_path, resume=True, **options)
    assert len(started) == (1 if place == "start" else 0), "chains that have started do not start again"
    np.testing.assert_array_equal(whole.history, resumed.history)
    np.testing.assert_array_equal(whole.latents(data), resumed.latents(data))


def test_a_second_process_is_refused(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with ThreadPoolExecutor(1) as pool, held(out, "out"):
        assert pool.submit(cli.main, command(rows, out)).result() == 2
    assert f"--out: found {out}, which process {os.getpid()} is writing" in capsys.readouterr().err


# -- chains that fail --------------------------------------------------------------------------------------------


class Poisoned(Program):
    """A normal mean whose objective turns NaN, in the chains drawn for it, where the first mean passes `bound`."""

    card = ModelCard(name="poisoned", title="Poisoned", family="test", summary="Fails in some chains.")
    recipe = Recipe(epochs=40, batch_size=None, lr=0.2, kl_warmup=0.0, temperature_span=0.0, check_every=1)
    sites = {"z": Site(("data", "latent"), {"latent": "point"})}
    own_units = True
    turns_nan = True
    poisoned: Tensor

    def __init__(self, features: int, latents: int = 1, share: float = 0.67, bound: float = -1.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))
        self.register_buffer("poisoned", torch.zeros(()))

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        self.poisoned.fill_(float(torch.rand((), generator=generator) < self.config["share"]))

    def story(self, batch: Batch) -> None:
        with self.rows(batch):
            zero = torch.zeros_like(self.mean[:1])
            z = pyro.sample("z", Normal(zero, zero + 1).to_event(1))
            bad = (self.poisoned > 0) & (self.mean[0] > self.config["bound"]) & self.turns_nan
            mean = self.mean + 0 * z + torch.where(bad, torch.nan, 0.0)
            pyro.sample("x", Normal(mean, torch.ones_like(self.mean), validate_args=False).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            zero = batch.x.new_zeros(len(batch), 1)
            pyro.sample("z", Normal(zero, zero + 1).to_event(1))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x[:, :1] - self.mean[:1]


@pytest.fixture
def few() -> Data:
    return Data(np.random.default_rng(0).standard_normal((60, 3)) + 2.0)


def poisoned_chains(data: Data, share: float, chains: int = 4) -> list[int]:
    fit = pyrocrl.fit(Poisoned(3, share=share, bound=99.0), data, chains, 1, progress=False)
    return torch.nonzero(fit.chains.buffers["poisoned"]).flatten().tolist()


def test_a_nan_retires_its_chain_and_the_others_finish(few: Data) -> None:
    bad = poisoned_chains(few, 0.67)
    assert 0 < len(bad) < 4
    with pytest.warns(RuntimeWarning) as said:
        fit = pyrocrl.fit(Poisoned(3), few, chains=4, progress=False)
    assert [str(w.message) for w in said] == [f"chain {c}: non-finite objective, retired; it is left out" for c in bad]
    assert fit.chains.count == 4 - len(bad) and not set(fit.kept) & set(bad)
    assert fit.meta["retired"] == bad
    assert torch.isfinite(fit.chains.params["mean"]).all()
    np.testing.assert_allclose(
        fit.chains.params["mean"].detach(), np.tile(few.x.mean(0), (fit.chains.count, 1)), atol=0.3
    )
    assert np.isfinite(fit.posterior(2, predictive=False)["posterior"]["z"]).all()


def test_a_late_nan_keeps_the_chains_last_good_state(few: Data) -> None:
    bad = poisoned_chains(few, 0.67)
    with pytest.warns(RuntimeWarning, match="retired; its last good state is kept") as said:
        fit = pyrocrl.fit(Poisoned(3, bound=1.0), few, chains=4, progress=False)
    assert len(said) == len(bad) and fit.kept == [0, 1, 2, 3]
    assert torch.isfinite(fit.chains.params["mean"]).all()


def test_a_retired_chain_does_not_touch_the_others(few: Data) -> None:
    bad = poisoned_chains(few, 0.67)
    good = [c for c in range(4) if c not in bad]
    with pytest.warns(RuntimeWarning):
        ill = pyrocrl.fit(Poisoned(3), few, chains=4, progress=False)
    well = pyrocrl.fit(Poisoned(3, bound=99.0), few, chains=4, progress=False)
    torch.testing.assert_close(ill.chains.params["mean"], well.chains.params["mean"][good], rtol=0, atol=0)


def test_a_fit_with_no_chain_left_fails_in_one_line(
    rows: Path, tmp_path: Path, few: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FitError, match="every chain's objective became non-finite by epoch 1; try a smaller lr"):
        pyrocrl.fit(Poisoned(3, share=1.0), few, chains=2, progress=False)

    def broken(*_: object, **__: object) -> None:
        raise FitError("every chain's objective became non-finite by epoch 1; try a smaller lr")

    monkeypatch.setattr(pyrocrl, "fit", broken)
    capsys.readouterr()
    assert cli.main(command(rows, tmp_path / "run")) == 1
    assert capsys.readouterr().err == (
        "pyrocrl: failed: every chain's objective became non-finite by epoch 1; try a smaller lr\n"
    )
    assert not list(tmp_path.rglob("*.*"))


class Singular(Poisoned):
    """Where it is poisoned a matrix turns singular: at the start, or in the objective where the mean passes `bound`."""

    card = ModelCard(name="singular", title="Singular", family="test", summary="Inverts what has no inverse.")
    turns_nan = False

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        super().initialise(data, generator)
        if self.config["bound"] < 0 and self.poisoned > 0:
            torch.linalg.inv(torch.zeros(2, 2))

    def story(self, batch: Batch) -> None:
        bad = (self.poisoned > 0) & (self.mean[0] > self.config["bound"])
        torch.linalg.inv(torch.eye(2) * torch.where(bad, 0.0, 1.0))
        super().story(batch)


@pytest.mark.parametrize("bound", [-1.0, 1.0])
def test_a_singular_chain_is_retired_and_the_others_run_on_as_one(
    few: Data, bound: float, caplog: pytest.LogCaptureFixture
) -> None:
    bad = poisoned_chains(few, 0.67)
    with pytest.warns(RuntimeWarning, match="retired") as said, caplog.at_level("WARNING", "pyrocrl"):
        fit = pyrocrl.fit(Singular(3, bound=bound), few, chains=4, progress=False)
    assert len(said) == len(bad) and fit.meta["retired"] == bad
    assert fit.chains.batched and not caplog.records
    well = pyrocrl.fit(Poisoned(3, bound=99.0), few, chains=4, progress=False)
    good = [c for c in range(4) if c not in bad]
    mine = fit.chains.params["mean"][[fit.kept.index(c) for c in good]]
    torch.testing.assert_close(mine, well.chains.params["mean"][good], rtol=1e-4, atol=1e-4)
    with pytest.raises(FitError, match=r"a matrix is singular in every chain \(linalg.inv"):
        pyrocrl.fit(Singular(3, share=1.0, bound=bound), few, chains=2, progress=False)


# -- files -------------------------------------------------------------------------------------------------------


def test_damaged_checkpoints_are_told_apart(whole: Path, rows: Path, tmp_path: Path) -> None:
    good = (whole / runs.CHECKPOINT).read_bytes()
    path = tmp_path / "c.safetensors"
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"path: .* damaged or foreign .*; allowed: a whole checkpoint"):
        pyrocrl.load(path)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(InputError, match=r"path: .*edited"):
        pyrocrl.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"path: .*no checkpoint of pyrocrl.*'pt'"):
        pyrocrl.load(path)
    tensors, header = checkpoint.read(whole)
    checkpoint.write(path, tensors, header | {"model": "no_such_model"})
    with pytest.raises(InputError, match=r"model: found 'no_such_model'"):
        pyrocrl.load(path)
    checkpoint.write(path, tensors, header | {"config": {**header["config"], "features": 9}})
    with pytest.raises(InputError, match=r"path: .*does not fit vae"):
        pyrocrl.load(path)


EDITS: dict[str, Callable[[dict], object]] = {
    "names": lambda h: h["names"].update(feature=h["names"]["feature"][::-1]),
    "kept": lambda h: h.update(kept=[1, 0]),
    "seed": lambda h: h["meta"].update(seed=1),
    "options": lambda h: h["config"].update(hidden=9),
    "batched": lambda h: h.update(batched=False),
}


@pytest.mark.parametrize("what", [*EDITS, "no digest"])
def test_an_edited_header_is_refused(what: str, whole: Path, tmp_path: Path) -> None:
    raw = (whole / runs.CHECKPOINT).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    outer = json.loads(raw[8 : 8 + size])
    if what == "no digest":
        del outer["__metadata__"]["digest"]
    else:
        header = json.loads(outer["__metadata__"]["header"])
        EDITS[what](header)
        outer["__metadata__"]["header"] = json.dumps(header)
    text = json.dumps(outer).encode()
    path = tmp_path / "edited.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(InputError, match=r"path: .* was edited \(its digest does not match\)"):
        pyrocrl.load(path)


def test_a_checkpoint_of_an_older_version_is_told(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, header = checkpoint.read(whole)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.UNSAFE)
    path = checkpoint.write(tmp_path / "old.safetensors", tensors, header)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"path: found .*older pyrocrl.*; allowed: a checkpoint of this version"):
        pyrocrl.load(path)


def of_another(tree: xr.DataTree) -> xr.DataTree:
    out = tree.copy()
    out.attrs = {**tree.attrs, "fit": "f" * 64}
    return out


def test_every_file_names_its_fit_and_another_ones_are_refused(
    rows: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = pyrocrl.load(whole, io.read(rows))
    name = fit.digest
    del fit.digest
    assert fit.digest == name, "made anew from what was read"
    verdict = pyrocrl.diagnose(fit)
    trees = [fit.posterior(2), fit.prior(2), io.read_tree(whole / runs.POSTERIOR)]
    assert {tree.attrs["fit"] for tree in trees} == {verdict.fit} == {name}
    for file in (runs.RUN, runs.VERDICT, runs.SCORES):
        assert json.loads((whole / file).read_text())["fit"] == name
    other = dataclasses.replace(verdict, fit="f" * 64)
    with pytest.raises(InputError, match=f"verdict: found what is of fit ffffffffffff; allowed: .*{name[:12]}"):
        pyrocrl.report.render(fit, trees[0], other)
    for tree, found in ((of_another(trees[0]), "of fit ffff"), (xr.DataTree(), "does not say of which")):
        with pytest.raises(InputError, match=f"tree: found what .*{found}"):
            pyrocrl.report.render(fit, tree, None)
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = (out / runs.REPORT).read_bytes()
    for file in (runs.RUN, runs.SCORES, runs.POSTERIOR):
        if file == runs.POSTERIOR:
            io.write_tree(of_another(trees[2]), out / file)
        else:
            io.write_json({**json.loads((out / file).read_text()), "fit": "f" * 64}, out / file)
        assert cli.main(["report", str(out), "--data", str(rows)]) == 2
        assert f"{file}: found what is of fit ffffffffffff; allowed" in capsys.readouterr().err
        (out / file).write_bytes((whole / file).read_bytes())
    assert (out / runs.REPORT).read_bytes() == before
    assert cli.main(["report", str(out), "--data", str(rows)]) == 0


def test_force_writes_anew_and_bad_input_leaves_what_is_there(
    rows: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in runs.RESULTS:
        (out / name).write_bytes((whole / name).read_bytes())
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert cli.main(command(rows, out)) == 2
    assert "which holds files; allowed: a new folder, --force" in capsys.readouterr().err
    bad = command(rows, out, "--force")
    bad[bad.index("--epochs") + 1] = "0"
    assert cli.main(bad) == 2
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert cli.main([*command(rows, out, "--force"), "--seed", "3"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / runs.RUN).read_text())["seed"] == 3
