"""What a result says about where it was measured."""

import json
import subprocess
import sys

import torch

from hf_posswap.results.environment import collect_environment


def test_environment_is_json_and_names_versions_hardware_and_command() -> None:
    environment = json.loads(json.dumps(collect_environment(["hf-posswap", "compare", "--text", "my book.txt"])))
    assert environment["command"] == "hf-posswap compare --text 'my book.txt'"
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["hardware"]["cores"] >= 1
    assert environment["hardware"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["time"].endswith("+00:00")


def test_the_command_is_this_process_by_default() -> None:
    code = "from hf_posswap.results.environment import own_command; print(own_command())"
    output = subprocess.run([sys.executable, "-c", code, "--seed", "3"], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "['-c', '--seed', '3']"
