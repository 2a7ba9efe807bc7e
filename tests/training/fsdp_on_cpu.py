"""hf-posswap, under an Accelerate that shards on CPUs too.

Accelerate turns to FSDP for the processes of GPUs only, and takes those of CPUs for plain ones without a word. torch
shards on CPUs as well. So Accelerate is told here that the processes are those of GPUs, with gloo between them.
"""

import os
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_posswap.cli import main

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
initialise = PartialState.__init__


def initialise_as_gpu(self: PartialState, cpu: bool = False, **arguments: Any) -> None:
    initialise(self, False, **arguments)


PartialState.__init__ = initialise_as_gpu
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    main()
