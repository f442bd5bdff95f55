"""How far off guides read latents, by rows that the story tells."""

from __future__ import annotations

import math

import pytest
import torch

from pyrocrl import simulate, zoo
from pyrocrl.parts import readings

ROWS, NOISE = 4_000, 0.3


def test_errors_of_a_linear_reader_are_those_of_the_noise_it_reads() -> None:
    """x = [z, z] + noise, read by half the sum: noise / sqrt 2 of each latent. Who reads nothing is as far off as
    latents vary."""
    data = simulate.draw("ahuja2022_pairs", seed=0, pairs=ROWS // 2, latents=2, features=4, layers=0)
    program = zoo.get("sparse_perturbations").from_data(data, decoder="linear")
    eye = torch.eye(2)
    with torch.no_grad():
        program.decoder.weight.copy_(torch.cat([eye, eye]))
        program.decoder.bias.zero_()
        program.encoder.weight.copy_(torch.cat([eye, eye], 1) / 2)
        program.encoder.bias.zero_()
        program.observation.raw_noise.fill_(math.log(NOISE))
        torch.manual_seed(0)
        rows, values = readings.told(program, data.tensors())
        read = program.latents(rows)
    assert rows.x.shape == (data.rows, 4) and not torch.equal(rows.x, data.tensors().x)
    assert readings.error(read, values["z"]).tolist() == pytest.approx([NOISE / math.sqrt(2)] * 2, rel=0.05)
    none = readings.error(10 * torch.randn(data.rows, 2), values["z"])
    torch.testing.assert_close(none, values["z"].std(0))
    with torch.no_grad():
        program.finish(data, torch.Generator())
    assert program.raw_width.exp().tolist() == pytest.approx([NOISE / math.sqrt(2)] * 2, rel=0.1)
