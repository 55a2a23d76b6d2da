"""Errors in OpenAI's shape, and nothing in them or in the log that a client wrote."""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
import time

import openai
import pytest
import requests
from served import running

from mlcrt.serve.protocol import HttpProtocol
from mlcrt.serve.settings import Settings

MODEL = "toy"
SECRET = "the-secret-of-the-prompt"
HI = [{"role": "user", "content": SECRET}]
WAIT = 60  # seconds: far more than anything here takes


def post(server, path="/v1/chat/completions", **more):
    return requests.post(server.url + path, timeout=WAIT, **more)


def shape(answer, status, code, param=None):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(answer.json()) == 1
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"].endswith(".") and SECRET not in answer.text and "/work" not in answer.text
    assert "Traceback" not in answer.text and answer.headers["x-request-id"]
    return error


def log_of(caplog):
    """The server's log at its usual level. Begun before the server and left after it: by then all of it is written."""
    return caplog.at_level(logging.INFO, "mlcrt.serve")


def body(**more):
    return {"model": MODEL, "messages": HI, "max_tokens": 3, **more}


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "wizard", "content": SECRET}]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]},
         "messages[0].content", "invalid_type"),
        ({"messages": [*HI, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id",
         "missing_required_parameter"),
        ({"model": 7}, "model", "invalid_type"),
        ({"temperature": "0.5"}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 2.5}, "max_completion_tokens", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["x"] * 40}, "stop", "invalid_type"),
        ({"stop": {"str": 1}}, "stop", "invalid_type"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 500}}, "logit_bias.5", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0].function.name",
         "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "invalid_value"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(server, more, param, code):
    shape(post(server, json=body(**more)), 400, code, param)


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"prompt": []}, "prompt", None),
        ({"prompt": ""}, "prompt", None),
        ({"prompt": [[1, 2], "x"]}, "prompt", None),
        ({"prompt": [99999999]}, "prompt", "invalid_value"),
        ({"best_of": 4}, "best_of", "unsupported_parameter"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
    ],
)
def test_completions_refuse(server, more, param, code):
    answer = post(server, "/v1/completions", json={"model": MODEL, "prompt": "x", **more})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"].startswith(param) and code in (None, error["code"])


def test_bodies_that_are_no_json(server):
    head = {"content-type": "application/json"}
    shape(post(server, data=b"{", headers=head), 400, "invalid_json")
    shape(post(server, data=b"[1]", headers=head), 400, "invalid_type")
    shape(post(server, data=b"", headers=head), 400, "missing_required_parameter")
    shape(post(server, data=b"\xff\xfe", headers=head), 400, "invalid_json")
    shape(post(server, data=b"[" * 100_000, headers=head), 400, "invalid_json")
    shape(post(server, data=b'{"model": ' + b"9" * 5000 + b"}", headers=head), 400, "invalid_json")
    shape(post(server, data=b'{"a":1}', headers={"content-type": "text/plain"}), 415, "unsupported_media_type")
    shape(post(server, files={"file": b"x"}), 415, "unsupported_media_type")
    raw = '{"model":"toy","messages":[{"role":"user","content":"x"}],"max_tokens":3,"temperature":NaN}'
    shape(post(server, data=raw, headers=head), 400, "invalid_value", "temperature")


def test_urls_and_methods(server):
    shape(post(server, "/v1/nothing", json={}), 404, "unknown_url")
    shape(requests.get(server.url + "/v1/chat/completions", timeout=WAIT), 405, "method_not_allowed")
    shape(requests.get(server.url + f"/v1/models/{SECRET}", timeout=WAIT), 404, "model_not_found", "model")
    shape(post(server, json=body(model=SECRET)), 404, "model_not_found", "model")


