"""Healing in real processes: broken off and resumed, shared by two, sharded; and the configurations that start them."""

import json
import signal
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.commands import healing_progress
from hf_posswap.ramp import set_ramp
from hf_posswap.schemes import schemes
from hf_posswap.swapped.capabilities import capability
from hf_posswap.training import distribution
from hf_posswap.training.checkpoints import checkpoints_in
from hf_posswap.training.objectives import objective_for
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.supervision import Supervision
from hf_posswap.training.texts import Window
from tests.training import processes
from tests.training.helpers import WordTokenizer, bert, gpt2, llama
from tests.training.processes import arguments, broken_by, launched, run, start, succeeded

TWO_ON_CPU = launched("cpu_two_processes.yaml")
FSDP_ON_CPU = launched("fsdp2.yaml", str(Path(__file__).with_name("fsdp_on_cpu.py")))
KILLED = -signal.SIGKILL
RATE = ("--learning-rate", "3e-4")
SHARED = ("--steps", "6", "--distill", "--distill-weight", "0.5", "--ramp", "--keep-checkpoints", "3", *RATE)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return processes.short_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory, gpt2_books_path: Path) -> str:
    """The small GPT-2 with dropout, so that a resumed run has to draw what the unbroken one drew."""
    folder = tmp_path_factory.mktemp("gpt2")
    for path in gpt2_books_path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_pdrop": 0.1, "resid_pdrop": 0.1}))
    return str(folder)


