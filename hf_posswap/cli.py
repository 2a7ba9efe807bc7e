"""The command line `hf-posswap`; also `python -m hf_posswap.cli`. Each command is a file of `hf_posswap.commands`."""

import sys


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 an unexpected failure (with its traceback) or a failed upload, 2 wrong input, explained in a
    message on stderr, 130 Ctrl-C.
    """
    try:
        from hf_posswap.commands import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f"hf-posswap: the command line needs the package {error.name}. "
            'Install it with pip install "hf_posswap[cli]".',
            file=sys.stderr,
        )
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