def test_a_body_that_is_too_large(dist):
    with running(dist, Settings((MODEL,), max_body=10_000)) as server:
        big = body(messages=[{"role": "user", "content": "x" * 20_000}])
        shape(post(server, json=big), 413, "request_too_large")
        chunks = (b"x" * 1000 for _ in range(30))  # without a Content-Length
        shape(post(server, data=chunks, headers={"content-type": "application/json"}), 413, "request_too_large")
        with pytest.raises(openai.APIStatusError) as caught:
            server.client().chat.completions.create(**big)
        assert caught.value.status_code == 413
        assert post(server, json=body()).status_code == 200


def test_a_limit_on_tokens(dist):
    with running(dist, Settings((MODEL,), max_tokens=5)) as server:
        shape(post(server, json=body(max_tokens=6)), 400, "invalid_value", "max_tokens")
        asked = body()
        del asked["max_tokens"]
        assert post(server, json=asked).json()["usage"]["completion_tokens"] == 5


def test_keys(dist):
    with running(dist, Settings((MODEL,), api_keys=("sk-one", "sk-zwei-ü"))) as server:
        for key in ("sk-one", "sk-zwei-ü".encode().decode("latin-1")):
            answer = post(server, json=body(), headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client(api_key="sk-on").models.list()
        assert caught.value.code == "invalid_api_key"
        for header in (
            {},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic sk-one"},
            {"Authorization": "Bearer sk-onee"},
        ):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                answer = requests.get(server.url + path, headers=header, timeout=WAIT)
                shape(answer, 401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer" and "sk-" not in answer.text
            shape(post(server, "/tokenize", json={"text": "x"}, headers=header), 401, "invalid_api_key")
        for path in ("/health", "/", "/docs", "/openapi.json"):
            assert requests.get(server.url + path, timeout=WAIT).status_code == 200
        document = requests.get(server.url + "/openapi.json", timeout=WAIT).json()
        assert (
            document["paths"]["/v1/models"]["get"]["security"]
            and "401" in document["paths"]["/metrics"]["get"]["responses"]
        )


def test_a_full_queue(dist):
    with running(dist, slots=1, queue=1, step_s=0.02) as server:
        client = server.client()
        streams = [client.chat.completions.create(**body(max_tokens=1900), stream=True) for _ in range(2)]  # 38 s
        answer = post(server, json=body())
        shape(answer, 429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == str(math.ceil(1.5))
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**body())
        shape(post(server, json=body(n=3, stream=True)), 429, "rate_limit_exceeded")
        for stream in streams:
            stream.close()
        server.idle()
        assert post(server, json=body()).status_code == 200


def test_a_request_that_takes_too_long(dist):
    with running(dist, Settings((MODEL,), request_timeout=0.3), step_s=0.02) as server:
        shape(post(server, json=body(max_tokens=2000)), 408, "request_timeout")
        with pytest.raises(openai.APIError) as caught:
            for _ in server.client().chat.completions.create(**body(max_tokens=2000), stream=True):
                pass
        assert caught.value.code == "request_timeout"
        server.idle()


def test_an_engine_that_fails(dist, caplog):
    with log_of(caplog), running(dist, fail_after=2) as server:
        shape(post(server, json=body(max_tokens=9)), 500, "internal_error")
        with pytest.raises(openai.APIError) as caught:
            list(server.client().chat.completions.create(**body(max_tokens=9), stream=True))
        assert caught.value.code == "internal_error" and "toy broke" not in str(caught.value)
    assert "the toy broke" in caplog.text and SECRET not in caplog.text


def test_an_engine_that_has_ended(dist):
    with running(dist) as server:
        assert requests.get(server.url + "/health", timeout=WAIT).json() == {"status": "ok"}
        server.scheduler.close()
        shape(post(server, json=body()), 503, "engine_failed")
        shape(post(server, "/v1/embeddings", json={"model": MODEL, "input": "x"}), 503, "engine_failed")
        health = requests.get(server.url + "/health", timeout=WAIT)
        assert health.status_code == 503 and health.json() == {"status": "failed"}


def test_a_bug_is_a_500_whose_log_says_where_but_not_what(dist, caplog, monkeypatch):
    with log_of(caplog), running(dist) as server:
        monkeypatch.setattr(server.service.prompts, "render", lambda *a, **kw: int(SECRET))
        error = shape(post(server, json=body()), 500, "internal_error")
        assert "ValueError" not in error["message"]
    assert "ValueError" in caplog.text and "service.py" in caplog.text and SECRET not in caplog.text


def test_the_log_has_ids_and_figures_but_no_prompts(dist, caplog):
    with log_of(caplog), running(dist) as server:
        answer = post(server, json=body(), headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        odd = post(server, json=body(), headers={"x-request-id": "a b\tc" + "d" * 300})
        assert re.fullmatch(r"req_[0-9a-f]{32}", odd.headers["x-request-id"])
        requests.get(server.url + f"/{SECRET}?{SECRET}", timeout=WAIT)
    assert re.search(r"mine-1 POST /v1/chat/completions 200 \d+ms .*completion=3", caplog.text)
    assert SECRET not in caplog.text and "GET - 404" in caplog.text


def test_prompts_are_logged_when_asked_for(dist, caplog):
    with log_of(caplog), running(dist, Settings((MODEL,), log_prompts=True)) as server:
        text = post(server, json=body()).json()["choices"][0]["message"]["content"]
    assert SECRET in caplog.text and text in caplog.text


def test_a_template_that_refuses_says_why(tmp_path):
    from toy_dist import make_dist

    with running(make_dist(tmp_path, template="mistral")) as server:
        answer = post(server, json=body(messages=[*HI, *HI]))
        error = shape(answer, 400, "invalid_value", "messages")
        assert "Roles have to alternate" in error["message"]


def test_no_cors_unless_asked_for(dist):
    origin = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with running(dist) as server:
        answer = requests.options(server.url + "/v1/chat/completions", headers=origin, timeout=WAIT)
        assert answer.status_code == 405
        answer = post(server, json=body(), headers=origin)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    settings = Settings((MODEL,), cors_origins=("https://page.example",), api_keys=("k",))
    with running(dist, settings) as server:
        answer = requests.options(server.url + "/v1/chat/completions", headers=origin, timeout=WAIT)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"
        answer = post(server, json=body(), headers=origin)
        assert answer.status_code == 401 and answer.headers["access-control-allow-origin"] == "https://page.example"
        other = {**origin, "Origin": "https://other.example"}
        answer = requests.options(server.url + "/v1/chat/completions", headers=other, timeout=WAIT)
        assert "access-control-allow-origin" not in answer.headers


def test_a_foreign_name_for_this_machine_is_refused(dist):
    """DNS rebinding: a page's own host name, pointed at 127.0.0.1."""
    with running(dist, Settings((MODEL,), allowed_hosts=("proxy.example",))) as server:

        def status(host):
            return requests.get(server.url + "/v1/models", headers={"Host": host}, timeout=WAIT).status_code

        assert [status(h) for h in ("evil.example", "127.0.0.1.evil.example:80", "")] == [403] * 3
        assert [status(h) for h in ("localhost:1", "127.0.0.1", "[::1]:99", "proxy.example")] == [200] * 4


def send_raw(server, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
    connection.sendall(data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(dist, stream):
    import json

    with running(dist, slots=1, step_s=0.05) as server:  # 1900 tokens take 95 s
        data = json.dumps(body(max_tokens=1900, stream=stream)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        connection = send_raw(server, head.encode() + data)
        while not server.scheduler.stats()["tokens_generated"]:
            time.sleep(0.005)
        steps = server.scheduler.stats()["steps"]
        connection.close()
        stats = server.idle()
        assert stats["finished"]["cancelled"] == 1 and stats["steps"] - steps < 100
        assert post(server, json=body()).status_code == 200


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe rubbish", b"rubbish without an end of line", bytes(range(255, 55, -1)), b"G\x00T / HTTP/1.1\r\n"],
)
def test_bytes_that_are_no_http_are_answered_at_once(server, data):
    with send_raw(server, data) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("first", [b"", b"POST /v1/chat/comp", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow"])
def test_headers_that_do_not_end(server, monkeypatch, first):
    monkeypatch.setattr(HttpProtocol, "header_seconds", 0.3)
    with send_raw(server, first) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ") and connection.recv(4096) == b""


def test_a_connection_may_be_kept_for_longer_than_headers_may_take(server, monkeypatch):
    monkeypatch.setattr(HttpProtocol, "header_seconds", 1.0)
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"  # what a Session sends goes over another one if need be
    with send_raw(server, ask) as connection, connection.makefile("rb") as answers:
        for pause in (1.2, 0):
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.lower().split(b": ") for line in iter(answers.readline, b"\r\n"))
            assert answers.read(int(headers[b"content-length"])) == b'{"status":"ok"}'
            time.sleep(pause)
            connection.sendall(ask)


def test_half_a_request_and_then_nothing(dist):
    with running(dist) as server:
        for data in (
            b"",
            b"POST /v1/chat",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b'application/json\r\nContent-Length: 999\r\n\r\n{"model"',
        ):
            send_raw(server, data).close()
        assert post(server, json=body()).status_code == 200
        assert server.idle()["finished"]["cancelled"] == 0


def test_a_client_that_waits_in_the_queue_and_leaves(dist):
    with running(dist, slots=1, queue=4, step_s=0.01) as server:
        client = server.client()
        first = client.chat.completions.create(**body(max_tokens=1900), stream=True)  # 19 s
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.3).chat.completions.create(**body(max_tokens=1900))
        end = time.monotonic() + 15
        while server.scheduler.stats()["queued"] and time.monotonic() < end:
            time.sleep(0.01)
        assert server.scheduler.stats()["queued"] == 0 and server.scheduler.stats()["running"] == 1
        first.close()
        server.idle()


def test_many_clients_that_come_and_go_leave_no_threads(dist):
    with running(dist, slots=4, queue=100, step_s=0.001) as server:
        post(server, json=body())
        before = threading.active_count()
        for _ in range(12):
            stream = server.client().chat.completions.create(**body(max_tokens=500), stream=True)
            next(iter(stream))
            stream.close()
        server.idle()
        assert threading.active_count() <= before + 40, "starlette's pool has 40 threads at most"


def test_health_docs_metrics_and_page(server):
    assert requests.get(server.url + "/health", timeout=WAIT).json() == {"status": "ok"}
    post(server, json=body())
    text = requests.get(server.url + "/metrics", timeout=WAIT).text
    from prometheus_client.parser import text_string_to_metric_families

    found = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    assert found["mlcrt_tokens_generated_total"].value >= 3 and found["mlcrt_slots"].value == 4
    assert found["mlcrt_time_to_first_token_seconds_count"].value >= 1
    assert 'path="/v1/chat/completions",status="200"' in text and "mlcrt_process_resident_memory_bytes" in text
    docs = requests.get(server.url + "/docs", timeout=WAIT)
    assert "/v1/chat/completions" in docs.text and "<script" not in docs.text
    assert "http" not in re.sub(r'href="/openapi.json"|<[^>]*charset[^>]*>', "", docs.text).replace("https://", "http")
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    assert "<title>mlcrt" in requests.get(server.url + "/", timeout=WAIT).text


def test_a_server_that_is_closing(dist):
    with running(dist, step_s=0.01) as server:
        session = requests.Session()
        stream = server.client().chat.completions.create(**body(max_tokens=20), stream=True)
        next(iter(stream))
        server.service.closing = True
        answer = session.post(server.url + "/v1/chat/completions", json=body(), timeout=WAIT)
        shape(answer, 503, "service_unavailable")
        assert answer.headers["retry-after"]
        health = session.get(server.url + "/health", timeout=WAIT)
        assert health.status_code == 503 and health.json() == {"status": "shutting down"}
        assert list(stream)[-1].choices[0].finish_reason == "length"
