"""A small Hub on loopback: as much of its HTTP interface as huggingface_hub uses to publish and load models.

It keeps whole commits in memory, knows users by their tokens, hides private repositories, validates cards, takes large
files by LFS in one part or several, and fails on demand: with a status, by breaking the connection, or by standing
still.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub.cards import card_errors
from tests.hub.repositories import Commit, Fault, Repository, blob_id, entry, oid_of

OWNER, TOKEN = "you", "hf_" + "T0kenOfTheTestServer" * 2
READER_TOKEN = "hf_" + "R3aderOfTheTestServer" * 2
LFS_SIZE = 64 * 1024
PART_SIZE = 4 * 2**20
"""Bytes of a part: larger files are uploaded in several."""


class HubServer(ThreadingHTTPServer):
    """The server's state; see `Handler` for what it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()

    def create(self, name: str, private: bool = False) -> Repository:
        first = Commit(oid_of(name), {".gitattributes": b"*.safetensors filter=lfs\n"}, frozenset(), "initial commit")
        self.repositories[name] = Repository(private, {"main": [first]})
        return self.repositories[name]

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Put a repository there as if someone had uploaded it; return its commit."""
        self.create(name)
        large = frozenset(path for path in files if path.endswith(".safetensors"))
        commit = Commit(oid_of(name, sorted(files)), files, large)
        self.repositories[name].branches["main"].append(commit)
        return commit.oid

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repositories[name].head(revision)
        assert commit is not None
        return {path: content for path, content in commit.files.items() if path != ".gitattributes"}

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    if fault.gone:
                        fault.pattern = "."
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break: tests break them."""


@contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "", body: Any = None) -> None:
        self.status, self.message, self.code = status, message, code
        self.body = {"error": message} if body is None else body


