"""lm-evaluation-harness on a swapped model: a task of this repository's own, on a text of this repository."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

from hf_posswap.evaluation.ruler_tasks import LEAST_FREQUENT, TASKS, Material, score
from hf_posswap.sources import load_tokenizer
from hf_posswap.texts.sources import resolve_texts
from tests.matrix.test_round_trip import ENVIRONMENT

pytestmark = [pytest.mark.needs("lm_eval"), pytest.mark.slow]

TASK = """
task: book_loss
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: byte_perplexity
"""
WORDS = 350
"""More tokens than the stock model reads."""


def test_the_command_line_measures_a_swapped_model(gpt2_folder: str, tmp_path: Path) -> None:
    text = " ".join(resolve_texts("demo:book/test")[0].read().split()[:WORDS])
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "book_loss.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    code = "import hf_posswap; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    command = [
        sys.executable, "-c", code, "run", "--model", "hf", "--tasks", "book_loss", "--include_path", str(tmp_path),
        "--model_args", f"pretrained={gpt2_folder},dtype=float32,max_length=1024", "--device", "cpu",
        "--batch_size", "1", "--output_path", str(tmp_path / "results"),
    ]  # fmt: skip
    environment = ENVIRONMENT | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {key: value for key, value in os.environ.items() if key.startswith("OMP")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "results").rglob("results*.json")).read_text())
    measured = results["results"]["book_loss"]["byte_perplexity,none"]

    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gpt2_folder)
    target = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    assert 256 < target.shape[1] < 1024
    start = torch.tensor([[tokenizer.eos_token_id]])
    with torch.no_grad():
        logits = model(torch.cat([start, target[:, :-1]], dim=1)).logits
    loss = torch.nn.functional.cross_entropy(logits[0], target[0], reduction="sum")
    assert measured == pytest.approx(float(torch.exp(loss / len(text.encode()))), rel=1e-4)


def test_rulers_scoring_rule_and_frequencies_are_those_of_lm_eval() -> None:
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all
    from lm_eval.tasks.ruler.fwe_utils import generate_input_output

    for text in ("1234567, and 7654321", "Seven: 123456 7", " aBc\n7654321", ""):
        answers = ["1234567", "7654321", "abC"]
        assert score(answers, text) == pytest.approx(string_match_all(postprocess_pred([text]), [answers]))
    tokenizer = load_tokenizer("demo:gpt2")
    theirs, answers, words = generate_input_output(100_000, tokenizer, num_words=300, vocab_size=20)
    assert words == 300
    material = Material([resolve_texts("demo:book/test")[0].read()[:40_000]])
    made = TASKS["frequent-words"].make(random.Random(0), material, words - LEAST_FREQUENT, 1000)
    counts = [
        Counter(text.split(start)[1].split("\nQuestion")[0].split())
        for text, start in ((theirs, "coded words. "), (made.prompt, "frequent ones. "))
    ]
    assert sorted(counts[0].values()) == sorted(counts[1].values())
    assert len(answers) == len(made.answers)
    assert score(answers, " ".join(word for word, _ in counts[0].most_common(4))) == 1.0
