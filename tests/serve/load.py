"""A load test of `mlcrt serve`: clients that stream, leave, die and send rubbish.

    python tests/serve/load.py --clients 32 --seconds 120

starts `mlcrt serve` on SmolLM2-135M-Instruct (the demo's GGUF, compiled first if needed; `--model` takes another) and
measures one client alone, eight at once, then `--clients` of which some misbehave: a stream left half way, a connection
reset, a process killed with SIGKILL, an answer not waited for, bodies that are broken, cut off or too large. It
prints what it saw and exits with 1 if anything went wrong that was not the client's doing: a 5xx, a stream without an
end, a valid request refused (429 aside), a malformed one accepted, a slot or KV tokens still taken when all have left,
memory that grew by more than --growth MB, or a server that does not stop with code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import psutil

SYSTEM = "You are a helpful assistant. Answer in plain words, and tell what you know about the subject in some detail."
ASKED = ("rivers", "the sea", "old bridges", "bread", "stars", "clocks", "trains", "gardens", "maps", "winter")
# what clients do, and how often
MANNERS = {"stream": 62, "whole": 8, "leave": 10, "reset": 5, "kill": 3, "impatient": 4, "malformed": 8}
KILLED = """
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.sendall(sys.stdin.buffer.read())
while s.recv(4096): pass
"""


@dataclass
class Seen:
    """What the clients of one phase saw. Times in seconds."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # between two tokens of a stream
    first: list[float] = field(default_factory=list)  # from the request to the first token
    tokens: int = 0
    seconds: float = 0.0

    def figures(self) -> dict:
        def part(values: list[float], share: float) -> float | None:
            return round(1e3 * sorted(values)[int(share * (len(values) - 1))], 1) if values else None

        return {
            "tokens_per_s": round(self.tokens / self.seconds, 1),
            "ms_per_token_p50": part(self.gaps, 0.5),
            "ms_per_token_p95": part(self.gaps, 0.95),
            "ms_to_first_token_p50": part(self.first, 0.5),
            "ms_to_first_token_p95": part(self.first, 0.95),
            "requests": dict(self.counts),
        }


