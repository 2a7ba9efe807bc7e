"""Checkpoints with relative tables, as transformers 4 wrote them, loaded with their tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import hf_posswap
from hf_posswap.architectures import architecture_of
from hf_posswap.commands import app
from hf_posswap.errors import CheckpointError, SchemeConfigError, UnsupportedError
from hf_posswap.swapped.plan import core_of
from tests.families.configs import model_types, tiny_model
from tests.oracles.shaw import attention_oracle

KINDS = ("relative_key", "relative_key_query")
LENGTH, ROWS, VOCABULARY = 11, 16, 50
WROTE = ("albert", "bert", "camembert", "electra", "layoutlm", "roberta", "roberta-prelayernorm", "xlm-roberta", "xmod")
"""Model types of which transformers 4 read `position_embedding_type`."""
MODEL_TYPES = sorted({model_type for model_type, causal, _ in model_types() if not causal} & set(WROTE))


def tables_of(model: Any) -> dict[str, Tensor]:
    """Random tables for a stock model's layers, by the names that transformers 4 gave them in a file with a head."""
    base = model.base_model
    architecture = architecture_of(model.config)
    rows, head_dim = 2 * model.config.max_position_embeddings - 1, architecture.facts(core_of(model)).head_dim
    names = {module: name for name, module in model.named_modules()}
    assert base is not model
    return {
        f"{names[module]}.distance_embedding.weight": torch.randn(rows, head_dim) * 0.5
        for _, module in architecture.attention_modules(core_of(model))
    }


