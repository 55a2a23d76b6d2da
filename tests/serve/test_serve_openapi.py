"""The OpenAPI document, and schemathesis (https://schemathesis.readthedocs.io) driving the server by it."""

from __future__ import annotations

import json
import subprocess
import sys

import requests
from served import running

from mlcrt.serve.settings import Settings

MODEL = "toy"
# Left out: positive_data_acceptance, for what a document can say of a grammar, a JSON schema or a token does not make
# it a usable one; those are refused with 400.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth,missing_required_header"
)


def narrowed(document: dict) -> dict:
    """The document with the one model's name and answers of a few tokens, so that requests get past the first check."""
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "messages" in fields or "prompt" in fields or "input" in fields:
            if "model" in fields:
                fields["model"] = {"const": MODEL}
            for name in ("max_tokens", "max_completion_tokens"):
                if name in fields:
                    fields[name] = {"type": "integer", "minimum": 1, "maximum": 4}
            if "n" in fields:
                fields["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
    return document


def test_the_document_says_what_the_server_does(server):
    document = requests.get(server.url + "/openapi.json", timeout=60).json()
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/v1/embeddings", "/tokenize",
        "/detokenize", "/health", "/metrics",
    }  # fmt: skip
    text = json.dumps(document)
    assert "422" not in text and "HTTPValidationError" not in text and "securitySchemes" not in text
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "404", "408", "413", "415", "429", "500", "503"} <= set(answers)
    assert "text/event-stream" in answers["200"]["content"]


def test_schemathesis(dist, tmp_path):
    with running(dist, Settings((MODEL,), api_keys=("k",), max_tokens=4), slots=4, queue=1000) as server:
        document = narrowed(requests.get(server.url + "/openapi.json", timeout=60).json())
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        command = [
            sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", "openapi.json",
            "--url", server.url, "--checks", CHECKS, "--header", "Authorization: Bearer k", "--max-examples", "4",
            "--phases", "coverage,fuzzing", "--seed", "7", "--generation-database", "none", "--no-color",
            "--request-timeout", "60", "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        stats = server.idle()
    print(done.stdout[-1500:])
    assert stats["tokens_generated"] > 20, "requests got as far as the engine"