@pytest.mark.slow
def test_a_run_killed_twice_ends_as_the_unbroken_one(text: Path, with_dropout: str, tmp_path: Path) -> None:
    unbroken, folder = tmp_path / "unbroken", tmp_path / "killed"
    options = ("--steps", "12", "--keep-checkpoints", "9")
    succeeded(arguments(unbroken, text, *options, model=with_dropout))

    command = arguments(folder, text, *options, model=with_dropout)
    process = start(command)
    processes.wait_for(folder / "checkpoint-0000002", process)
    process.kill()
    assert processes.ended(process).returncode == KILLED
    reached = checkpoints_in(folder)[-1].name
    assert reached < "checkpoint-0000010", "it was to be killed before the checkpoint that the next kill is aimed at"

    result = run([*command, "--resume"], *broken_by("SIGKILL", 10))
    assert result.returncode == KILLED
    assert f"going on after step {int(reached[-7:])} of 12" in result.stderr
    assert checkpoints_in(folder)[-1].name == "checkpoint-0000008"
    assert ".checkpoint-0000010.partial" in processes.names_in(folder)

    result = succeeded([*command, "--resume"])
    assert "going on after step 8 of 12" in result.stderr
    assert processes.names_in(folder) == [f"checkpoint-{step:07d}" for step in range(2, 13, 2)]
    assert processes.history_of(folder) == processes.history_of(unbroken)
    assert (folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_whole_checkpoints_and_says_how_to_go_on(text: Path, tmp_path: Path) -> None:
    command = arguments(tmp_path / "out", text, "--steps", "6")
    result = run(command, *broken_by("SIGINT", 4))
    assert result.returncode == 130
    assert "The same command with --resume goes on from" in result.stderr
    assert "Traceback" not in result.stderr
    assert processes.names_in(tmp_path / "out") == ["checkpoint-0000002"]
    assert "going on after step 2 of 6" in succeeded([*command, "--resume"]).stderr


@pytest.fixture(scope="module")
def shared(text: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The same run twice: of one process that accumulates two batches, and of two processes."""
    folder = tmp_path_factory.mktemp("shared")
    one, two = folder / "one", folder / "two"
    succeeded(arguments(one, text, *SHARED, "--accumulation", "2"))
    result = succeeded(arguments(two, text, *SHARED), *TWO_ON_CPU, ACCELERATE_USE_CPU="true")
    return SimpleNamespace(one=one, two=two, stderr=result.stderr, stdout=result.stdout)


@pytest.mark.slow
def test_two_processes_compute_what_one_does_in_two_batches(shared: SimpleNamespace) -> None:
    """Bit for bit: their sums have two terms, whose order does not matter, and all factors are powers of two."""
    assert [processes.result_of(folder)["processes"] for folder in (shared.one, shared.two)] == [1, 2]
    assert processes.history_of(shared.two) == processes.history_of(shared.one)
    one, two = processes.weights_of(shared.one), processes.weights_of(shared.two)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_of_two_processes_only_the_main_one_prints(shared: SimpleNamespace) -> None:
    assert [shared.stderr.count(f"step {number} of 6:") for number in range(1, 7)] == [1] * 6
    assert shared.stderr.count("healing …") == 1
    assert shared.stdout.count("Saved to") == 1


@pytest.mark.slow
def test_two_processes_resume_to_what_they_would_have_come_to(
    shared: SimpleNamespace, text: Path, tmp_path: Path
) -> None:
    folder = processes.interrupted_copy(shared.two, tmp_path / "out", 2)
    # Without ACCELERATE_USE_CPU: where there is no GPU, the processes are to find each other all the same.
    result = succeeded(arguments(folder, text, *SHARED, "--resume"), *TWO_ON_CPU, CUDA_VISIBLE_DEVICES="")
    assert result.stderr.count("going on after step 2 of 6") == 1
    assert processes.history_of(folder) == processes.history_of(shared.two)
    assert (folder / "model.safetensors").read_bytes() == (shared.two / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_sharded_by_fsdp_it_goes_on_from_a_whole_checkpoint_and_writes_such(
    shared: SimpleNamespace, text: Path, tmp_path: Path
) -> None:
    """FSDP2 sums squares of gradients shard by shard, so that the clipped gradient differs by rounding.

    The bias of keys has no gradient (softmax does not see what all scores of a query have in common) but what rounding
    leaves, which Adam divides by its own size: it is left out.
    """
    folder = processes.interrupted_copy(shared.two, tmp_path / "out", 2)
    command = arguments(folder, text, *SHARED, "--resume", "--eval-file", "demo:book/valid", "--eval-tokens", "128")
    result = succeeded(command, *FSDP_ON_CPU, CUDA_VISIBLE_DEVICES="")
    assert result.stderr.count("going on after step 2 of 6") == 1
    for sharded, whole in zip(processes.history_of(folder), processes.history_of(shared.two), strict=True):
        assert sharded["loss"] == pytest.approx(whole["loss"], rel=1e-6)
        assert sharded["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)
    evaluation = processes.result_of(folder)["evaluation"]
    assert evaluation["healed"][0]["loss"] < evaluation["swapped"][0]["loss"]

    weights, expected = processes.weights_of(folder), processes.weights_of(shared.two)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        given, wanted = (
            _without_keys(tensor) if name.endswith("c_attn.bias") else tensor for tensor in (weights[name], value)
        )
        torch.testing.assert_close(given, wanted, rtol=0, atol=2e-6, msg=name)
    last = [path / "checkpoint-0000006" for path in (folder, shared.two)]
    for file in ("weights.safetensors", "optimizer.safetensors"):
        shapes = [{n: v.shape for n, v in processes.load_file(path / file).items()} for path in last]
        assert shapes[0] == shapes[1]


def _without_keys(bias: torch.Tensor) -> torch.Tensor:
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


MAKERS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2, "llama": llama, "masked": lambda: bert(head=True), "encoder": lambda: _pooling_bert(),
}  # fmt: skip


def entering() -> list[tuple[str, str]]:
    """Every scheme that each model supports, from the registry."""
    found = []
    for model in MAKERS:
        architecture = architecture_named("bert" if model in ("masked", "encoder") else model)
        causal = model in ("gpt2", "llama")
        found += [(model, scheme.name) for scheme in schemes if capability(architecture, causal, scheme).supported]
    return found


@pytest.mark.parametrize(("model", "scheme"), entering())
@pytest.mark.parametrize("ramp", [None, 0.0])
def test_every_weight_that_learns_has_a_gradient(model: str, scheme: str, ramp: float | None) -> None:
    """Processes wait for each other's gradients of all weights that learn, so that one without any stops the run."""
    swapped = hf_posswap.swap(MAKERS[model](), scheme)
    if ramp is not None:
        set_ramp(swapped, ramp)
    objective = objective_for(swapped, None)
    objective.freeze_idle(swapped)
    tokenizer = WordTokenizer(bert=model in ("masked", "encoder"))
    windows = [Window([5 + (7 * row + place) % 50 for place in range(16)], list(range(16))) for row in range(4)]
    made = objective(Supervision.of(["labels"]), 16, tokenizer)
    made.loss(swapped, None, made.batch(windows, torch.Generator().manual_seed(0))).backward()
    idle = [name for name, weight in swapped.named_parameters() if weight.requires_grad and weight.grad is None]
    assert idle == []


def _pooling_bert() -> Any:
    from transformers import BertModel

    return BertModel(bert().config)


def test_the_bar_is_the_main_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for rank, kind in (("0", healing_progress.BarObserver), ("1", healing_progress.LineObserver)):
        monkeypatch.setenv("RANK", rank)
        with healing_progress.healing_progress() as observer:
            assert type(observer) is kind
            assert observer.main == (rank == "0")


def test_processes_that_accelerate_does_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Apple's GPUs: each process would heal a model of its own, and all would write to one folder."""
    alone = SimpleNamespace(num_processes=1, device=torch.device("mps"), distributed_type=DistributedType.NO)
    monkeypatch.setattr(distribution, "Accelerator", lambda **_: alone)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HealingError, match="2 processes were started, but Accelerate joins 1.*ACCELERATE_USE_CPU=true"):
        distribution.make_accelerator(HealingOptions(steps=1))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distribution.make_accelerator(HealingOptions(steps=1)) is alone


def deepspeed() -> Any:
    """What `settle` sees of an Accelerator under DeepSpeed, as the plugin's configuration is before `prepare`."""
    config = {"gradient_accumulation_steps": 1, "gradient_clipping": 1.0, "zero_optimization": {"stage": 3}}
    plugin = SimpleNamespace(deepspeed_config=config)
    return Namespace(
        distributed_type=DistributedType.DEEPSPEED,
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=1,
        mixed_precision="no",
    )


def test_the_options_decide_over_deepspeed_s_configuration() -> None:
    accelerator = deepspeed()
    options = HealingOptions(steps=1, batch_size=3, accumulation=4, clip=0.5)
    distribution.settle(accelerator, options, writes_checkpoints=False)
    assert accelerator.gradient_accumulation_steps == 4
    assert accelerator.deepspeed_plugin.deepspeed_config == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
    }


