"""GET /docs: the OpenAPI document as a page, without scripts and without files from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
code { font: 0.92em ui-monospace, monospace } h2 { border-top: 1px solid #8886; padding-top: 1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td { vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0 }
details { margin: 0.5rem 0 } summary { cursor: pointer } .wide { overflow-x: auto }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"


async def docs_page(request: Request) -> HTMLResponse:
    """Every operation with its fields and answers."""
    document = request.app.openapi()
    body = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>"]
    body.append(_prose(document["info"]["description"]))
    body.append('<p>The same for programs: <a href="/openapi.json"><code>/openapi.json</code></a>.</p>')
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body.append(_operation(document, path, method, operation))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>mlcrt: API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>"
    )
    return HTMLResponse(page, headers={"content-security-policy": _POLICY, "x-content-type-options": "nosniff"})


def _prose(text: str) -> str:
    """Paragraphs and `code` of a description."""
    parts = (re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(part)) for part in text.split("\n\n"))
    return "".join(f"<p>{part}</p>" for part in parts)


def _operation(document: dict, path: str, method: str, operation: dict) -> str:
    out = [f"<h2><code>{method.upper()} {escape(path)}</code></h2>"]
    out.append(_prose(f"{operation.get('summary', '')}.\n\n{operation.get('description', '')}"))
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content:
        out.append("<h3>Body</h3>" + _fields(document, content["schema"]))
    out.append("<h3>Answers</h3>")
    for status, answer in operation["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        line = f"<code>{escape(status)}</code> {escape(answer.get('description', ''))}"
        if schema and status == "200":
            out.append(f"<details><summary>{line}</summary>{_fields(document, schema)}</details>")
        else:
            out.append(f"<p>{line}</p>")
    return "".join(out)


def _fields(document: dict, schema: dict) -> str:
    schema = _resolved(document, schema)
    rows = []
    for name, field in schema.get("properties", {}).items():
        need = " (needed)" if name in schema.get("required", ()) else ""
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(field.get("description", "")))
        kind = escape(_kind(document, field))
        rows.append(f"<tr><td><code>{escape(name)}</code>{need}</td><td>{kind}</td><td>{text}</td></tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _resolved(document: dict, schema: dict) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _kind(document: dict, schema: dict, depth: int = 0) -> str:
    """A type in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        inner = _resolved(document, schema).get("properties", {})
        return f"{name} {{{', '.join(inner)}}}" if inner and depth < 3 else name
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [_kind(document, item, depth + 1) for item in schema[key] if item.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(document, schema.get('items', {}), depth + 1)}"
    limits = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤"), ("exclusiveMinimum", ">"))
              if key in schema]  # fmt: skip
    return " ".join([schema.get("type", "anything"), *limits])
