"""Many models in one process: swapped in different ways, and stock, one after the other and at the same time."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers

import hf_posswap
from tests.matrix.cells import Cell, default_cells, random_tokens, scheme_parameters


def run(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def test_models_do_not_touch_each_other_across_threads() -> None:
    cells = default_cells()
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


def swapped_and_restored(cell: Cell, stock: Any) -> torch.Tensor:
    """The logits of a copy of a stock model, swapped and then restored: all that changes classes."""
    model = hf_posswap.swap(copy.deepcopy(stock), cell.config)
    with torch.no_grad():
        # Some schemes draw where they start from torch's one generator, which all threads share.
        for parameter in scheme_parameters(model):
            parameter.copy_(torch.linspace(0.1, 0.5, parameter.numel()).view_as(parameter))
    tokens = random_tokens(1, 12)
    swapped = run(model, tokens)
    return torch.cat([swapped, run(hf_posswap.restore(model), tokens)])


def test_swapping_in_many_threads_at_once() -> None:
    cells = [cell for cell in default_cells() if cell.causal][::2]
    stock = {cell.architecture: cell.stock() for cell in cells}
    pairs = [(cell, stock[cell.architecture]) for cell in cells]
    classes = {name: type(model) for name, model in stock.items()}
    expected = [swapped_and_restored(*pair) for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda pair: swapped_and_restored(*pair), pairs)
        for cell, actual, wanted in zip(cells, results, expected, strict=True):
            assert torch.equal(actual, wanted), str(cell)
    assert {name: type(model) for name, model in stock.items()} == classes


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