def test_checkpoints_under_deepspeed_are_refused() -> None:
    with pytest.raises(HealingError, match=r"--checkpoint-every 0.*FSDP"):
        distribution.settle(deepspeed(), HealingOptions(steps=1), writes_checkpoints=True)


@pytest.mark.parametrize(
    ("version", "empty", "message"), [(1, False, "fsdp_version: 2"), (2, True, "fsdp_cpu_ram_efficient_loading")]
)
def test_what_fsdp_cannot_do_is_refused(version: int, empty: bool, message: str) -> None:
    plugin = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=empty)
    accelerator = Namespace(
        distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no"
    )
    with pytest.raises(HealingError, match=message):
        distribution.settle(accelerator, HealingOptions(steps=1), writes_checkpoints=True)


CONFIGURATIONS = sorted(processes.CONFIGURATIONS.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_accelerate_reads_every_example_configuration(path: Path) -> None:
    configuration = load_config_from_file(str(path))  # refuses keys that it does not know, except in what is nested
    known = vars(launch_command_parser().parse_args(["script"]))
    for nested in ("fsdp_config", "deepspeed_config"):
        unknown = set(getattr(configuration, nested)) - set(known)
        assert not unknown, f"accelerate launch has no {unknown}"
    assert configuration.num_processes >= 1
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert f"accelerate launch --config_file examples/accelerate/{path.name} " in first


def test_there_is_a_configuration_for_every_kind_of_machine() -> None:
    kinds = {path.stem: load_config_from_file(str(path)).distributed_type for path in CONFIGURATIONS}
    assert kinds == {
        "one_gpu": DistributedType.NO,
        "multi_gpu": DistributedType.MULTI_GPU,
        "fsdp2": DistributedType.FSDP,
        "deepspeed_zero3": DistributedType.DEEPSPEED,
        "cpu_two_processes": DistributedType.MULTI_GPU,
    }


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ("python /venv/bin/accelerate launch --cpu --num_processes 2 -m hf_posswap.cli finetune", 2),
        ("accelerate launch --num-processes=4 --cpu script.py", 4),
        ("python -m accelerate.commands.accelerate_cli launch --num_processes 2 script.py", 2),
        ("accelerate launch --cpu script.py", 1),
        ("accelerate launch --num_processes", 1),
        ("accelerate test", 1),
        ("bash -c launch --num_processes 2", 1),
        ("", 1),
    ],
)
def test_the_launchers_command_says_how_many_processes_were_asked_for(command: str, processes: int) -> None:
    assert distribution.processes_asked_for(command.split()) == processes


def test_processes_that_were_asked_for_and_not_started_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["accelerate", "launch", "--cpu", "--num_processes", "3", "script.py"]
    monkeypatch.setattr(distribution, "_parents_command", lambda: command)
    with pytest.raises(HealingError, match=r"asked for 3 processes and started one.*--multi_gpu --num_processes 3"):
        distribution.make_accelerator(HealingOptions(steps=1))
