import pytest

from hf_posswap.results.files import OutputError
from hf_posswap.training.checkpoints import TrainingCheckpointError
from hf_posswap.training.folders import require_room


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    assert require_room(tmp_path / "a" / "b", resume=False, adapter=False) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_a_place_below_one_are_refused(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="file' is a file"):
            require_room(place, resume=False, adapter=False)


def test_checkpoints_are_gone_on_from_or_refused(tmp_path):
    (tmp_path / "checkpoint-0000007").mkdir()
    assert require_room(tmp_path, resume=True, adapter=False) == [tmp_path / "checkpoint-0000007"]
    with pytest.raises(TrainingCheckpointError, match="checkpoint-0000007.*--overwrite leaves them alone"):
        require_room(tmp_path, resume=False, adapter=False)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("adapter_config.json", False), ("model.safetensors", True), ("model.safetensors.index.json", True)],
)
def test_an_adapter_and_a_whole_model_do_not_share_a_folder(tmp_path, name, adapter):
    (tmp_path / name).touch()
    require_room(tmp_path, resume=False, adapter=not adapter)
    with pytest.raises(OutputError, match=name):
        require_room(tmp_path, resume=False, adapter=adapter)
