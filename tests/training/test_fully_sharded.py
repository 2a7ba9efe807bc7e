"""torch's `fully_shard` (FSDP2) over two processes on a CPU, for every scheme that has parameters.

A training step is that of one process, shards are saved and loaded, and what is saved whole is an ordinary checkpoint.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.cells import Cell, default_cells, scheme_parameters, supported_cells

ROOT = Path(__file__).parents[2]


def learning(cells: list[Cell]) -> list[Cell]:
    return [cell for cell in cells if scheme_parameters(cell.swapped(randomised=False))]


VARIANTS = [cell for cell in learning(supported_cells()) if (cell.architecture, cell.causal) == ("llama", True)]
DEFAULTS = [cell for cell in learning(default_cells()) if (cell.architecture, cell.causal) == ("bert", False)]
SHARDED = [*VARIANTS, *DEFAULTS]

SCRIPT = """
import json
import sys
from pathlib import Path
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from hf_posswap.architectures import architecture_of
from hf_posswap.schemes import as_config
from hf_posswap.swapped.plan import core_of
from tests.matrix.cells import Cell, random_tokens

dist.init_process_group("gloo")
torch.set_num_threads(1)
rank, texts = dist.get_rank(), random_tokens(2, 12)
folder = Path(sys.argv[1])
cells = [Cell(family, causal, as_config(given), name) for family, causal, given, name in json.loads(sys.argv[2])]

def step(model, texts):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=texts, labels=texts).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

def whole(model):
    return {name: getattr(weight, "full_tensor", lambda: weight)() for name, weight in model.state_dict().items()}

def shard(model):
    for block, *_ in architecture_of(model.config).blocks(core_of(model)):
        fully_shard(block)
    return fully_shard(model)

def difference(one, other):
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)

def check(cell, number):
    alone, model = cell.swapped(layers=2), shard(cell.swapped(layers=2))
    step(alone, texts)
    step(model, texts[rank : rank + 1])
    stepped = whole(model)
    found = {"step": difference(stepped, alone.state_dict())}
    dcp.save(get_model_state_dict(model), checkpoint_id=folder / f"{number}-shards")
    again = shard(cell.swapped(layers=2))
    state = get_model_state_dict(again)
    dcp.load(state, checkpoint_id=folder / f"{number}-shards")
    set_model_state_dict(again, state)
    found["shards"] = difference(whole(again), stepped)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        saved = cell.swapped(layers=2)
        saved.save_pretrained(folder / f"{number}-whole", state_dict=state)
        loaded = type(saved).from_pretrained(folder / f"{number}-whole")
        found["whole"] = difference(loaded.state_dict(), alone.state_dict())
    return found

found = {}
for number, cell in enumerate(cells):
    try:
        found[str(cell)] = check(cell, number)
    except Exception as error:
        found[str(cell)] = {"error": repr(error)}
if rank == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The largest difference of a weight, by cell: after a step, from shards, from a whole checkpoint."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "sharded.py").write_text(SCRIPT)
    cells = json.dumps([(cell.architecture, cell.causal, cell.config.to_dict(), cell.label) for cell in SHARDED])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, str(folder / "sharded.py"), str(folder), cells]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("cell", SHARDED, ids=str)
def test_a_sharded_model_learns_and_is_saved_as_a_whole_one(cell: Cell, found: dict[str, Any]) -> None:
    measured = found[str(cell)]
    assert measured.keys() == {"step", "shards", "whole"}, measured
    # The mean over two processes is taken in another order than over a batch of two.
    assert measured["step"] < 1e-5
    assert measured["shards"] == 0
    assert measured["whole"] < 1e-5


@pytest.mark.parametrize("cell", learning(supported_cells()), ids=str)
def test_parameters_can_be_sharded(cell: Cell) -> None:
    """FSDP2 shards along the first dimension, and takes neither single numbers nor views of other tensors."""
    for parameter in scheme_parameters(cell.swapped(randomised=False)):
        assert parameter.dim() > 0
        assert parameter.is_contiguous()
