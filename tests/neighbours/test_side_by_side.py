"""Many models in one process: swapped in different ways, and stock, one after the other and at the same time."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers

import hf_posswap
from hf_posswap.training.optimization import scheme_parameters
from tests.matrix.cells import Cell, default_cells, random_tokens


def run(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def test_models_do_not_touch_each_other_across_threads() -> None:
    cells = [cell for cell in default_cells() if cell.architecture in ("gpt2", "bert", "llama")]
    models = [cell.swapped() for cell in cells] + [cell.stock() for cell in cells[::4]]
    texts = [random_tokens(2, 8 + index % 16, seed=index) for index in range(len(models))]
    expected = [run(model, text) for model, text in zip(models, texts, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for actual, wanted in zip(pool.map(run, models, texts), expected, strict=True):
                assert torch.equal(actual, wanted)


def test_one_model_answers_many_threads() -> None:
    model = next(cell for cell in default_cells() if str(cell) == "gpt2-causal-alibi").swapped()
    texts = [random_tokens(1, 4 + index, seed=index) for index in range(20)]
    expected = [run(model, text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for actual, wanted in zip(pool.map(lambda text: run(model, text), texts), expected, strict=True):
            assert torch.equal(actual, wanted)


def make(cell: Cell) -> torch.Tensor:
    """Swap, run, restore and run: all that changes classes."""
    model = cell.swapped()
    tokens = random_tokens(1, 12)
    swapped = run(model, tokens)
    return torch.cat([swapped, run(hf_posswap.restore(model), tokens)])


def test_swapping_in_many_threads_at_once() -> None:
    cells = [cell for cell in default_cells() if cell.causal][::2]
    torch.manual_seed(0)
    # Weights are drawn from torch's one generator, so threads would get other ones: all start from these, and from the
    # same parameters of the scheme.
    stock = {cell.architecture: cell.stock() for cell in cells}
    expected = [make(_Given(cell, stock[cell.architecture])) for cell in cells]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda cell: make(_Given(cell, stock[cell.architecture])), cells)
        for actual, wanted in zip(results, expected, strict=True):
            assert torch.equal(actual, wanted)
    for architecture, model in stock.items():
        assert not hf_posswap.is_swapped(model), architecture


class _Given:
    """A cell whose stock model is a copy of a given one."""

    def __init__(self, cell: Cell, stock: Any) -> None:
        self.cell, self.model = cell, stock

    def swapped(self) -> Any:
        model = hf_posswap.swap(copy.deepcopy(self.model), self.cell.config)
        with torch.no_grad():
            for parameter in scheme_parameters(model).values():
                parameter.copy_(torch.linspace(0.1, 0.9, parameter.numel()).view_as(parameter))
        return model


def test_config_tokenizer_and_model_come_from_one_folder(gpt2_folder: str, bert_folder: str, tokenizer: Any) -> None:
    for folder in (gpt2_folder, bert_folder):
        config = transformers.AutoConfig.from_pretrained(folder)
        assert config.pos_scheme["name"] == "alibi"
        assert type(config).__name__.startswith("PosSwap")
        auto = transformers.AutoModelForCausalLM if folder == gpt2_folder else transformers.AutoModel
        model = auto.from_pretrained(folder)
        assert type(model.config) is type(config)
        own = transformers.AutoTokenizer.from_pretrained(folder)
        model(**own("The sea was calm", return_tensors="pt"))
    assert transformers.AutoTokenizer.from_pretrained(gpt2_folder)("calm").input_ids == tokenizer("calm").input_ids
