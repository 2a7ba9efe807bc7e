"""Configs from anywhere: each loads as what it says or is refused with a reason; none runs code or fills memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import hf_posswap
from hf_posswap.errors import CheckpointError
from hf_posswap.loading.entry import ENTRY_KEYS, FORMAT_VERSION, config_from_entry
from hf_posswap.schemes import list_schemes, scheme_class
from tests.matrix.cells import small_model

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
OPTIONS = sorted({name for scheme in list_schemes() for name in scheme_class(scheme).config_class.option_names()})
ENTRIES = st.fixed_dictionaries(
    {"format_version": st.just(FORMAT_VERSION) | ANYTHING, "name": st.sampled_from(list_schemes()) | ANYTHING},
    optional={key: ANYTHING for key in ENTRY_KEYS if key not in ("format_version", "name", "options")}
    | {"options": st.dictionaries(st.sampled_from(OPTIONS) | st.text(max_size=20), ANYTHING, max_size=4) | ANYTHING},
)


@given(ENTRIES | ANYTHING)
@settings(max_examples=300)
def test_an_entry_is_a_valid_config_or_refused(entry: Any) -> None:
    try:
        config = config_from_entry(entry)
    except CheckpointError as error:
        message = str(error)
        assert len(message) < 3000
        assert message.isprintable()
        return
    assert config.name in list_schemes()
    options = json.loads(json.dumps(config.to_dict()))
    assert config_from_entry({"format_version": 1, "name": options.pop("name"), "options": options}) == config


@given(
    st.dictionaries(st.sampled_from(OPTIONS) | st.text(max_size=10), ANYTHING, min_size=1, max_size=3),
    st.sampled_from(list_schemes()),
)
def test_options_are_valid_or_refused_with_a_reason(options: dict[str, Any], name: str) -> None:
    try:
        config_from_entry({"format_version": 1, "name": name, "options": options})
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = "pos_scheme is valid"
    assert "pos_scheme" in refusal


def saved(folder: Path, scheme: str = "learned:length=40", name: str = "gpt2") -> dict[str, Any]:
    hf_posswap.swap(small_model(name, True), scheme).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def entry_with(config: dict[str, Any], name: str, **options: Any) -> dict[str, Any]:
    return config | {"pos_scheme": config["pos_scheme"] | {"name": name, "options": options}}


HUGE = 10**15
NASTY: dict[str, dict[str, Any]] = {
    "rows": {"name": "learned", "length": HUGE},
    "rows in range": {"name": "learned", "length": 2**31 - 1},
    "distances": {"name": "relative_bias", "max_distance": HUGE},
    "distances in range": {"name": "relative_bias", "max_distance": 2**31 - 1},
    "buckets": {"name": "t5", "num_buckets": 4 * HUGE, "max_distance": 8 * HUGE},
    "buckets in range": {"name": "t5", "num_buckets": 2**30, "max_distance": 2**31 - 1, "per_layer": True},
    "shaw": {"name": "shaw", "max_distance": 2**31 - 1},
    "layers": {"name": "alibi", "layers": [10**12]},
    "many layers": {"name": "alibi", "layers": list(range(100_000))},
    "factor": {"name": "rope", "scaling": "yarn", "factor": 1e300},
    "factors": {"name": "rope", "scaling": "longrope", "short_factor": [1.0] * 10**5, "long_factor": [1.0] * 10**5},
    "type": {"name": "t5", "num_buckets": "32"},
    "nested": {"name": "alibi", "form": {"__class__": "os"}},
}
FIELDS: dict[str, dict[str, Any]] = {
    "a trillion layers": {"n_layer": 10**12},
    "heads": {"n_head": 10**12},
    "width": {"n_embd": 10**12},
    "vocabulary": {"vocab_size": 10**15},
    "positions": {"n_positions": 10**15},
    "negative": {"n_layer": -1},
    "method": {"save_pretrained": "x"},
    "dunder": {"__dict__": {"pos_scheme": None}},
    "class": {"__class__": "os"},
    "stock class": {"stock_class": "os"},
    "dtype": {"dtype": "load"},
    "native": {"pos_scheme": "alibi"},
    "kernels": {"attn_implementation": "evil/kernels"},
    "kernels inside": {"_attn_implementation": "evil/kernels"},
    "other code": {"auto_map": {"AutoModelForCausalLM": "evil--code.Model", "AutoConfig": "../../evil.Config"}},
}
LOAD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
import torch, transformers, hf_posswap
from hf_posswap.errors import PosSwapError
torch.set_num_threads(1)
result = {}
for folder in sys.argv[1:]:
    began = time.perf_counter()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
        answer = "loaded"
    except Exception as error:  # whatever it is, the test looks at it
        chain = []
        while error is not None:
            chain.append(error)
            error = error.__cause__
        answer = [type(chain[0]).__name__, any(isinstance(e, PosSwapError) for e in chain), str(chain[0])[:600]]
    result[folder] = [answer, time.perf_counter() - began]
print(json.dumps(result))
"""


def test_no_config_fills_the_memory_or_runs_anything(tmp_path: Path) -> None:
    """In a process of its own with 8 GiB of address space, so that a failure here does not take the machine along."""
    good = saved(tmp_path / "good")
    spoilt = {name: entry_with(good, **options) for name, options in NASTY.items()}
    spoilt |= {name: good | fields for name, fields in FIELDS.items()}
    folders = {}
    for name, config in spoilt.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps(config))
        os.link(tmp_path / "good" / "model.safetensors", folders[name] / "model.safetensors")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "good"), *map(str, folders.values())]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result[str(tmp_path / "good")][0] == "loaded"
    harmless = {"other code"}  # read by nobody who has not said trust_remote_code=True
    for name, folder in folders.items():
        answer, seconds = result[str(folder)]
        assert seconds < 10, (name, seconds)
        if name in harmless:
            assert answer == "loaded", (name, answer)
            continue
        assert answer != "loaded", name
        assert "memory" not in answer[2].lower(), (name, answer)
        assert answer[1], (name, answer)


def test_a_checkpoint_without_the_schemes_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "t5")
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    assert "transformer.pos_scheme.table" in weights
    save_file({k: v for k, v in weights.items() if "pos_scheme" not in k}, path, metadata={"format": "pt"})
    for load in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        with pytest.raises(CheckpointError, match=r"lacks 1 weights of scheme 't5': .*pos_scheme.table"):
            load.from_pretrained(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    saved(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    for asked in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="model.safetensors"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **asked)


def test_loading_report_and_new_heads_are_as_in_transformers(tmp_path: Path) -> None:
    saved(tmp_path, "alibi")
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert hf_posswap.is_swapped(model)
    assert set(report["missing_keys"]) == {"score.weight"}


def test_code_beside_a_checkpoint_is_not_run_unasked(tmp_path: Path) -> None:
    config = saved(tmp_path / "model")
    ran = tmp_path / "ran"
    (tmp_path / "model" / "modeling_posswap.py").write_text(f"open({str(ran)!r}, 'w').close()\nimport hf_posswap\n")
    for auto_map in (config["auto_map"], dict.fromkeys(config["auto_map"], "modeling_posswap.Evil")):
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
        assert hf_posswap.is_swapped(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
        hf_posswap.AutoModel.from_pretrained(tmp_path / "model")
        assert not ran.exists()
