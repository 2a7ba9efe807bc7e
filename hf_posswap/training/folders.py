"""The folder a healed model goes into, looked at before anything long begins."""

from pathlib import Path

from hf_posswap.results.files import OutputError, check_folder
from hf_posswap.training.checkpoints import CheckpointError, checkpoints_in

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")


def require_room(folder: Path, resume: bool, adapter: bool) -> list[Path]:
    """Return the checkpoints in the folder of a run to go on from, oldest first; make nothing.

    Args:
        folder: where the healed model and its checkpoints go.
        resume: whether the run goes on from a checkpoint, if there is one.
        adapter: whether an adapter is going to be saved, not a whole model.

    Raises:
        OutputError: it cannot be written to, or holds what would be loaded along with what is saved.
        CheckpointError: it holds checkpoints, and `resume` is not asked for.
    """
    require_no_other_kind(folder, adapter)
    present = checkpoints_in(folder)
    if present and not resume:
        raise CheckpointError(
            f"{str(folder)!r} holds checkpoints of an earlier run, up to {present[-1].name}. Go on from it with "
            "resume=True (--resume), remove them, or give another folder; --overwrite leaves them alone."
        )
    return present


def require_no_other_kind(folder: Path, adapter: bool) -> None:
    """Refuse a folder with an adapter for a whole model, and the other way round: loading would mix them.

    Raises:
        OutputError: names the files; or the folder cannot be written to.
    """
    check_folder(folder)
    others = MODEL_FILES if adapter else ADAPTER_FILES
    found = [name for name in others if (folder / name).exists()]
    if found:
        kinds = ("an adapter", "a whole model") if adapter else ("a whole model", "an adapter")
        raise OutputError(
            f"{str(folder)!r} holds {kinds[1]} ({', '.join(found)}), and {kinds[0]} saved beside it would be loaded "
            "together with it. Remove those files, or give another folder."
        )
