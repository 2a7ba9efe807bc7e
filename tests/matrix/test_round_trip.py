"""Invariant 10: on disk, on the meta device, after .to(), compiled, checkpointed, adapted, and in other processes."""

import json
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

import hf_posswap
from tests import warm
from tests.matrix.cells import (
    EVERY_SCHEME_IN,
    Cell,
    default_cells,
    random_tokens,
    representative_cells,
    scheme_parameters,
    small_model,
    supported_cells,
    traced_layers,
)

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def auto_of(cell: Cell) -> Any:
    return transformers.AutoModelForCausalLM if cell.causal else transformers.AutoModelForMaskedLM


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_saved_and_loaded_by_stock_auto_classes(cell: Cell, tmp_path: Path) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 24)
    model.save_pretrained(tmp_path)
    loaded, report = auto_of(cell).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.pos_scheme == model.config.pos_scheme
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
        restored = hf_posswap.restore(loaded)
        assert torch.equal(restored(tokens).logits, cell.stock()(tokens).logits)
    assert (
        sorted(path.suffix for path in tmp_path.iterdir())
        == [".json", ".json", ".py", ".safetensors"][0 if cell.causal else 1 :]
    )


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_sharded_in_half_precision_and_loaded_on_the_meta_device(cell: Cell, tmp_path: Path) -> None:
    model = cell.swapped()
    frequencies = {name: value for name, value in model.named_buffers() if "inv_freq" in name}
    model.bfloat16()
    for name, value in frequencies.items():  # which transformers keeps in float32 when it loads a model
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, value)
    tokens = random_tokens(2, 24)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = auto_of(cell).from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in scheme_parameters(loaded)} <= {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    with torch.device("meta"):
        empty = auto_of(cell).from_config(loaded.config)
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_base_model_and_head_load_from_each_others_checkpoints(cell: Cell, tmp_path: Path) -> None:
    model = cell.swapped()
    tokens = random_tokens(1, 16)
    model.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(base).__name__ == type(model.base_model).__name__
    with torch.no_grad():
        assert torch.equal(base(tokens)[0], model.base_model(tokens)[0])
        base.save_pretrained(tmp_path / "base")
        again = transformers.AutoModel.from_pretrained(tmp_path / "base")
        assert torch.equal(again(tokens)[0], base(tokens)[0])


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_copies_and_pickles_are_swapped_models_of_their_own(cell: Cell) -> None:
    import copy

    model = cell.swapped()
    tokens = random_tokens(1, 16)
    expected = model(tokens).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(twin(tokens).logits, expected)
        hf_posswap.restore(twin)
        assert not torch.equal(twin(tokens).logits, expected) or cell.config.name == model.config.pos_scheme["native"]
    assert torch.equal(model(tokens).logits, expected)
    assert "PosSwap" in repr(model)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_dtype_round_trip(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 16)
    with torch.no_grad():
        expected = model(tokens).logits
        assert model.bfloat16()(tokens).logits.dtype == torch.bfloat16
        back = cell.swapped().to(torch.float64).to(torch.float32)(tokens).logits
    assert torch.equal(back, expected)


LENGTHS_COMPILED = (16, 24, 11, 29, 20)


@pytest.mark.parametrize("cell", representative_cells(), ids=str)
def test_compiled_as_one_graph_for_all_lengths(cell: Cell) -> None:
    model = cell.swapped(layers=traced_layers(cell.architecture, cell.config))
    # Asked for one graph for any length, torch traces once. By itself it makes a first graph for one length alone, and
    # then one for any, which takes twice the time: one scheme of each kind is traced so, in one family.
    dynamic = None if cell.architecture == "gpt2" else True
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=graphs, dynamic=dynamic)
    with torch.no_grad():
        for length in LENGTHS_COMPILED:
            tokens = random_tokens(2, length)
            torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    # Where the stock model needs more graphs, so does this one.
    needed = 1 if dynamic else 2
    assert graphs.frame_count == needed or graphs.frame_count == stock_graphs(cell.architecture, cell.causal, dynamic)


