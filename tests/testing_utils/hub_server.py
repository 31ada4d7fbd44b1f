"""A stand-in for the Hugging Face Hub on loopback: as much of its HTTP API as loading and publishing a model need.

Repositories live in memory, with branches and commits; large files go through LFS (batch, PUT, redirect) as they do
there, small ones through the commit itself. Clients are pointed at it by `HF_ENDPOINT`, which is read at import: they
run in processes of their own, see `client_environment`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

TOKEN, READ_TOKEN, USER = "hf_write", "hf_read", "ada"
LFS_SUFFIXES = (".safetensors", ".png", ".mp4")


class HubServer(ThreadingHTTPServer):
    """Serves while it is entered; `repos` and `requests` can be looked at.

    `repos` is name -> {"private", "branches": name -> commits}, a commit is {"id", "title", "files": path -> bytes}.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.objects, self.requests, self.lock = {}, {}, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        # Another host, as there: clients follow redirects within one themselves.
        self.store = f"http://localhost:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def client_environment(self, home, token=TOKEN):
        """Environment of a process that takes this for the Hub, with an empty cache."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        # Xet, the other way of uploading, speaks to servers of its own.
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {
            **kept,
            **ours,
            **({} if token is None else {"HF_TOKEN": token}),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        }

    def files(self, repo, revision="main"):
        """What a revision holds, path -> bytes; None if there is no such revision."""
        branches = self.repos[repo]["branches"]
        if revision in branches:
            return branches[revision][-1]["files"]
        return next((c["files"] for commits in branches.values() for c in commits if c["id"] == revision), None)

    def commit_id(self, repo, revision="main"):
        branches = self.repos[repo]["branches"]
        return branches[revision][-1]["id"] if revision in branches else revision

    def add_commit(self, repo, branch, title, files):
        commits = self.repos[repo]["branches"].setdefault(branch, [])
        text = f"{repo} {branch} {len(commits)} {title}"
        commits.append({"id": hashlib.sha1(text.encode()).hexdigest(), "title": title, "files": files})
        return commits[-1]["id"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        self.path, _, _ = self.path.partition("?")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            self.route()

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 (names that http.server asks for)

    def route(self):
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, self.path)
            if found and wanted == method:
                return answer(self, **{name: unquote(text or "") for name, text in found.groupdict().items()})
        return self.say(501, {"error": f"the stand-in does not speak {self.command} {self.path}"})

    def say(self, status, content=b"", headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message):
        self.say(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def may_write(self, repo=f"{USER}/"):
        if self.token not in (TOKEN, READ_TOKEN):
            self.say(401, {"error": "Invalid username or password."})
            return False
        if self.token == READ_TOKEN or not repo.startswith(f"{USER}/"):
            self.say(403, {"error": f"You don't have the rights to write to {repo}"})
            return False
        return True

    def readable(self, repo, revision="main"):
        """The files of a revision, or None once it has been refused."""
        held = self.server.repos.get(repo)
        if held is None or (held["private"] and self.token not in (TOKEN, READ_TOKEN)):
            return self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        files = self.server.files(repo, revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    # --- the routes ---------------------------------------------------------------------------------------------------

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        if not self.may_write(repo):
            return
        address = {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo}
        if repo in self.server.repos:
            return self.say(409, {"error": "You already created this model repo", **address})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repos[repo] = {"private": private, "branches": {}}
        self.server.add_commit(repo, "main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.say(200, address)

    def validate(self):
        try:
            data = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
            assert isinstance(data, dict) and data["license"], "no license"
        except Exception as error:
            return self.say(400, {"errors": [{"message": str(error)}], "warnings": []})
        self.say(200, {"errors": [], "warnings": []})

    def info(self, repo, revision="main"):
        files = self.readable(repo, revision or "main")
        if files is not None:
            held = {"id": repo, "modelId": repo, "sha": self.server.commit_id(repo, revision or "main"), "tags": []}
            listed = [{"rfilename": path} for path in sorted(files)]
            self.say(200, {**held, "private": self.server.repos[repo]["private"], "siblings": listed})

    def tree(self, repo, revision):
        files = self.readable(repo, revision)
        if files is not None:
            self.say(200, [_entry(path, data) for path, data in sorted(files.items())])

    def preupload(self, repo, revision):
        if self.may_write(repo):
            files = self.server.files(repo, revision)
            held = {path: _entry(path, data) for path, data in files.items()}
            self.say(200, {"files": [_upload_mode(file, held) for file in json.loads(self.body)["files"]]})

    def batch(self, repo):
        if self.may_write(repo):
            objects = json.loads(self.body)["objects"]
            for entry in objects:
                if entry["oid"] not in self.server.objects:
                    entry["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            self.say(200, {"transfer": "basic", "objects": objects})

    def put_object(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.say(400, {"error": "content does not match its hash"})
        self.server.objects[oid] = self.body
        self.say(200)

    def get_object(self, oid):
        self.say(200, self.server.objects[oid], {"ETag": f'"{oid}"'})

    def commit(self, repo, revision):
        if not self.may_write(repo):
            return
        files, title = dict(self.server.files(repo, revision)), ""
        for line in self.body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                return self.say(400, {"error": f"unknown operation {key}"})
        commit = self.server.add_commit(repo, revision, title, files)
        self.say(200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"})

    def branch(self, repo, revision):
        if self.may_write(repo):
            branches = self.server.repos[repo]["branches"]
            if revision in branches:
                return self.say(409, {"error": "Reference already exists"})
            branches[revision] = branches["main"][-1:]
            self.say(200, {})

    def resolve(self, repo, revision, path):
        files = self.readable(repo, revision)
        if files is None:
            return
        headers = {"X-Repo-Commit": self.server.commit_id(repo, revision)}
        if path not in files:
            self.send_response(404)
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "Content-Length": "0"}
            for name, value in headers.items():
                self.send_header(name, value)
            return self.end_headers()
        entry = _entry(path, files[path])
        if "lfs" not in entry:
            return self.say(200, files[path], {**headers, "ETag": f'"{entry["oid"]}"'})
        oid = entry["lfs"]["oid"]
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
        self.say(302, b"", {**headers, "Location": f"{self.server.store}/lfs/{oid}"})


_REPO, _REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_REPO}", _Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/{_REVISION}", _Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/{_REVISION}", _Handler.tree),
    ("POST", f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    ("POST", f"/api/models/{_REPO}/branch/{_REVISION}", _Handler.branch),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put_object),
    ("GET", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.get_object),
    ("GET", f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]


def _entry(path, data):
    """A file as the Hub lists it: git's hash of the blob, and LFS's of large ones."""
    entry = {"type": "file", "path": path, "size": len(data)}
    blob = data
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
        blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()}


def _upload_mode(file, held):
    """What the Hub answers for a file that is about to come."""
    mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
    known = held.get(file["path"], {})
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known.get("lfs", known).get("oid")}
