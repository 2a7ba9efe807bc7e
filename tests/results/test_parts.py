"""Parts of an unfinished measurement: kept, found again, and refused where they belong to another."""

from pathlib import Path

import pytest

from hf_posswap.results.files import OutputError
from hf_posswap.results.parts import Parts

IDENTITY = {"model": "demo:gpt2", "lengths": (64, 128)}


def test_parts_are_there_for_the_next_process_until_all_is_finished(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out", IDENTITY)
    assert parts.get("rope:yarn/windows-64") is None
    parts.put("rope:yarn/windows-64", [{"loss": 1.5}])
    again = Parts(tmp_path / "out", IDENTITY)
    assert len(again) == 1
    assert again.get("rope:yarn/windows-64") == [{"loss": 1.5}]
    again.finish()
    assert list((tmp_path / "out").iterdir()) == []
    assert len(Parts(tmp_path / "out", IDENTITY | {"model": "other"})) == 0


def test_parts_of_another_measurement_are_refused(tmp_path: Path) -> None:
    Parts(tmp_path, IDENTITY).put("windows-64", 1)
    with pytest.raises(OutputError, match=r"another lengths: \[64, 128\] there, \[64\] now.*--overwrite"):
        Parts(tmp_path, IDENTITY | {"lengths": [64]})


def test_before_the_first_part_anything_may_be_asked_for(tmp_path: Path) -> None:
    Parts(tmp_path, IDENTITY)
    Parts(tmp_path, IDENTITY | {"lengths": [64]}).put("windows-64", 1)
    with pytest.raises(OutputError, match="another lengths"):
        Parts(tmp_path, IDENTITY)


def test_a_part_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    parts = Parts(tmp_path, IDENTITY)
    parts.put("windows-64", 1)
    next(tmp_path.glob("unfinished/part-*")).write_text("{")
    with pytest.raises(OutputError, match=r"part-windows-64.json.*Remove it"):
        parts.get("windows-64")


def test_a_folder_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot write to"):
        Parts(Path("/dev/null/out"), IDENTITY)
