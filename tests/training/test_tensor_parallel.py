"""Two processes that share each layer's heads: every scheme is refused when the model is loaded, and by `swap`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_posswap
from hf_posswap.schemes import schemes
from tests.matrix.cells import small_model

ROOT = Path(__file__).parents[2]
DIVIDED = """
import sys
import torch.distributed as dist
import hf_posswap
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import schemes
from transformers.distributed import DistributedConfig

dist.init_process_group("gloo")
folder, refused = sys.argv[1], 0
auto, divided = hf_posswap.AutoModelForCausalLM, {"distributed_config": DistributedConfig(tp_size=2)}
for scheme in schemes:
    stock = auto.from_pretrained(f"{folder}/stock", **divided)
    assert stock.tp_size == 2
    for load in (
        lambda: auto.from_pretrained(f"{folder}/{scheme.name}", **divided),
        lambda: auto.from_pretrained(f"{folder}/stock", pos_scheme=scheme.name, **divided),
        lambda: hf_posswap.swap(stock, scheme.name, verify=False),
    ):
        try:
            load()
        except UnsupportedError as error:
            assert "the heads of each layer are divided among 2 processes (tensor parallelism)" in str(error), error
            refused += 1
    assert type(stock).__name__ == "LlamaForCausalLM"
print("refused", refused, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_no_scheme_enters_a_model_whose_heads_are_divided(tmp_path: Path) -> None:
    small_model("llama", True).save_pretrained(tmp_path / "stock")
    for scheme in schemes:
        hf_posswap.swap(small_model("llama", True), scheme.name).save_pretrained(tmp_path / scheme.name)
    script = tmp_path / "divided.py"
    script.write_text(DIVIDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["refused", str(3 * len(list(schemes)))] * 2, done.stdout
