"""Compiled models run where TVM's compiler library does not exist and torch and transformers do not import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import refusing

TOKENS = np.random.default_rng(7).integers(0, 503, 160).tolist()
_UNUSED = ("include", "src", "web", "3rdparty", "cmake", "licenses", "lib64", "__pycache__")

_RUN = """
import json, sys
if sys.argv[3] == "ask":
    from mlcrt.commands import options
    options.own()
    options.runtime_only()
from mlcrt.runtime.engine import Engine
engine, tokens = Engine(sys.argv[1], "auto", context=200), json.loads(sys.argv[2])
engine.prefill(tokens[:150])
greedy = [engine.greedy_token]
for _ in range(20):
    engine.decode(greedy[-1])
    greedy.append(engine.greedy_token)
engine.rollback(0)
scored = engine.score(tokens[:100])
maps = open("/proc/self/maps").read()
import tvm
print(json.dumps({
    "greedy": greedy, "sum": float(scored.sum()), "tvm": tvm.__file__, "compiler": "libtvm_compiler" in maps,
    "foreign": [name for name in ("torch", "transformers") if sys.modules.get(name)],
}))
"""


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH whose tvm lacks the compiler, and whose torch and transformers cannot be imported."""
    folder = tmp_path_factory.mktemp("runtime-only")
    shutil.copytree(
        Path(find_spec("tvm").origin).parent,
        folder / "tvm",
        ignore=shutil.ignore_patterns("libtvm_compiler*", *_UNUSED),
        copy_function=_link_or_copy,
    )
    for name in ("torch", "transformers"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} is not there')\n")
    return folder


def _link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def environment(overlay: Path | None) -> dict[str, str]:
    """This process's, without a choice of TVM library, and with the overlay in front."""
    env = {k: v for k, v in os.environ.items() if k not in ("TVM_USE_RUNTIME_LIB", "TVM_LIBRARY_PATH", "PYTHONPATH")}
    return env if overlay is None else {**env, "PYTHONPATH": str(overlay)}


def run(dist: Path, overlay: Path | None, ask: bool) -> dict:
    command = [sys.executable, "-c", _RUN, str(dist), json.dumps(TOKENS), "ask" if ask else "plain"]
    done = subprocess.run(command, env=environment(overlay), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case, quantization", [("qwen3_norms", "q0f32"), ("llama3_gqa7", "q4f16_1")])
def test_the_same_tokens_with_and_without_the_compiler(compiled, without_compiler, case, quantization):
    dist = compiled(case, quantization)
    whole = run(dist, None, ask=False)
    assert whole["compiler"], "this wheel has no compiler: the test would compare nothing"
    assert len(whole["greedy"]) == 21
    for overlay, ask in ((without_compiler, False), (without_compiler, True), (None, True)):
        result = run(dist, overlay, ask)
        assert not result["compiler"] and not result["foreign"]
        assert Path(result["tvm"]).is_relative_to(without_compiler) == (overlay is not None)
        assert (result["greedy"], result["sum"]) == (whole["greedy"], whole["sum"])


def test_loading_and_running_compiles_nothing(compiled):
    """With the compiler at hand, and whatever compiles made to raise."""
    done = refusing.use(compiled("qwen3_norms", "q0f32"), "cpu")
    assert done.returncode == 0 and done.stdout.startswith("compiled nothing"), done.stderr[-3000:]


def test_the_overlay_cannot_compile(without_compiler):
    """So what runs there really runs without the compiler."""
    code = "from tvm import relax; relax.BlockBuilder()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(without_compiler), capture_output=True)
    assert done.returncode == 1


def test_the_command_line_answers_without_the_compiler(compiled, without_compiler):
    command = [sys.executable, "-m", "mlcrt.cli", "chat", str(compiled("qwen3_norms", "q0f32"))]
    command += ["--prompt", "abc", "--max-tokens", "12", "--temperature", "0", "--json"]
    answers = []
    for overlay in (None, without_compiler):
        done = subprocess.run(command, env=environment(overlay), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["last"]["completion_tokens"] == answers[1]["last"]["completion_tokens"] == 12


def test_other_verbs_run_without_the_compiler(compiled, without_compiler, tmp_path):
    dist = str(compiled("qwen3_norms", "q0f32"))
    (tmp_path / "text").write_text("A short text is enough here. " * 5)
    for arguments in (
        ["devices", "--json"],
        ["eval", dist, "--perplexity", str(tmp_path / "text"), "--window", "64", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mlcrt.cli", *arguments],
            env=environment(without_compiler), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_compiling_there_fails_in_one_line(compiled, without_compiler, tmp_path):
    source = next(Path(compiled("qwen3_norms", "q0f32")).parents[1].glob("models0/qwen3_norms"))
    command = [sys.executable, "-m", "mlcrt.cli", "compile", str(source), "--target", "cpu"]
    command += ["--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(without_compiler), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mlcrt: ") and "compiler" in last and "internal error" not in last


def test_a_torch_that_is_there_is_not_imported(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    code = "from mlcrt.commands import options; options.own(); import tvm; print('fine')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("fine\n", "")