@cache
def stock_graphs(architecture: str, causal: bool, dynamic: bool | None) -> int:
    """How many graphs the stock model is compiled to at these lengths."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    stock = small_model(architecture, causal, layers=traced_layers(architecture))
    compiled = torch.compile(stock, fullgraph=True, backend=graphs, dynamic=dynamic)
    with torch.no_grad():
        for length in LENGTHS_COMPILED:
            compiled(random_tokens(2, length))
    return int(graphs.frame_count)


@pytest.mark.parametrize("cell", supported_cells(), ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(cell: Cell) -> None:
    tokens = random_tokens(2, 16)
    results = []
    for reentrant in (None, False, True):
        model = cell.swapped().train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        # A reentrant checkpoint goes back only through what enters it with a gradient.
        embeds = model.get_input_embeddings()(tokens)
        assert embeds.requires_grad
        model(inputs_embeds=embeds, labels=tokens).loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected = results.pop(0)
    for found in results:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_lora_trains_on_top(cell: Cell) -> None:
    from peft import LoraConfig, get_peft_model

    model = cell.swapped()
    tokens = random_tokens(2, 16)
    expected = model(tokens).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=True))
    # peft freezes the scheme's parameters, which may open a faster attention path: equal up to rounding.
    torch.testing.assert_close(adapted(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    loss = adapted(tokens, labels=tokens).loss
    loss.backward()
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


SAVE_AND_RUN = """
import json, sys, torch, hf_posswap, transformers
from tests.matrix.cells import random_tokens
torch.set_num_threads(1)
result = {}
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder)
    masked = "MaskedLM" in config.architectures[0]
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    with torch.no_grad():
        result[folder] = auto.from_pretrained(folder)(random_tokens(1, 16)).logits.double().sum().item()
print(json.dumps(result))
"""


def test_another_process_computes_the_same(tmp_path: Path) -> None:
    expected = {}
    for cell in default_cells():
        folder = tmp_path / str(cell)
        model = cell.swapped()
        model.save_pretrained(folder)
        with torch.no_grad():
            expected[str(folder)] = model(random_tokens(1, 16)).logits.double().sum().item()
    done = warm.run(["-c", SAVE_AND_RUN, *expected], env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-6)


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist
from tests.matrix.cells import EVERY_SCHEME_IN, all_cells, random_tokens, refusal
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
worst = 0.0
# Gradients are summed parameter by parameter, whatever family they belong to.
cells = [cell for cell in all_cells() if cell.is_default and (cell.architecture, cell.causal) in EVERY_SCHEME_IN]
cells = [cell for cell in cells if refusal(cell) is None]
for cell in cells:
    tokens = random_tokens(2, 16)
    alone = cell.swapped()
    alone(tokens, labels=tokens).loss.backward()
    shared = torch.nn.parallel.DistributedDataParallel(cell.swapped(), find_unused_parameters=True)
    mine = tokens[rank : rank + 1]
    shared(mine, labels=mine).loss.backward()
    # Some gradients are zero but for rounding (a bias on all keys): measured against the model's largest.
    scale = max(p.grad.abs().max().item() for p in alone.parameters() if p.grad is not None)
    for (name, p), q in zip(alone.named_parameters(), shared.module.parameters(), strict=True):
        if p.grad is not None:
            worst = max(worst, (p.grad - q.grad).abs().max().item() / scale)
            assert worst < 1e-5, (str(cell), name, worst)
if rank == 0:
    print("worst", worst, "cells", *map(str, cells))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [cell for cell in default_cells() if (cell.architecture, cell.causal) in EVERY_SCHEME_IN]
    assert done.stdout.split("cells ")[1].split() == [str(cell) for cell in cells]


def test_weights_are_safetensors_and_hold_the_mean_row(tmp_path: Path) -> None:
    for cell in default_cells():
        if cell.architecture == "gpt2" and cell.config.name == "alibi":
            cell.swapped().save_pretrained(tmp_path)
            stock = cell.stock().base_model.wpe.weight.detach()
            saved = load_file(tmp_path / "model.safetensors")
            torch.testing.assert_close(saved["transformer.wpe.weight"], stock[1:].mean(0, keepdim=True))
            return
    pytest.fail("no gpt2 × alibi cell")