class Client:
    """One connection per request, spoken to by hand so that the clients cost little beside the server."""

    def __init__(self, port: int, seen: Seen, rng: random.Random, tokens: int, temperature: float = 0.7):
        self.port, self.seen, self.rng = port, seen, rng
        self.tokens, self.temperature = tokens, temperature

    def body(self, **more) -> dict:
        question = f"Tell me about {self.rng.choice(ASKED)}, part {self.rng.randrange(1000)}."
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        limit = self.rng.randint(max(1, self.tokens // 4), self.tokens)
        return {
            "model": "load",
            "messages": messages,
            "max_tokens": limit,
            "temperature": self.temperature,
            "ignore_eos": True,
            **more,
        }

    def bytes(self, data: bytes, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(data) if length is None else length}\r\n\r\n".encode() + data

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def status(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        line = await reader.readline()
        headers = {}
        while (header := (await reader.readline()).decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]) if line else 0, headers

    async def once(self, manner: str) -> None:
        self.seen.counts[manner] += 1
        try:
            await asyncio.wait_for(getattr(self, manner)(), 300)
        except Exception as error:
            self.seen.problems.append(f"{manner}: {type(error).__name__}: {error}")

    async def stream(self, until: int | None = None, reset: bool = False) -> None:
        body = self.body(stream=True, stream_options={"include_usage": True})
        async with self.connection() as (reader, writer):
            sent = last = time.perf_counter()
            writer.write(self.bytes(json.dumps(body).encode()))
            if not await self.accepted(reader):
                return
            got, ended = 0, False
            async for line in reader:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    ended = True
                    break
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    self.seen.problems.append(f"stream: {chunk['error']['message']}")
                    return
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    now = time.perf_counter()
                    (self.seen.gaps if got else self.seen.first).append(now - (last if got else sent))
                    got, last = got + 1, now
                    self.seen.tokens += 1
                if until is not None and got >= until:
                    if reset:
                        raw = writer.get_extra_info("socket")
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
            if not ended:
                self.seen.problems.append("stream: it broke off")

    async def accepted(self, reader: asyncio.StreamReader) -> bool:
        status, headers = await self.status(reader)
        if status == 429:
            self.seen.counts["told to wait"] += 1
            await asyncio.sleep(min(5.0, float(headers["retry-after"])) * self.rng.random())
        elif status != 200:
            self.seen.problems.append(f"status {status} for a valid request: {(await reader.read())[-200:]!r}")
        return status == 200

    async def whole(self) -> None:
        async with self.connection() as (reader, writer):
            writer.write(self.bytes(json.dumps(self.body()).encode()))
            if await self.accepted(reader):
                self.seen.tokens += json.loads(await reader.read())["usage"]["completion_tokens"]

    async def leave(self) -> None:
        await self.stream(until=self.rng.randint(1, 8))

    async def reset(self) -> None:
        await self.stream(until=self.rng.randint(1, 8), reset=True)

    async def impatient(self) -> None:
        async with self.connection() as (_, writer):
            writer.write(self.bytes(json.dumps(self.body()).encode()))
            await writer.drain()
            await asyncio.sleep(self.rng.random())

    async def kill(self) -> None:
        command = [sys.executable, "-S", "-E", "-c", KILLED, str(self.port)]
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        process.stdin.write(self.bytes(json.dumps(self.body(stream=True)).encode()))
        process.stdin.close()
        await asyncio.sleep(0.2 + 2 * self.rng.random())
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def long(self, words: int) -> None:
        """A prompt of `words` that begins like no other, and one token."""
        text = " ".join(str(self.rng.randrange(10)) for _ in range(words))
        body = self.body(messages=[{"role": "user", "content": text}], max_tokens=1)
        async with self.connection() as (reader, writer):
            writer.write(self.bytes(json.dumps(body).encode()))
            if await self.accepted(reader):
                await reader.read()

    async def malformed(self) -> None:
        good = json.dumps(self.body()).encode()
        rubbish = bytes(self.rng.randrange(256) for _ in range(200))
        kind = self.rng.randrange(7)
        data = [
            self.bytes(good[: len(good) // 2]),
            self.bytes(json.dumps(self.body(temperature="hot")).encode()),
            self.bytes(json.dumps(self.body(messages=[{"role": "user", "content": "\ud800"}])).encode()),
            self.bytes(b"[" * 50_000),
            self.bytes(rubbish),
            self.bytes(good, length=5 << 20),  # too large, and then it does not come
            rubbish,
        ][kind]
        async with self.connection() as (reader, writer):
            writer.write(data)
            if kind == 5:
                await asyncio.sleep(0.1)
                return
            status, _ = await self.status(reader)
            if not 400 <= status < 500:
                self.seen.problems.append(f"malformed ({kind}): status {status}")


async def crowd(port: int, clients: int, seconds: float, manners: dict[str, int], options: argparse.Namespace) -> Seen:
    """`clients` at once for `seconds`; those that are under way then may finish."""
    seen, end = Seen(), time.monotonic() + seconds
    started = time.perf_counter()

    async def one(number: int) -> None:
        rng = random.Random(f"{options.seed} {number}")
        client = Client(port, seen, rng, options.tokens, options.temperature)
        while time.monotonic() < end:
            await client.once(rng.choices(list(manners), list(manners.values()))[0])

    await asyncio.gather(*map(one, range(clients)))
    seen.seconds = time.perf_counter() - started
    return seen


async def fill(port: int, options: argparse.Namespace) -> None:
    """Let every block of the KV cache be used once: its memory is taken when it is first written, and is no leak."""
    client = Client(port, Seen(), random.Random("fill"), 1)
    for _ in range(4 * options.slots):
        found = await metrics(port)
        if found["kv_cached_tokens"] > 0.9 * found["kv_capacity_tokens"]:
            return
        await client.long(options.context // 3)


async def metrics(port: int) -> dict[str, float]:
    """The scheduler's figures."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(value) for name, value in re.findall(r"^mlcrt_(\w+) ([0-9.e+-]+)$", text, re.M)}


async def idle(port: int, seconds: float = 60) -> dict[str, float]:
    """Figures once nothing runs, or the last ones."""
    end = time.monotonic() + seconds
    while True:
        found = await metrics(port)
        if (not found["running"] and not found["queued"]) or time.monotonic() > end:
            return found
        await asyncio.sleep(0.2)


async def memory(process: psutil.Process, seen: list[float], every: float) -> None:
    while True:
        seen.append(process.memory_info().rss / 1e6)
        await asyncio.sleep(every)


async def measure(port: int, pid: int, options: argparse.Namespace) -> dict:
    """All phases against a server that runs. The result's "problems" should be empty."""
    report: dict = {}
    problems = []
    await fill(port, options)
    phases = ("alone", 1, options.alone), ("eight", 8, options.alone), ("all", options.clients, options.seconds)
    for name, clients, seconds in phases:
        manners = MANNERS if name == "all" else {"stream": 1}
        rss: list[float] = []
        sampler = asyncio.ensure_future(memory(psutil.Process(pid), rss, max(0.1, options.seconds / 240)))
        seen = await crowd(port, clients, seconds, manners, options)
        sampler.cancel()
        report[name] = {"clients": clients, **seen.figures()}
        problems += [f"{name}: {problem}" for problem in seen.problems]
    after = await idle(port)
    for name in ("running", "queued", "kv_tokens"):
        if after[name]:
            problems.append(f"{after[name]:g} {name} when all clients have left")
    settled = rss[len(rss) // 4 :]
    early, late = settled[: len(settled) // 4 or 1], settled[-(len(settled) // 4 or 1) :]
    growth = sum(late) / len(late) - sum(early) / len(early)
    if growth > options.growth:
        problems.append(f"memory grew by {growth:.0f} MB")
    kept = ("tokens_generated_total", "prefix_hit_tokens_total", "kv_cached_tokens", "kv_capacity_tokens", "slots")
    report["server"] = {name.removesuffix("_total"): after.get(name) for name in kept}
    course = [round(mb) for mb in rss[:: max(1, len(rss) // 12)]]
    report["server"] |= {"rss_mb": course, "rss_growth_mb": round(growth, 1)}
    report["eight_against_one"] = round(report["eight"]["tokens_per_s"] / report["alone"]["tokens_per_s"], 2)
    report["problems"] = problems
    return report


@contextlib.contextmanager
def server(command: list[str], log: str | None):
    """A server process: (process, port). Its log goes to the file `log`, or nowhere."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if found := re.search(r"at http://\S+:(\d+)/v1", line):
                break
        else:
            raise SystemExit("The server did not start.")
        drain = subprocess.Popen(
            ["cat"],
            stdin=process.stderr,
            stdout=open(log, "w") if log else subprocess.DEVNULL,  # noqa: SIM115
        )
        yield process, int(found[1])
        drain.wait(60)
    finally:
        process.kill()
        process.wait()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the demo's SmolLM2-135M-Instruct")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--alone", type=float, default=20, help="seconds of the phases with one client and with eight")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--growth", type=float, default=64, help="MB of memory that may be added")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", help="file for the server's log")
    return parser.parse_args(argv)


def run(options: argparse.Namespace, program: list[str]) -> dict:
    """The whole test with `program` as the `mlcrt` command."""
    command = [*program, "serve", options.model, "--port", "0", "--model-name", "load", "--slots", str(options.slots)]
    with server([*command, "--context", str(options.context)], options.log) as (process, port):
        report = asyncio.run(measure(port, process.pid, options))
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            code = "no end"
        if code != 0:
            report["problems"].append(f"the server ended with {code}")
    return report


def main() -> int:
    options = arguments()
    if options.model is None:
        from mlcrt.demo import demo_model

        options.model = str(demo_model())
    report = run(options, [sys.executable, "-m", "mlcrt.cli"])
    print(json.dumps(report, indent=1))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
