"""Checkpoints with relative positions of transformers 4, which transformers 5 reads as if they had absolute ones."""

from pathlib import Path

import pytest
import transformers

import hf_posswap
from hf_posswap.architectures import architecture_of
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import schemes
from hf_posswap.swapped.capabilities import families
from tests.families.configs import model_types, tiny_config, tiny_model

ENCODERS = sorted(
    {family.model_type for family in families() if family.supported and family.mode == "encoder"}
    & {model_type for model_type, _, _ in model_types()}
)
KINDS = ("relative_key", "relative_key_query")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_encoder_that_says_so_is_refused_by_name(model_type: str, kind: str) -> None:
    config = tiny_config(model_type, False)
    architecture_of(config)
    config.position_embedding_type = kind
    with pytest.raises(UnsupportedError, match=f"'{model_type}' is not supported.*position_embedding_type '{kind}'"):
        architecture_of(config)


@pytest.mark.parametrize("scheme", [scheme.name for scheme in schemes])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scheme_does_not_enter_such_a_checkpoint(kind: str, scheme: str, tmp_path: Path) -> None:
    model = tiny_model("bert", False)
    model.config.position_embedding_type = kind
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=f"position_embedding_type '{kind}'.*hf_posswap.inspect"):
        hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path, pos_scheme=scheme)
    found = hf_posswap.inspect(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path))
    assert any(kind in sentence and "relative tables are not used" in sentence for sentence in found.disagreements)


def test_absolute_positions_are_what_they_were(tmp_path: Path) -> None:
    model = tiny_model("bert", False)
    model.config.position_embedding_type = "absolute"
    model.save_pretrained(tmp_path)
    loaded = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path, pos_scheme="alibi")
    assert hf_posswap.is_swapped(loaded)
