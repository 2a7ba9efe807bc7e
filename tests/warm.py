"""Fresh Python processes that start fast: forked from a server that has imported torch and little else.

A start of Python that imports torch, transformers and hf_posswap takes four seconds, three of them for torch and what
it needs. Here a server imports these once; `run` lets it fork. transformers, huggingface_hub, accelerate and hf_posswap
are imported in each process as anywhere else, with that process's environment, folder, arguments and streams.

This file is all three: the tests' side (`run`), the server (`serve`), and between them a small process (`ask`) that
passes its own streams to the server, waits, and ends as the forked process ended. If it is killed, so is the other.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = (
    "torch._dynamo", "torch.distributed.tensor", "torch.nn.attention.flex_attention", "scipy.optimize", "pandas",
    "rich.progress", "typer", "safetensors.torch", "tokenizers", "psutil", "yaml", "jinja2", "regex",
)  # fmt: skip
"""Packages whose import depends on no setting that a test changes."""


def run(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: str = "",
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m MODULE …` or `python -c CODE …` in a process of its own, with exactly the environment `env`."""
    command = [sys.executable, *arguments]
    if sys.platform == "linux":  # elsewhere there is no descriptor of a process to wait for: it is started as usual
        command[1:1] = ["-I", "-S", __file__, "ask", server()]
    return subprocess.run(
        command, env=env, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


@functools.cache
def server() -> str:
    """Start the server of this test process, which ends with it, and return the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    path = f"{folder.name}/socket"
    reading, writing = os.pipe()  # closed by the kernel when this process ends, however that happens
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    command = [sys.executable, __file__, "serve", str(listening.fileno()), str(reading)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        pass_fds=(listening.fileno(), reading), start_new_session=True,
    )  # fmt: skip
    listening.close()
    os.close(reading)

    def end() -> None:
        os.close(writing)
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return path


def ask(path: str, arguments: list[str]) -> int:
    """Have the server run a program on this process's streams; return its exit code, or end by the same signal."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        connection.sendall(json.dumps(request).encode() + b"\n")
        status = connection.makefile().readline()
    code = os.waitstatus_to_exitcode(int(status)) if status else 1
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


def serve(listening: int, lifeline: int) -> dict[str, Any] | None:
    """Fork for every request until the tests have ended; return the request in a forked process, None in the server."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the minders
    server = socket.socket(fileno=listening)
    while lifeline not in select.select([server, lifeline], [], [])[0]:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            request = mind(connection)
            if request is None:
                os._exit(0)
            os.close(lifeline)
            return request
        connection.close()
    return None


def mind(connection: socket.socket) -> dict[str, Any] | None:
    """Fork a process, and return its request in it; here, tell whoever asked how it ended, or end it with them."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request: dict[str, Any] = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return request
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        with contextlib.suppress(ProcessLookupError):  # it has ended, or leads no group yet
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # whoever asked may have been killed
        connection.sendall(f"{status}\n".encode())
    return None


def become(request: Mapping[str, Any]) -> None:
    """Run what a request names as Python would that has just been started with it."""
    kind, program, *arguments = request["arguments"]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [request["folder"] if kind == "-m" else "", *added]
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        raise ValueError(f"a process is started with -m MODULE or -c CODE, not {kind!r}")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    request = serve(int(sys.argv[2]), int(sys.argv[3]))
    if request is not None:
        become(request)
