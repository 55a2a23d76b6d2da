"""What `mlcrt serve` may be told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

TOOL_FORMATS = ("auto", "hermes", "llama3", "mistral")


@dataclass(frozen=True)
class Settings:
    """How the server meets its clients; what the engine needs is given to the scheduler.

    names: what the model is called in the API; the first is the one that answers carry.
    api_keys: one of these has to come as a bearer token; none: nothing is asked for.
    cors_origins: web origins that may call this server ("*": any); none: no CORS headers at all.
    allowed_hosts: names in the Host header that are taken besides this machine's own, when only this machine is served.
    max_body: bytes of a request. max_tokens: tokens of an answer at most, also the default; None: the context decides.
    request_timeout: seconds for a request, waiting included. shutdown_timeout: seconds for open answers to finish.
    log_prompts: write prompts and answers to the log. tool_format: one of TOOL_FORMATS.
    """

    names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 4 << 20
    max_tokens: int | None = None
    request_timeout: float = 600.0
    shutdown_timeout: float = 30.0
    log_prompts: bool = False
    tool_format: str = "auto"

    @property
    def local_only(self) -> bool:
        """Whether only programs of this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, is this machine's own."""
    host = host.strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
