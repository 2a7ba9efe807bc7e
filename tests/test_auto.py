"""The drop-in Auto classes, install(), and what happens without either."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.errors import AlreadySwappedError, UnknownNameError
from tests import warm
from tests.matrix.cells import random_tokens, small_config, small_model
from tests.matrix.test_round_trip import ENVIRONMENT


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    small_model("gpt2", True).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def expected_logits(scheme: str) -> torch.Tensor:
    return hf_posswap.swap(small_model("gpt2", True), scheme)(random_tokens(1, 12)).logits


def test_drop_in_class(checkpoint: Path) -> None:
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(checkpoint, pos_scheme="alibi")
    assert torch.equal(model(random_tokens(1, 12)).logits, expected_logits("alibi"))
    stock = hf_posswap.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(stock) is transformers.GPT2LMHeadModel


def test_every_auto_class_has_a_drop_in() -> None:
    names = [name for name in dir(transformers) if name.startswith("AutoModel")]
    assert len(names) > 30
    for name in names:
        if hasattr(getattr(transformers, name), "_model_mapping"):
            assert issubclass(getattr(hf_posswap, name), getattr(transformers, name))
    with pytest.raises(UnknownNameError, match="Did you mean 'AutoModelForCausalLM'"):
        _ = hf_posswap.AutoModelForCausalML


def test_the_scheme_is_checked_before_the_model_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'alibi'"):
        hf_posswap.AutoModelForCausalLM.from_pretrained("no/such-model", pos_scheme="alibbi")


def test_stock_arguments_keep_working(checkpoint: Path) -> None:
    model, info = hf_posswap.AutoModelForCausalLM.from_pretrained(
        checkpoint, pos_scheme="t5", dtype=torch.bfloat16, attn_implementation="eager", output_loading_info=True
    )
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert not info["missing_keys"]


def test_from_config() -> None:
    model = hf_posswap.AutoModelForCausalLM.from_config(small_config("gpt2", True), pos_scheme="rope")
    assert type(model).__name__ == "PosSwapGPT2LMHeadModel"


def test_install_teaches_auto_and_concrete_classes(checkpoint: Path) -> None:
    tokens = random_tokens(1, 12)
    hf_posswap.install()
    hf_posswap.install()
    try:
        for stock in (transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel):
            model = stock.from_pretrained(checkpoint, pos_scheme="alibi")
            assert torch.equal(model(tokens).logits, expected_logits("alibi"))
            assert type(stock.from_pretrained(checkpoint)) is transformers.GPT2LMHeadModel
    finally:
        hf_posswap.uninstall()
    with pytest.raises(TypeError, match="pos_scheme"):
        transformers.AutoModelForCausalLM.from_pretrained(checkpoint, pos_scheme="alibi")
    with pytest.raises(TypeError, match="pos_scheme"):
        transformers.GPT2LMHeadModel.from_pretrained(checkpoint, pos_scheme="alibi")


def test_install_as_a_context_manager(checkpoint: Path) -> None:
    before = transformers.PreTrainedModel.__dict__["from_pretrained"]
    with hf_posswap.install():
        model = transformers.AutoModel.from_pretrained(checkpoint, pos_scheme="none")
        assert hf_posswap.is_swapped(model)
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is before


def test_a_scheme_for_a_swapped_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    hf_posswap.AutoModelForCausalLM.from_pretrained(checkpoint, pos_scheme="t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(AlreadySwappedError, match="has scheme 't5' already"):
        hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path / "t5", pos_scheme="alibi")


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_posswap":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Hide())
"""


def python(
    code: str, *arguments: str, without_hf_posswap: bool = False, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    if without_hf_posswap:
        code = HIDE + code
    return warm.run(["-c", code, *arguments], env=ENVIRONMENT, stdin=stdin)


LOAD = "import sys, transformers; print(type(transformers.{auto}.from_pretrained(sys.argv[1]{extra})).__name__)"


@pytest.fixture(scope="module")
def swapped_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("swapped")
    hf_posswap.swap(small_model("gpt2", True), "alibi").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("first", ["import hf_posswap\n", "import transformers, hf_posswap\n",
                                   "from transformers import AutoModelForCausalLM\nimport hf_posswap\n"])  # fmt: skip
def test_importing_hf_posswap_is_enough_for_stock_auto_classes(swapped_checkpoint: str, first: str) -> None:
    done = python(first + LOAD.format(auto="AutoModelForCausalLM", extra=""), swapped_checkpoint)
    assert done.stdout.strip() == "PosSwapGPT2LMHeadModel", done.stderr


LOAD_BOTH = """
import sys, transformers
for auto in (transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel):
    try:
        auto.from_pretrained(sys.argv[1])
    except (ValueError, RuntimeError) as error:
        print(f"\\n{auto.__name__} refuses:", " ".join(str(error).split()))  # after the question whether code may run
"""


def test_plain_transformers_refuses_a_swapped_checkpoint(swapped_checkpoint: str) -> None:
    done = python(LOAD_BOTH, swapped_checkpoint, without_hf_posswap=True)
    assert done.returncode == 0, done.stderr
    by_auto, by_class = (line for line in done.stdout.splitlines() if "refuses:" in line)
    assert re.match("AutoModelForCausalLM refuses: .*contains custom code", by_auto)
    assert by_class.startswith("GPT2LMHeadModel refuses: ")
    assert "size mismatch" in done.stderr


def test_remote_code_loads_it_and_says_what_to_install(swapped_checkpoint: str) -> None:
    code = LOAD.format(auto="AutoModelForCausalLM", extra=", trust_remote_code=True")
    done = python(code, swapped_checkpoint)
    assert done.stdout.strip() == "PosSwapGPT2LMHeadModel", done.stderr
    missing = python(code, swapped_checkpoint, without_hf_posswap=True)
    assert missing.returncode != 0
    assert "pip install hf_posswap" in missing.stderr


def test_importing_hf_posswap_imports_neither_torch_nor_models() -> None:
    code = "import sys, hf_posswap; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "False"]


def test_public_names() -> None:
    for name in dir(hf_posswap):
        assert getattr(hf_posswap, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'swop'"):
        _ = hf_posswap.swop


def test_results_are_what_the_signature_says(checkpoint: Path) -> None:
    model: Any = hf_posswap.AutoModelForCausalLM.from_pretrained(
        checkpoint, pos_scheme={"name": "t5", "per_layer": True}
    )
    assert model.config.pos_scheme["options"]["per_layer"] is True
    assert model.config.pos_scheme["base_model"] == "stock"
