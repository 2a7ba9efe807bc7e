"""sinusoidal against its oracle, Marian and RoFormer."""

import math

import numpy as np
import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.roformer.modeling_roformer import RoFormerSinusoidalPositionalEmbedding

from hf_posswap.common.positions import Positions
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.sinusoidal import SinusoidalConfig, sinusoids
from tests.oracles.sinusoidal import embedding_oracle
from tests.reference import build, model_facts


def positions_at(*rows: list[int]) -> Positions:
    at = torch.tensor(rows)
    return Positions(at, at, offset=0, causal=True, by_index=False)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("base", "amplitude"), [(10000.0, 1.0), (500.0, 0.3)])
def test_equals_the_oracle(base, amplitude, interleaved):
    rows = [[0, 1, 2, 3], [7, 3, 900, 20000]]
    scheme, _ = build(SinusoidalConfig(base=base, amplitude=amplitude, interleaved=interleaved), model_facts())
    expected = torch.from_numpy(np.stack([embedding_oracle(row, 16, base, amplitude, interleaved) for row in rows]))
    # An angle of 20000 has float32 spacing 2e-3 at most; sines of angles near it are off by as much.
    torch.testing.assert_close(scheme.embed(positions_at(*rows)).double(), expected, atol=2e-3, rtol=0)
    near = scheme.embed(positions_at(rows[0]))[0].double()
    torch.testing.assert_close(near, expected[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("table_class", [MarianSinusoidalPositionalEmbedding, RoFormerSinusoidalPositionalEmbedding])
def test_sines_then_cosines_equal_the_tables_of_marian_and_roformer(table_class):
    theirs = table_class(512, 24).create_weight()
    ours = sinusoids(torch.arange(512), 24, 10000.0, interleaved=False)
    # Their angles are float64; float32 angles up to 512 are off by 512 · 2^−24 = 3e-5.
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


def test_learned_amplitude_scales_and_learns():
    scheme, _ = build(SinusoidalConfig(amplitude=1.0, trainable=True), model_facts())
    at = positions_at([3, 5])
    scheme.embed(at).sum().backward()
    factor = float(scheme.amplitude.detach())
    expected = torch.from_numpy(embedding_oracle([3, 5], 16, 10000.0, factor, True))
    torch.testing.assert_close(scheme.embed(at)[0].detach().double(), expected, atol=1e-6, rtol=0)
    assert scheme.amplitude.grad.abs() > 0


def test_amplitude_gives_the_old_tables_root_mean_square():
    table = 3.0 + 0.2 * torch.randn(400, 16)  # a mean row, and positions around it
    table[0] += 50  # the outlier at position 0 does not count
    scheme, _ = build(SinusoidalConfig(), model_facts(native_table=table, native="learned"))
    rms = scheme.embed(positions_at(list(range(4000)))).square().mean().sqrt()
    assert rms == pytest.approx(0.2, rel=0.05)


def test_without_a_table_the_amplitude_follows_the_token_embeddings():
    scheme, _ = build(SinusoidalConfig(), model_facts(embedding_rms=0.7))
    assert scheme.config.amplitude == pytest.approx(0.7 * math.sqrt(2))


def test_half_precision_keeps_far_positions_apart():
    scheme, _ = build(SinusoidalConfig(amplitude=1.0), model_facts())
    scheme.to(torch.float16)
    embedded = scheme.embed(positions_at([2049, 2050]))
    assert embedded.dtype == torch.float32
    expected = torch.from_numpy(embedding_oracle([2049, 2050], 16, 10000.0, 1.0, True))
    torch.testing.assert_close(embedded[0].double(), expected, atol=3e-4, rtol=0)  # float32 angles up to 2050


def test_odd_width_is_refused():
    with pytest.raises(UnsupportedError, match="even model width, and it is 15"):
        check_supported(SinusoidalConfig(amplitude=1.0), model_facts(hidden_size=15))
