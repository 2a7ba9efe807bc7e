"""DistributedDataParallel over two processes, with gradient checkpoints: the gradients of one process without any.

torch refuses reentrant checkpoints around a weight that several of them share, in stock models as in ours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.cells import default_cells, scheme_parameters

ROOT = Path(__file__).parents[2]
LEARNING = [cell for cell in default_cells() if scheme_parameters(cell.swapped(randomised=False))]
STOCK = "stock llama with one MLP for all layers"
TORCHS_WORDS = "Expected to mark a variable ready only once"
DISTRIBUTED = """
import json
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import hf_posswap
from tests.matrix.cells import Cell, random_tokens, small_model

dist.init_process_group("gloo")
torch.set_num_threads(1)
rank, texts = dist.get_rank(), random_tokens(4, 12)
own = texts[2 * rank : 2 * rank + 2]
stock, *cells = json.loads(sys.argv[1])
cells = [Cell(family, causal, hf_posswap.parse_scheme(label), label) for family, causal, label in cells]

def one_mlp():
    model = small_model("llama", True)
    for layer in model.model.layers:
        layer.mlp = model.model.layers[0].mlp
    return model

def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

def alone(model):
    model(input_ids=texts, labels=texts).loss.backward()
    return gradients(model)

def shared(model, reentrant, static):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    whole = DistributedDataParallel(model, static_graph=static)
    for _ in range(2):
        model.zero_grad()
        whole(input_ids=own, labels=own).loss.backward()
    return gradients(model)

found = {}
for name, make in {stock: one_mlp, **{str(cell): cell.swapped for cell in cells}}.items():
    expected = alone(make().train())
    for reentrant, static in ((False, False), (True, False), (True, True)):
        try:
            gradient = shared(make().train(), reentrant, static)
        except RuntimeError as error:
            found[f"{name} {reentrant} {static}"] = str(error)
            continue
        assert gradient.keys() == expected.keys(), gradient.keys() ^ expected.keys()
        difference = max(float((gradient[key] - expected[key]).abs().max()) for key in expected)
        found[f"{name} {reentrant} {static}"] = difference
if rank == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The largest difference of a gradient, or torch's error, by model, kind of checkpoint and static graph."""
    script = tmp_path_factory.mktemp("ddp") / "distributed.py"
    script.write_text(DISTRIBUTED)
    cells = json.dumps([STOCK, *((cell.architecture, cell.causal, cell.label) for cell in LEARNING)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), cells]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("cell", LEARNING, ids=str)
def test_gradients_are_those_of_one_process(cell: Any, found: dict[str, Any]) -> None:
    core = cell.swapped(randomised=False).base_model
    of_all_layers = core.pos_scheme.acts_in_layers and any(True for _ in core.pos_scheme.parameters())
    assert found[f"{cell} False False"] < 1e-5
    assert found[f"{cell} True True"] < 1e-5
    reentrant = found[f"{cell} True False"]
    if of_all_layers:
        assert TORCHS_WORDS in reentrant
    else:
        assert reentrant < 1e-5


@pytest.mark.slow
def test_torch_refuses_a_stock_model_of_shared_layers_too(found: dict[str, Any]) -> None:
    assert found[f"{STOCK} False False"] < 1e-5
    assert TORCHS_WORDS in found[f"{STOCK} True False"]
