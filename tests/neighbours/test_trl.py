"""trl's SFTTrainer on a swapped model; transformers' own Trainer runs in the example `finetune_with_trainer.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

import hf_posswap
from tests.neighbours.conftest import TEXT

pytestmark = pytest.mark.needs("trl")


def arguments(folder: Path, **more: Any) -> Any:
    from trl import SFTConfig

    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 1, "learning_rate": 3e-3,
        "logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "max_length": 320, "seed": 1,
    }  # fmt: skip
    return SFTConfig(**(settings | more))


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packing", [False, True])
def test_sft_trains_past_the_old_limit_and_saves(
    gpt2_books_path: Path, tokenizer: Any, packing: bool, tmp_path: Path
) -> None:
    from trl import SFTTrainer

    model = hf_posswap.AutoModelForCausalLM.from_pretrained(
        gpt2_books_path, dtype=torch.float32, pos_scheme="alibi:trainable=true"
    )
    tokenizer.pad_token = tokenizer.eos_token
    data = Dataset.from_list([{"text": f"{TEXT} " * (4 + 4 * (index % 5))} for index in range(12)])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    more = {"packing": True, "packing_strategy": "wrapped"} if packing else {}
    trainer = SFTTrainer(model, args=arguments(tmp_path, **more), train_dataset=data, processing_class=tokenizer)
    trainer.train()
    seen = losses(trainer)
    assert seen[-1] < seen[0] - 0.3
    slopes = next(name for name in before if "pos_scheme" in name)
    assert not torch.equal(dict(model.named_parameters())[slopes], before[slopes])
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokens = tokenizer(f"{TEXT} " * 16, return_tensors="pt").input_ids
    assert tokens.shape[1] > 256
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)


def test_sft_with_lora_keeps_the_scheme_in_the_adapter(gpt2_folder: str, tokenizer: Any, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, LoraConfig
    from trl import SFTTrainer

    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = SFTTrainer(
        model,
        args=arguments(tmp_path),
        train_dataset=Dataset.from_list([{"text": f"{TEXT} " * 8}] * 8),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    seen = losses(trainer)
    assert seen[-1] < seen[0]
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = trainer.model.eval()(tokens).logits
        torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert hf_posswap.is_swapped(loaded.get_base_model())
