"""Several code objects in one file, in clang's offload bundle format: HIP picks the one of its GPU.

Layout (LLVM's "Clang Offload Bundler", little-endian): the magic; u64 number of entries; per entry u64 offset, u64
size, u64 length of its identifier, the identifier; then the code objects, each at a multiple of 4096. The first entry
belongs to the host and is empty. https://clang.llvm.org/docs/ClangOffloadBundler.html
"""

from __future__ import annotations

import struct

MAGIC = b"__CLANG_OFFLOAD_BUNDLE__"
_HOST = "host-x86_64-unknown-linux--"
_PREFIX = "hipv4-amdgcn-amd-amdhsa--"
_ALIGN = 4096


def bundle(codes: dict[str, bytes]) -> bytes:
    """{architecture: ELF code object} → the bundle that hipModuleLoadData takes."""
    entries = [(_HOST, b""), *((_PREFIX + arch, code) for arch, code in codes.items())]
    header = len(MAGIC) + 8 + sum(24 + len(name) for name, _ in entries)
    table, at, body = [], _up(header), b""
    for name, code in entries:
        table.append(struct.pack("<QQQ", at, len(code), len(name)) + name.encode())
        body += code.ljust(_up(len(code)), b"\0")
        at += _up(len(code))
    head = MAGIC + struct.pack("<Q", len(entries)) + b"".join(table)
    return head.ljust(_up(header), b"\0") + body


def unbundle(data: bytes) -> dict[str, bytes]:
    """{architecture: code object} of a bundle's GPU entries. ValueError if it is none."""
    if not data.startswith(MAGIC):
        raise ValueError("not an offload bundle")
    at, found = len(MAGIC) + 8, {}
    for _ in range(struct.unpack_from("<Q", data, len(MAGIC))[0]):
        start, size, length = struct.unpack_from("<QQQ", data, at)
        name = data[at + 24 : at + 24 + length].decode()
        at += 24 + length
        if start + size > len(data):
            raise ValueError(f"entry '{name}' of the offload bundle lies outside it")
        if not name.startswith("host-"):
            found[name.rpartition("--")[2]] = data[start : start + size]
    return found


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
