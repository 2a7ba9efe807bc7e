"""The recipe of a search's winner, as command lines of `hf-posswap finetune`."""

import dataclasses
import shlex
from collections.abc import Sequence

from hf_posswap.common.options import declared, to_text
from hf_posswap.experiments.settings import CALIBRATION_TOKENS, SearchSettings
from hf_posswap.training.options import HealingOptions

CHOSEN = ("precision",)
"""Options whose default in `finetune` depends on the machine, so that a recipe states them."""


def finetune_command(settings: SearchSettings, healing: HealingOptions, output: str, how: Sequence[str]) -> str:
    """Return a command that heals on the texts of a search.

    Args:
        settings: the settings of the search.
        healing: options of healing.
        output: folder for the model.
        how: further arguments: the model, and the scheme or the stock model.
    """
    texts = [part for text in settings.train_texts for part in ("--train-file", text)]
    split = [] if settings.documents is None else ["--documents", settings.documents]
    line = ["hf-posswap", "finetune", *how, *texts, *split, *option_arguments(healing), "--output-dir", output]
    return shlex.join(line)


def recipe_of(
    settings: SearchSettings, scheme: str, rounds: Sequence[HealingOptions], calibrated: bool, folder: str
) -> list[str]:
    """Return the commands that make the winner anew, one for each round of healing.

    Args:
        settings: the settings of the search.
        scheme: the winner.
        rounds: options of healing in each round.
        calibrated: whether the scheme was calibrated.
        folder: folder under which the commands save the models.
    """
    stock, commands = settings.model, []
    for number, healing in enumerate(rounds, start=1):
        how = ["--model", stock, "--pos-scheme", scheme]
        if number > 1:
            how = ["--model", _place(folder, number - 1), "--stock", stock]
        elif calibrated and settings.calibration_tokens != CALIBRATION_TOKENS:
            how += ["--calibration-tokens", str(settings.calibration_tokens)]
        commands.append(finetune_command(settings, healing, _place(folder, number), how))
    return commands


def way_on(settings: SearchSettings, winner: str, rounds: int, folder: str) -> str:
    """Return the command that heals the winner further, on as many tokens as the whole search.

    Args:
        settings: the settings of the search.
        winner: folder of the winner's model.
        rounds: number of rounds of healing that it has behind it.
        folder: folder under which the command saves the model.
    """
    healing = dataclasses.replace(settings.healing, seed=settings.seed + rounds)
    how = ["--model", winner, "--stock", settings.model]
    return finetune_command(settings, healing, f"{folder}/healed-further", how)


def option_arguments(options: HealingOptions) -> list[str]:
    """Return the arguments of a command for the options that change what a run computes and differ from the default."""
    arguments: list[str] = []
    for field in declared(type(options)):
        value = getattr(options, field.name)
        if field.name not in options.identity() or (value == field.default and field.name not in CHOSEN):
            continue
        flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
        if field.metadata["switch"] is not None:
            arguments += [field.metadata["switch"].name, field.metadata["switch"].number, to_text(value)]
        elif isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            items = value if isinstance(value, tuple) else (value,)
            arguments += [flag, ",".join(item if isinstance(item, str) else f"{item:.12g}" for item in items)]
    return arguments


def _place(folder: str, number: int) -> str:
    return f"{folder}/recipe-{number}"
