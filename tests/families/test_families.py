"""Every model type that transformers has: what its entry in families.json says is true on the installed release."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.capabilities import FAMILIES_FILE, Family, families
from tests.families.checks import LENGTH, SCHEMES, logits, outcome, tokens
from tests.families.configs import CANNOT, model_types, tiny_model

KNOWN = {(model_type, "causal" if causal else "encoder") for model_type, causal, _ in model_types()}
"""What the installed transformers has; an older one lacks some types."""
SUPPORTED = [family for family in families() if family.supported and (family.model_type, family.mode) in KNOWN]
REFUSED = [
    family
    for family in families()
    if not family.supported and family.model_type not in CANNOT and (family.model_type, family.mode) in KNOWN
]
NEEDED = ("alibi", "t5", "rope")


def recorded_with() -> str:
    return str(json.loads(FAMILIES_FILE.read_text(encoding="utf-8"))["transformers"])


def name_of(value: object) -> str:
    return f"{value.model_type}-{value.mode}" if isinstance(value, Family) else str(value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", SUPPORTED, ids=name_of)
def test_a_supported_family_takes_the_scheme_exactly_or_refuses_it(family: Family, scheme: str, tmp_path: Path) -> None:
    found = outcome(family.model_type, family.mode == "causal", scheme, tmp_path)
    assert found.kind != "failed", found.reason
    if found.kind == "refused" and transformers.__version__ == recorded_with():  # another release may refuse more
        assert scheme not in NEEDED, found.reason
        assert scheme in (family.reason or ""), f"families.json does not say so: {found.reason}"


@pytest.mark.parametrize("family", SUPPORTED, ids=name_of)
def test_a_scheme_with_a_state_gets_the_hidden_states_of_every_family(family: Family) -> None:
    """Some cannot keep its state: their cache holds latents, or layers read the keys of another layer."""
    causal = family.mode == "causal"
    model = tiny_model(family.model_type, causal)
    refusal = ""
    try:
        hf_posswap.swap(model, "fox" if causal else "cable")
    except UnsupportedError as error:
        refusal = str(error)
    assert "got none as an argument" not in refusal
    assert hf_posswap.is_swapped(model) == (not refusal)


@pytest.mark.parametrize("family", [family for family in SUPPORTED if family.mode == "encoder"], ids=name_of)
def test_an_encoder_gets_a_window_beside_its_own_positions_or_refuses_it(family: Family) -> None:
    text = tokens()
    stock, windowed, wide = (tiny_model(family.model_type, False) for _ in range(3))
    refusal = ""
    try:
        hf_posswap.swap(windowed, "none:keep_native=true:window=2")
    except UnsupportedError as error:
        refusal = str(error)
    if refusal:
        assert "adds a bias of its own" in refusal
        return
    expected = logits(stock, text)
    torch.testing.assert_close(
        logits(hf_posswap.swap(wide, f"none:keep_native=true:window={LENGTH}"), text), expected, atol=1e-5, rtol=1e-4
    )
    other = text.clone()
    other[:, -1] = 91
    assert not torch.equal(logits(stock, other)[:, 0], expected[:, 0])
    assert torch.equal(logits(windowed, other)[:, 0], logits(windowed, text)[:, 0])


@pytest.mark.parametrize("family", REFUSED, ids=name_of)
def test_a_family_that_is_not_supported_still_is_not(family: Family, tmp_path: Path) -> None:
    """If this fails, `python docs/families.py` writes better news."""
    try:
        kinds = {outcome(family.model_type, family.mode == "causal", scheme, tmp_path).kind for scheme in NEEDED}
    except Exception:  # a model that is no model of text fails in ways of its own
        kinds = {"failed"}
    assert kinds != {"ok"} or transformers.__version__ != recorded_with()
    assert family.reason


def test_there_are_as_many_families_as_the_documentation_says() -> None:
    assert len({family.model_type for family in families() if family.supported}) >= 120
