"""Checks of the output folder of a healed model, before any long computation."""

from pathlib import Path

from hf_posswap.results.files import OutputError, check_folder
from hf_posswap.training.checkpoints import TrainingCheckpointError, checkpoints_in

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")


def require_room(folder: Path, resume: bool, adapter: bool) -> list[Path]:
    """Return the checkpoints in the folder that a run can resume from, oldest first; create nothing.

    Args:
        folder: folder for the healed model and its checkpoints.
        resume: whether the run resumes from a checkpoint, if there is one.
        adapter: whether the run saves an adapter instead of a whole model.

    Raises:
        OutputError: the folder cannot be written to, or holds files that would be loaded together with the saved ones.
        TrainingCheckpointError: the folder holds checkpoints, and `resume` is False.
    """
    require_no_other_kind(folder, adapter)
    present = checkpoints_in(folder)
    if present and not resume:
        raise TrainingCheckpointError(
            f"{str(folder)!r} holds checkpoints of an earlier run, up to {present[-1].name}. Go on from it with "
            "resume=True (--resume), remove them, or give another folder; --overwrite leaves them alone."
        )
    return present


def require_no_other_kind(folder: Path, adapter: bool) -> None:
    """Refuse a folder with an adapter for a whole model, and the other way round: loading would mix them.

    Raises:
        OutputError: the folder holds such files, which the message names, or cannot be written to.
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