class Handler(BaseHTTPRequestHandler):
    """Answers requests by the routes below."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.path, _, self.query = urllib.parse.unquote(self.path).partition("?")
        request = f"{self.command} {self.path}"
        self.server.requests.append(request)
        fault = self.server.fault_for(request)
        if fault is not None and fault.status is None and not fault.after:
            self.rfile.read(min(1024, int(self.headers.get("Content-Length") or 0)))
            self.hang_up(fault.stalls)
            return
        body = self.body()
        if fault is not None and fault.status is not None:
            self.send(fault.status, {"error": "something went wrong"}, fault.headers)
            return
        try:
            with self.server.lock:
                status, content, headers = self.route(request, body)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.status, refusal.body, headers)
            return
        if fault is not None:
            self.hang_up(fault.stalls)
            return
        self.send(status, content, headers)

    def hang_up(self, stalls: bool) -> None:
        if stalls:
            self.server.closing.wait()
        self.close_connection = True
        self.connection.shutdown(2)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, content: Any, headers: dict[str, str]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
        for name, value in headers.items():
            self.send_header(name, value.replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- who asks, and for what

    def user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        users = {f"Bearer {TOKEN}": OWNER, f"Bearer {READER_TOKEN}": "reader"}
        if header not in users:
            raise Refusal(401, "Invalid username or password.")
        return users[header]

    def writer(self, owner: str) -> str:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user != OWNER or owner != OWNER:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}.")
        return user

    def repository(self, name: str) -> Repository:
        found = self.server.repositories.get(name)
        user = self.user()
        if found is None or (found.private and user != OWNER):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def commit(self, name: str, revision: str) -> Commit:
        found = self.repository(name).head(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # --- routes

    def route(self, request: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for pattern, action in ROUTES:
            match = re.fullmatch(pattern, request)
            if match is not None:
                answer = action(self, body, *match.groups())
                return answer if isinstance(answer, tuple) else (200, answer, {})
        raise Refusal(404, f"no such route: {request}")

    def whoami(self, _: bytes) -> Any:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": user, "auth": {"accessToken": {"role": "write"}}, "orgs": []}

    def create(self, body: bytes) -> Any:
        wanted = json.loads(body)
        owner = wanted.get("organization") or OWNER
        self.writer(owner)
        name = f"{owner}/{wanted['name']}"
        answer = {"url": f"{self.server.url}/{name}", "name": name}
        if name in self.server.repositories:
            raise Refusal(409, "You already created this model repo", body=answer | {"error": "exists"})
        self.server.create(name, bool(wanted.get("private")) or wanted.get("visibility") == "private")
        return answer

    def validate(self, body: bytes) -> Any:
        errors = card_errors(json.loads(body)["content"])
        if errors:
            raise Refusal(400, "invalid", body={"errors": [{"message": error} for error in errors], "warnings": []})
        return {"errors": [], "warnings": []}

    def info(self, _: bytes, name: str, revision: str | None = None) -> Any:
        repository = self.repository(name)
        commit = self.commit(name, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        return {"id": name, "modelId": name, "sha": commit.oid, "private": repository.private, "siblings": siblings}

    def tree(self, _: bytes, name: str, revision: str, below: str | None = None) -> Any:
        commit = self.commit(name, revision)
        prefix = f"{below.strip('/')}/" if below else ""
        found = [entry(path, commit) for path in sorted(commit.files) if path.startswith(prefix)]
        if not found:
            raise Refusal(404, f"{below} does not exist on {revision}", "EntryNotFound")
        return found

    def paths(self, body: bytes, name: str, revision: str) -> Any:
        commit = self.commit(name, revision)
        asked = json.loads(body)["paths"]
        return [entry(path, commit) for path in asked if path in commit.files]

    def refs(self, _: bytes, name: str) -> Any:
        branches = self.repository(name).branches
        listed = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": c[-1].oid} for branch, c in branches.items()
        ]
        return {"branches": listed, "tags": [], "converts": []}

    def branch(self, body: bytes, name: str, branch: str) -> Any:
        self.writer(name.partition("/")[0])
        branches = self.repository(name).branches
        if branch in branches:
            raise Refusal(409, "Reference already exists")
        branches[branch] = list(branches["main"])
        return {}

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        self.writer(name.partition("/")[0])
        commit = self.commit(name, revision)
        return {"files": [self.mode(file, commit) for file in json.loads(body)["files"]]}

    def mode(self, file: dict[str, Any], commit: Commit) -> dict[str, Any]:
        path = file["path"]
        binary = b"\0" in base64.b64decode(file["sample"])
        large = path.endswith(".safetensors") or file["size"] > LFS_SIZE or binary
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in commit.files:
            answer["oid"] = blob_id(path, commit)
        return answer

    def batch(self, body: bytes, name: str) -> Any:
        self.writer(name.partition("/")[0])
        self.repository(name)
        return {"transfer": "basic", "objects": [self.upload_of(item) for item in json.loads(body)["objects"]]}

    def upload_of(self, item: dict[str, Any]) -> dict[str, Any]:
        oid, size = item["oid"], item["size"]
        if oid in self.server.blobs:
            return {"oid": oid, "size": size}
        verify = {"href": f"{self.server.url}/lfs/verify", "header": {}}
        upload: dict[str, Any] = {"href": f"{self.server.url}/lfs/whole/{oid}?X-Signature=secret"}
        if size > PART_SIZE:
            count = -(-size // PART_SIZE)
            parts = {str(n + 1): f"{self.server.url}/lfs/part/{oid}/{n + 1}?X-Signature=secret" for n in range(count)}
            upload = {"href": f"{self.server.url}/lfs/complete", "header": {"chunk_size": str(PART_SIZE)} | parts}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def whole(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the content is not what was announced")
        self.server.blobs[oid] = body
        return {}

    def part(self, body: bytes, oid: str, number: str) -> Any:
        self.server.parts[oid, int(number)] = body
        return 200, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def complete(self, body: bytes) -> Any:
        wanted = json.loads(body)
        parts = [self.server.parts.pop((wanted["oid"], part["partNumber"])) for part in wanted["parts"]]
        return self.whole(b"".join(parts), wanted["oid"])

    def verify(self, body: bytes) -> Any:
        wanted = json.loads(body)
        if len(self.server.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "object is missing")
        return {}

    def commit_files(self, body: bytes, name: str, revision: str) -> Any:
        self.writer(name.partition("/")[0])
        before = self.commit(name, revision)
        files, large = dict(before.files), set(before.lfs)
        summary = ""
        for line in body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                summary = value["summary"]
                continue
            path = value["path"]
            large.discard(path)
            if key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
                files[path] = self.server.blobs[value["oid"]]
                large.add(path)
            elif key == "deletedFile":
                del files[path]
            else:
                raise Refusal(400, f"unknown operation {key}")
        made = Commit(oid_of(before.oid, sorted(files), summary), files, frozenset(large), summary)
        branches = self.repository(name).branches
        answer = {"commitUrl": f"{self.server.url}/{name}/commit/{made.oid}", "commitOid": made.oid}
        if "create_pr=1" in self.query:
            branches["refs/pr/1"] = [*branches[revision], made]
            return answer | {"pullRequestUrl": f"{self.server.url}/{name}/discussions/1"}
        branches[revision].append(made)
        return answer

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> Any:
        commit = self.commit(name, revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{blob_id(path, commit)}"',
            "Content-Type": "binary/octet-stream",
        }
        if path in commit.lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 200, content, headers
        start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1)
        return 206, content[start : stop + 1], headers | {"Content-Range": f"bytes {start}-{stop}/{len(content)}"}


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/models/{_NAME}", Handler.info),
    (rf"GET /api/models/{_NAME}/revision/(.+)", Handler.info),
    (rf"GET /api/models/{_NAME}/tree/(refs/pr/\d+|[^/]+)(/.+)?", Handler.tree),
    (rf"POST /api/models/{_NAME}/paths-info/(.+)", Handler.paths),
    (rf"GET /api/models/{_NAME}/refs", Handler.refs),
    (rf"POST /api/models/{_NAME}/branch/(.+)", Handler.branch),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/(.+)", Handler.commit_files),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/whole/(\w+)", Handler.whole),
    (r"PUT /lfs/part/(\w+)/(\d+)", Handler.part),
    (r"POST /lfs/complete", Handler.complete),
    (r"POST /lfs/verify", Handler.verify),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(refs/pr/\d+|[^/]+)/(.+)", Handler.resolve),
]
