"""`Data` and `Batch`: coding, splitting, moments, sparse and memory-mapped input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from pyrocrl import Data, InputError


def make(rows: int = 60, features: int = 4, seed: int = 0, **options: object) -> Data:
    x = np.random.default_rng(seed).normal(size=(rows, features)) + 100.0
    return Data(x, **options)  # type: ignore[arg-type]


def test_observational_environments_come_first() -> None:
    env = np.repeat(["b", "ctrl", "a"], 20)
    data = make(env=env, targets={"a": (1,), "b": (0,)})
    assert data.env_names == ["ctrl", "b", "a"]
    assert (data.env_labels() == env).all()
    np.testing.assert_array_equal(data.target_matrix(2), [[0, 0], [1, 0], [0, 1]])
    with pytest.raises(InputError, match="latent 1"):
        data.target_matrix(1)


def test_labels_are_compared_as_texts() -> None:
    assert make(env=np.array([1] * 30 + ["a"] * 30, dtype=object)).env_names == ["1", "a"]
    with pytest.raises(InputError, match="env: found two environments with the label '1'"):
        make(env=np.array([1] * 30 + ["1"] * 30, dtype=object))
    with pytest.raises(InputError, match="batch: found two environments"):
        make(batch=np.array([1] * 30 + ["1"] * 30, dtype=object))
    with pytest.raises(InputError, match="targets: found two environments with the label '1'"):
        make(env=np.repeat([0, 1], 30), targets={1: (0,), "1": (1,)})


def test_moments_are_those_of_each_environment_for_dense_sparse_and_mapped_rows(tmp_path: Path) -> None:
    env = np.random.default_rng(1).integers(0, 3, 500).astype(str)
    x = np.random.default_rng(0).normal(size=(500, 4)) * [1, 2, 3, 4] + 1e4
    np.save(tmp_path / "x.npy", x)
    inputs = (x, torch.as_tensor(x), scipy.sparse.csr_matrix(x), np.load(tmp_path / "x.npy", mmap_mode="r"))
    for rows in inputs:
        moments = Data(rows, env=env).moments
        for e, label in enumerate(sorted(set(env))):
            mine = x[env == label]
            assert moments.count[e] == len(mine)
            np.testing.assert_allclose(moments.mean[e], mine.mean(0), rtol=1e-12)
            np.testing.assert_allclose(moments.cov[e], np.cov(mine.T, bias=True), rtol=1e-7, atol=1e-7)


def test_split_is_stratified_disjoint_and_reproducible() -> None:
    data = make(env=np.repeat(["a", "b"], [50, 10]), truth={"z": np.arange(120.0).reshape(60, 2)})
    train, held = data.split(0.2, seed=3)
    assert (len(train), len(held)) == (48, 12)
    assert np.bincount(held.env).tolist() == [10, 2]
    assert not set(train.truth["z"][:, 0]) & set(held.truth["z"][:, 0])
    np.testing.assert_array_equal(held.x, data.split(0.2, seed=3)[1].x)
    assert held.env_names == data.env_names


def test_batch_takes_rows_and_keeps_the_whole_in_mind() -> None:
    data = make(batch=np.repeat(["r1", "r2"], 30), size_factor=np.linspace(1, 2, 60), aux=np.arange(60))
    batch = data.tensors(dtype=torch.float64)
    part = batch.take(torch.tensor([5, 7]))
    assert (len(part), part.total) == (2, 60)
    torch.testing.assert_close(part.x, torch.as_tensor(data.x[[5, 7]]))
    assert part.aux is not None
    assert part.aux[:, 0].tolist() == [5, 7]
    assert part.group.tolist() == [0, 0]
    whole = part.whole()
    assert (whole.total, whole.index.tolist()) == (2, [0, 1])


def test_moments_only_batch_carries_no_rows() -> None:
    batch = make().tensors(rows=False, moments=True)
    assert batch.x.shape == (0, 4)
    assert batch.moments is not None
    assert batch.total == 60


def test_rows_take_the_codes_of_another_data_set_by_name() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    fitted = Data(x, env=list("abcabc"), batch=list("uvuvuv"), targets={"b": (1,), "c": (0,)})
    assert fitted.env_names == ["a", "c", "b"]
    rows = Data(x[:2], env=["b", "c"], batch=["v", "v"]).coded_as(fitted.env_names, fitted.batch_names)
    assert rows.env.tolist() == [2, 1] and rows.batch.tolist() == [1, 1]
    assert rows.env_labels().tolist() == ["b", "c"]
    with pytest.raises(InputError, match="env: found 'd', which was not fitted; allowed: one of 'a', 'c', 'b'"):
        Data(x, env=list("abcabd")).coded_as(fitted.env_names)
    with pytest.raises(InputError, match="batch: found 'w', which was not fitted"):
        Data(x, batch=list("uvuvuw")).coded_as(None, fitted.batch_names)


def test_some_rows_are_spread_over_all() -> None:
    data = Data(np.random.default_rng(0).normal(size=(100, 4)))
    assert data.some(400, 1) is data
    np.testing.assert_array_equal(data.some(80, 1).x, data.x[np.linspace(0, 99, 20).astype(int)])
    assert data.some(80, 30).rows == 30
