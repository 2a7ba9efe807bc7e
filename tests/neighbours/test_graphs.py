"""Swapped models as graphs: compiled by inductor, exported by `torch.export`, and run by onnxruntime."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from tests.matrix.cells import random_tokens, small_model

SCHEMES = [("gpt2", "alibi"), ("gpt2", "t5"), ("llama", "rope:yarn:factor=4"), ("bert", "relative_bias")]


def swapped(architecture: str, scheme: str) -> Any:
    return hf_posswap.swap(small_model(architecture, architecture != "bert"), scheme).eval()


def batch(architecture: str, rows: int, length: int) -> dict[str, Any]:
    """Tokens whose first row is padded on the left."""
    tokens = random_tokens(rows, length)
    mask = torch.ones_like(tokens)
    mask[0, : length // 3] = 0
    return {"input_ids": tokens, "attention_mask": mask} | ({"use_cache": False} if architecture != "bert" else {})


@pytest.mark.slow
def test_inductor_compiles_one_graph_for_all_lengths(gpt2: Any, prompt: torch.Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gpt2, fullgraph=True, dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for length in (9, 12, 300):
            tokens = prompt.repeat(1, 20)[:, :length]
            expected = gpt2(tokens, use_cache=False).logits
            torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_generate_compiles_the_decoding_step_of_a_static_cache(gpt2: Any, prompt: torch.Tensor) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = gpt2.generate(prompt, **settings)
    torch._dynamo.reset()
    config = transformers.CompileConfig(fullgraph=True, dynamic=False, backend="eager")
    config._compile_all_devices = True  # transformers compiles on accelerators only, unless told otherwise
    compiled = gpt2.generate(prompt, cache_implementation="static", compile_config=config, **settings)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert torch.equal(compiled, expected)


def exported(architecture: str, model: Any) -> Any:
    """The model as a graph for any number of rows and tokens."""
    rows, length = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("length", min=3, max=512)
    example = batch(architecture, 2, 12)
    shapes = {name: {0: rows, 1: length} if name != "use_cache" else None for name in example}
    with torch.no_grad():
        return torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize(("architecture", "scheme"), SCHEMES)
def test_torch_export_keeps_rows_and_lengths_open(architecture: str, scheme: str, tmp_path: Path) -> None:
    model = swapped(architecture, scheme)
    torch.export.save(exported(architecture, model), tmp_path / "model.pt2")
    graph = torch.export.load(tmp_path / "model.pt2").module()
    for rows, length in ((1, 5), (3, 40)):
        inputs = batch(architecture, rows, length)
        with torch.no_grad():
            expected, actual = model(**inputs).logits, graph(**inputs).logits
        visible = inputs["attention_mask"].bool()
        torch.testing.assert_close(actual[visible], expected[visible], atol=1e-5, rtol=1e-5)


@pytest.mark.needs("onnx", "onnxscript", "onnxruntime")
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "scheme"), SCHEMES)
def test_onnxruntime_gives_the_same_logits(architecture: str, scheme: str, tmp_path: Path) -> None:
    import onnxruntime

    model = swapped(architecture, scheme)
    torch.onnx.export(exported(architecture, model), dynamo=True, verbose=False).save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for rows, length in ((1, 5), (3, 40)):
        inputs = batch(architecture, rows, length)
        with torch.no_grad():
            expected = model(**inputs).logits
        given = {name: value.numpy() for name, value in inputs.items() if name != "use_cache"}
        actual = torch.from_numpy(session.run(None, given)[0])
        visible = inputs["attention_mask"].bool()
        torch.testing.assert_close(actual[visible], expected[visible], atol=1e-4, rtol=1e-4)
