"""Hub models: the real huggingface_hub client against a small hub on 127.0.0.1, and its exceptions one by one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import errors, utils
from safetensors.numpy import save

from mlcrt.errors import MlcrtError
from mlcrt.formats import open_model

COMMIT = "c0ffee" + "0" * 34
ROOT = Path(__file__).parents[2]


def repository(gguf_file: bytes) -> dict[str, bytes]:
    weights = {"w": np.full((6000, 1000), 0.5, np.float32)}  # 24 MB: the client writes and resumes in steps of 10 MiB
    return {
        "config.json": json.dumps({"model_type": "llama", "eos_token_id": 2}).encode(),
        "model.safetensors": save(weights),
        "tokenizer_config.json": b"{}",
        "README.md": b"not needed",
        "consolidated.safetensors": b"not needed either",
        "onnx/model.safetensors": b"nor this",
        "quants/tiny-q8_0.gguf": gguf_file,
    }


class Hub(ThreadingHTTPServer):
    """The few endpoints that snapshot_download needs (https://huggingface.co/docs/hub/api)."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.cuts = files, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if "/secret" in path:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="ask first")
        if "/tiny" not in path:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="no such repository")
        if match := re.fullmatch(r"/api/models/owner/tiny(?:/revision/(.+))?", path):
            if match[1] not in (None, "main", COMMIT):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
            siblings = [{"rfilename": name} for name in self.server.files]
            body = {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        if path.startswith("/api/models/owner/tiny/tree/"):
            body = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        name = path.split(f"/resolve/{COMMIT}/", 1)[-1]
        if name not in self.server.files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        data = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        begin = int(asked[1]) if asked else 0
        if asked:
            headers["Content_Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        rest = data[begin:]
        if self.command == "GET" and name in self.server.cuts:  # the line drops half-way
            self.server.cuts.remove(name)
            self.answer(206 if asked else 200, rest[: len(rest) // 2], len(rest), **headers)
            self.close_connection = True
            self.connection.close()
            return None
        return self.answer(206 if asked else 200, rest, **headers)


@pytest.fixture
def hub(tiny_gguf):
    path, _ = tiny_gguf()
    server = Hub(repository(path.read_bytes()))
    yield server
    server.shutdown()
    server.server_close()


PROGRAM = """
import sys
from mlcrt.errors import MlcrtError
from mlcrt.formats import open_model
for spec in sys.argv[1:]:
    spec, _, revision = spec.partition("@")
    try:
        source = open_model(spec, revision=revision or None, progress=False)
        name = source.tensors.names()[0]
        print("ok", source.name, source.kind, name, float(source.tensors.load(name).sum()))
    except MlcrtError as error:
        print("error", error)
"""


def run(hub: Hub | None, cache: Path, *specs: str, **environment: str) -> list[str]:
    """What open_model does with each spec in a process of its own (the client reads its settings when imported)."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *specs], capture_output=True, text=True, cwd=ROOT, env={**kept, **settings},
        timeout=120,
    )  # fmt: skip
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    return result.stdout.splitlines()


def test_download(hub, tmp_path):
    hub.cuts.append("model.safetensors")
    answers = run(
        hub, tmp_path, "owner/tiny", "owner/tiny/quants/tiny-q8_0.gguf", "owner/tiny/quants/absent.gguf",
        "owner/tiny@nowhere", "owner/missing", "owner/secret",
    )  # fmt: skip
    assert answers[0] == "ok tiny hf w 3000000.0"
    assert answers[1].startswith("ok tiny gguf model.embed_tokens.weight")
    assert "has no file quants/absent.gguf" in answers[2]
    assert "has no revision 'nowhere'" in answers[3]
    assert "'owner/missing' is neither a local path nor a hub model" in answers[4]
    assert "'owner/secret' is gated" in answers[5]
    fetched = [(path.split(f"/resolve/{COMMIT}/")[1], asked) for method, path, asked in hub.requests
               if method == "GET" and "/resolve/" in path]  # fmt: skip
    assert {"README.md", "consolidated.safetensors", "onnx/model.safetensors"}.isdisjoint(name for name, _ in fetched)
    resumed = [asked for name, asked in fetched if name == "model.safetensors" and asked]
    assert len(resumed) == 1 and int(resumed[0].removeprefix("bytes=").rstrip("-")) > 0  # after the line dropped

    offline = run(None, tmp_path, "owner/tiny", "owner/other", HF_HUB_OFFLINE="1")
    assert offline[0] == answers[0]
    assert "neither a local path nor completely in the hub cache" in offline[1]
    assert "cannot be reached" in run(None, tmp_path / "empty", "owner/tiny")[0]


def response_error(kind: type) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "line one\nline two")
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (response_error(errors.GatedRepoError), "is gated: accept its terms"),
        (response_error(errors.RepositoryNotFoundError), "neither a local path nor a hub model"),
        (response_error(errors.RevisionNotFoundError), "no revision 'r'"),
        (response_error(errors.HfHubHTTPError), "failed: line one line two; run it again"),
        (errors.LocalEntryNotFoundError("nothing"), "cannot be reached"),
        (errors.HFValidationError("bad"), "valid hub name"),
        (OSError(28, "No space left on device"), "failed: No space left on device"),
        (RuntimeError(), "failed: RuntimeError"),
    ],
)
def test_failures(monkeypatch, error, says):
    def fail(repo, **options):
        assert options["revision"] == "r" and "*.safetensors" in options["allow_patterns"]
        assert utils.are_progress_bars_disabled()
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    before = utils.are_progress_bars_disabled()
    with pytest.raises(MlcrtError, match=says) as caught:
        open_model("owner/name", revision="r", progress=False)
    assert "owner/name" in str(caught.value) and "\n" not in str(caught.value)
    assert utils.are_progress_bars_disabled() == before


def test_interrupt_passes_through(monkeypatch):
    def interrupt(repo, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.snapshot_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_model("owner/name")


def test_local_path_wins(monkeypatch, tmp_path):
    def fail(repo, **options):
        raise AssertionError("asked the hub for a local folder")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "config.json").write_text("{}")
    (tmp_path / "owner" / "name" / "model.safetensors").write_bytes(save({"w": np.ones(1, np.float32)}))
    assert open_model("owner/name").name == "name"