def write(folder: Path, kind: str, model: Any, tables: dict[str, Tensor], prefix: str = "") -> None:
    """Write a checkpoint as transformers 4 did; `prefix` is left out of all names, as the base model's file has it."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors") | tables
    weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"position_embedding_type": kind}))


def tiny_bert(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=ROWS, initializer_range=0.2, **changes,
    )  # fmt: skip
    auto = transformers.AutoModelForCausalLM if changes.get("is_decoder") else transformers.AutoModelForMaskedLM
    return auto.from_config(config).eval()


@torch.no_grad()
def bert_in_float64(model: Any, tables: dict[str, Tensor], kind: str, tokens: Tensor, causal: bool) -> Tensor:
    """Logits of BERT with relative positions in float64: its linear maps by torch, attention by loops."""
    model = model.double()
    embeddings, length = model.bert.embeddings, tokens.shape[1]
    hidden = embeddings.word_embeddings(tokens) + embeddings.token_type_embeddings(torch.zeros_like(tokens))
    hidden = embeddings.LayerNorm(hidden)
    for index, layer in enumerate(model.bert.encoder.layer):
        attention = layer.attention.self
        table = tables[f"bert.encoder.layer.{index}.attention.self.distance_embedding.weight"].double()
        q, k, v = (
            project(hidden).view(*tokens.shape, 4, 8).transpose(1, 2)
            for project in (attention.query, attention.key, attention.value)
        )
        at = list(range(length))
        visible = [[not causal or j <= i for j in at] for i in at]
        # The published code: distance_embedding(position of the query − position of the key + 16 − 1).
        by_key_minus_query = table.flip(0).numpy()
        rows = [
            attention_oracle(
                q[b].numpy(), k[b].numpy(), v[b].numpy(), at, at, visible, 8**-0.5, by_key_minus_query, None,
                query_and_key=kind == "relative_key_query",
            )
            for b in range(len(tokens))
        ]  # fmt: skip
        context = torch.stack([torch.from_numpy(row) for row in rows]).transpose(1, 2).reshape(hidden.shape)
        hidden = layer.attention.output(context, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return model.cls(hidden)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bert_equals_loops_in_float64(kind: str, causal: bool, tmp_path: Path) -> None:
    stock = tiny_bert(is_decoder=causal)
    tables = tables_of(stock)
    write(tmp_path, kind, stock, tables)
    auto = hf_posswap.AutoModelForCausalLM if causal else hf_posswap.AutoModelForMaskedLM
    model = auto.from_pretrained(tmp_path, pos_scheme="native").eval()
    tokens = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    expected = bert_in_float64(stock, tables, kind, tokens, causal)
    with torch.no_grad():
        # Float32 against float64 over two layers, logits of order 10.
        torch.testing.assert_close(model(tokens).logits.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_that_had_them_gets_its_tables(model_type: str, kind: str, tmp_path: Path) -> None:
    stock = tiny_model(model_type, False)
    tables = tables_of(stock)
    write(tmp_path, kind, stock, tables)
    model = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path, pos_scheme="native")
    found = [
        module.pos_scheme.key_table for _, module in architecture_of(model.config).attention_modules(core_of(model))
    ]
    assert len(found) == len(tables)
    for own, table in zip(found, tables.values(), strict=True):
        assert torch.equal(own, table.flip(0))
    config = model.config.pos_scheme
    assert (config["name"], config["options"]["query_and_key"]) == ("shaw", kind == "relative_key_query")
    position_table = architecture_of(model.config).position_table(core_of(model))
    assert not position_table.weight.any()


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_files_of_the_model_with_and_without_a_head_are_read(prefix: str, tmp_path: Path) -> None:
    stock = tiny_bert()
    tables = tables_of(stock)
    write(tmp_path, "relative_key", stock, tables, prefix)
    named = {"pretrained_model_name_or_path": tmp_path}
    model = hf_posswap.AutoModel.from_pretrained(**named, pos_scheme="native", dtype=torch.bfloat16)
    own = model.encoder.layer[1].attention.self.pos_scheme.key_table
    assert torch.equal(own, list(tables.values())[1].flip(0).bfloat16())


def test_old_files_of_torch_and_loading_info_are_read(tmp_path: Path) -> None:
    stock = tiny_bert()
    tables = tables_of(stock)
    write(tmp_path, "relative_key_query", stock, tables)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    loaded = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path, pos_scheme="native", output_loading_info=True)
    own = loaded[0].bert.encoder.layer[0].attention.self.pos_scheme.key_table
    assert torch.equal(own, next(iter(tables.values())).flip(0))


def test_it_is_saved_and_loaded_as_a_swapped_model_and_has_no_stock_model(tmp_path: Path) -> None:
    stock = tiny_bert()
    write(tmp_path / "old", "relative_key_query", stock, tables_of(stock))
    model = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path / "old", pos_scheme="native").eval()
    model.save_pretrained(tmp_path / "new")
    again = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    tokens = torch.arange(3, 3 + LENGTH)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    for loaded in (model, again):
        with pytest.raises(UnsupportedError, match="its weights have learned with its scheme"):
            hf_posswap.restore(loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_argument_the_way_is_named(kind: str, tmp_path: Path) -> None:
    stock = tiny_bert()
    write(tmp_path, kind, stock, tables_of(stock))
    with pytest.raises(UnsupportedError, match=f"position_embedding_type '{kind}'.*pos_scheme='native'"):
        hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path)
    with hf_posswap.install():  # transformers' own classes are left as they are, and take the argument
        assert not hf_posswap.is_swapped(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path))
        assert hf_posswap.is_swapped(transformers.BertModel.from_pretrained(tmp_path, pos_scheme="native"))


def test_a_checkpoint_that_has_lost_its_tables_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "relative_key", tiny_bert(), {})
    with pytest.raises(CheckpointError, match=r"has no relative tables, such as .*distance_embedding\.weight"):
        hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path, pos_scheme="native")


def test_other_checkpoints_and_configs_are_refused(tmp_path: Path) -> None:
    stock = tiny_bert()
    stock.save_pretrained(tmp_path)
    with pytest.raises(SchemeConfigError, match="'native' is for checkpoints.*leave pos_scheme out.*alibi"):
        hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path, pos_scheme="native")
    config = stock.config
    config.position_embedding_type = "relative_key"
    with pytest.raises(SchemeConfigError, match="a config has none.*from_pretrained"):
        hf_posswap.AutoModelForMaskedLM.from_config(config, pos_scheme="native")


def test_the_command_line_saves_it_as_a_swapped_model(tmp_path: Path) -> None:
    stock = tiny_bert()
    write(tmp_path / "old", KINDS[0], stock, tables_of(stock))
    arguments = ["swap", str(tmp_path / "old"), "--output-dir", str(tmp_path / "new"), "--pos-scheme"]
    done = CliRunner().invoke(app, [*arguments, "native"])
    assert done.exit_code == 0, done.output
    expected = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path / "old", pos_scheme="native").eval()
    saved = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    tokens = torch.arange(3, 3 + LENGTH)[None] % VOCABULARY
    with torch.no_grad():
        assert torch.equal(saved(tokens).logits, expected(tokens).logits)
