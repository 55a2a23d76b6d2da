"""ARM64 libraries run, under qemu-user, and compute what the x86-64 ones do; their inner loops stay in registers."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import pytest
import tiny
import tvm

from mlcrt.compile import compile_model
from mlcrt.kernels.records import Linear
from mlcrt.kernels.simd.linear import linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.cpu import attributes
from mlcrt.targets.cpu.tiles import tiles

PROMPT = np.random.default_rng(3).integers(3, 259, 150).tolist()  # longer than a chunk
MORE = (
    ("gemma2_softcap", "q0f32"), ("llama3_gqa7", "q8f16_1"), ("gemma3_alternating", "q4f32_1"),
    ("mistral_window", "q3f16_1"), ("mixtral", "q4f16_0"), ("qwen2_yarn", "q0f16"),
)  # fmt: skip

RUN = """
import json, platform, sys
from mlcrt.errors import MlcrtError
from mlcrt.info import describe
from mlcrt.runtime.engine import Engine
prompt, runs = json.loads(sys.argv[1]), {}
for folder in sys.argv[2:]:
    engine = Engine(folder, "auto", context=200)
    logits, tokens = [], []
    for start, length in ((0, 150), (30, 20), (60, 7), (90, 3)):
        engine.rollback(0)
        logits.append(engine.prefill(prompt[start : start + length]).tolist())
        tokens.append(engine.greedy_token)
        for _ in range(4):
            logits.append(engine.decode(tokens[-1]).tolist())
            tokens.append(engine.greedy_token)
    engine.rollback(0)
    scored = engine.score(prompt[:20]).tolist()
    runs[folder] = {"arch": engine._entry["arch"], "tokens": tokens, "logits": logits, "scored": scored}
refused = []
for device in ("cpu:x86-64-v3-windows", "cpu:aarch64-macos"):
    try:
        Engine(sys.argv[2], device)
    except MlcrtError as error:
        refused.append(str(error))
usable = [e["slot"] for e in describe(sys.argv[2])["libraries"] if e["runs_here"]]
print(json.dumps({"machine": platform.machine(), "runs": runs, "refused": refused, "usable": usable}))
"""


@pytest.fixture(scope="module")
def folders(everywhere, tmp_path_factory) -> list[str]:
    """Dist folders for both machines; with MLCRT_CROSS_ALL=1 one of every family and scheme that matters (minutes)."""
    made = [str(everywhere)]
    if os.environ.get("MLCRT_CROSS_ALL"):
        root = tmp_path_factory.mktemp("families")
        for case, quantization in MORE:
            model = tiny.make_tiny(case, root / case)
            both = "cpu,cpu:aarch64-linux"
            made.append(str(compile_model(model, quantization, both, dist_root=root / "dist", slots=0)))
    return made


def test_the_same_tokens_as_here(arm64, folders, capsys):
    """One engine, one folder: this machine takes its library and the emulated one its own."""
    done = arm64.run(RUN, json.dumps(PROMPT), *folders)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there["machine"] == "aarch64" and there["usable"] == ["cpu:aarch64-linux"]
    windows, macos = there["refused"]
    assert "lib.dll is for x86-64 Windows and this machine is ARM64 Linux; compile it here with" in windows
    assert "lib.dylib is for ARM64 macOS and this machine is ARM64 Linux; compile it here with" in macos
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", json.dumps(PROMPT), *folders])
        exec(RUN, {})
    here = json.loads(capsys.readouterr().out)
    assert here["machine"] == "x86_64" and here["usable"] == ["cpu"]
    for folder in folders:
        ours, theirs = here["runs"][folder], there["runs"][folder]
        assert ours["arch"].startswith(("x86-64", "native")) and theirs["arch"] == "aarch64-linux"
        assert theirs["tokens"] == ours["tokens"] and len(set(ours["tokens"])) > 3
        for part in ("logits", "scored"):
            got, expected = np.array(theirs[part]), np.array(ours[part])
            error = np.abs(got - expected).max() / expected.std()
            most = 5e-5 if folder.endswith("q0f32") else 5e-3
            assert error <= most, f"{folder}: {part} are off by {error:.1e} of their standard deviation"


@pytest.mark.parametrize("tokens", [1, None], ids=["decode", "prefill"])
@pytest.mark.parametrize("scheme", ["q4f16_1", "q8f16_1", "q0f16"])
def test_inner_loops_keep_their_sums_in_registers(scheme, tokens):
    """In the loop with most multiply-adds no vector goes to the stack: the tile numbers fit NEON's 32 registers."""
    arch = attributes("aarch64-linux")
    function = linear(Linear(SCHEMES[scheme].row_major(), 256, 512, tokens), tiles(arch).linear)
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    text = tvm.compile(module, target=tvm.target.Target(arch.tvm_target())).mod.inspect_source("asm")
    body = max(loops(text), key=lambda lines: multiply_adds(lines) / len(lines))
    assert multiply_adds(body) >= 4
    vectors = [line for line in body if re.match(r"(str|stp|ldr|ldp|stur|ldur)\s+q\d+.*\[sp", line)]
    assert vectors == []


def multiply_adds(lines: list[str]) -> int:
    return sum(line.startswith("fmla") for line in lines)


def loops(text: str) -> list[list[str]]:
    """The instructions between a label and a jump back to it, for all of them without other labels between."""
    lines = [line.split("//")[0].strip() for line in text.splitlines()]
    found, label, body = [], None, []
    for line in lines:
        if re.match(r"\.L\w+:", line):
            label, body = line.rstrip(":"), []
        elif line and not line.startswith("."):
            body.append(line)
            if re.match(r"(b\.\w+|cbn?z|tbn?z)\b", line) and line.endswith(str(label)):
                found.append(body)
    return found
