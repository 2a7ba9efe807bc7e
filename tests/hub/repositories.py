"""What the test Hub keeps: repositories with whole commits in memory, and what is to go wrong."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """What goes wrong, and how often.

    Attributes:
        pattern: of "METHOD path".
        status: the answer's status; None: the connection breaks, or stands still.
        times: how often; then all is well again.
        after: whether the request has its effect before the connection breaks.
        headers: of the answer.
        gone: whether every connection breaks from then on.
        stalls: whether the connection stands still and does not break.
    """

    pattern: str
    status: int | None
    times: int = 1_000_000
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    gone: bool = False
    stalls: bool = False


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]
    lfs: frozenset[str]
    message: str = ""


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]]

    def head(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == revision), None)


def oid_of(*parts: Any) -> str:
    return hashlib.sha1(repr(parts).encode()).hexdigest()


def blob_id(path: str, commit: Commit) -> str:
    content = commit.files[path]
    if path in commit.lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, commit: Commit) -> dict[str, Any]:
    size = len(commit.files[path])
    result: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": blob_id(path, commit)}
    if path in commit.lfs:
        result["lfs"] = {"oid": blob_id(path, commit), "size": size, "pointerSize": 134}
    return result
