"""The command line: answers, exit codes, one line per error, help, speed of starting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import toy_engine
from toy_dist import make_dist

from mlcrt import cli
from mlcrt.chat import ChatModule
from mlcrt.errors import MlcrtError
from mlcrt.version import __version__

HERE = Path(__file__).parent
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


def process(*args, stdin="", **env):
    return subprocess.run(
        [sys.executable, str(HERE / "toy_main.py"), *map(str, args)],
        input=stdin, capture_output=True, text=True, timeout=60, env={**os.environ, **env}, encoding="utf-8",
    )  # fmt: skip


@pytest.fixture
def answer(dist):
    with ChatModule(dist, temperature=0, max_tokens=12) as chat:
        return chat.generate("What is a prime?")


def test_one_prompt_prints_the_answer_alone(dist, answer, capsys, monkeypatch):
    assert cli.main(["chat", str(dist), "--prompt", "What is a prime?", *GREEDY]) == 0
    assert capsys.readouterr() == (answer + "\n", "")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(read=lambda: "What is a prime?"))
    assert cli.main(["chat", str(dist), "--prompt", "-", *GREEDY]) == 0
    assert capsys.readouterr() == (answer + "\n", "")
    assert cli.main(["chat", str(dist), "--prompt", "What is a prime?", "--json", *GREEDY]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["text"] == answer and data["model"] == "toy-q0f32" and data["last"]["completion_tokens"] > 0


def test_all_options_arrive(dist, capsys, monkeypatch):
    made = []
    original = ChatModule.__init__
    monkeypatch.setattr(ChatModule, "__init__", lambda self, *a, **kw: (made.append(self), original(self, *a, **kw))[1])
    line = (
        "--max-tokens 3 --temperature 0.5 --top-p 0.8 --top-k 9 --min-p 0.01 --repetition-penalty 1.1 --seed 4 "
        "--presence-penalty 0.2 --frequency-penalty -0.3 --logit-bias 5=1.5 --logit-bias 6=-100 --stop xx --stop yy "
        "--system S --context 200 --context-shift --device cpu"
    )
    assert cli.main(["chat", str(dist), "--prompt", "Hi", *line.split()]) == 0
    (chat,) = made
    params = chat.sampling
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (3, 0.5, 0.8, 9)
    assert (params.min_p, params.repetition_penalty, params.seed) == (0.01, 1.1, 4)
    assert (params.presence_penalty, params.frequency_penalty) == (0.2, -0.3)
    assert params.logit_bias == {5: 1.5, 6: -100.0} and params.stop == ("xx", "yy")
    assert (chat.system, chat.engine.context, chat.context_shift, chat.device) == ("S", 200, True, "toy")
    assert chat.engine.closed


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["--temperature", "-1"], 2, "temperature must be"),
        (["--logit-bias", "x"], 2, "42=-100"),
        (["--logit-bias", "100000=1"], 2, "tokens 0 to"),
        (["--stop", ""], 2, "stop must be"),
        (["--quantization", "q4f16_1"], 2, "compiled already"),
        (["--context", "8"], 1, "the context holds 8"),
        (["--prompt", " "], 2, "prompt is empty"),
    ],
)
def test_errors_are_one_line(dist, capsys, args, code, part):
    assert cli.main(["chat", str(dist), "--prompt", "What is this?", *args]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mlcrt: ") and err.count("\n") == 1 and part in err


@pytest.mark.parametrize(
    "args",
    [[], ["nonsense"], ["chat"], ["chat", "m", "--top-k", "x"], ["bench", "m", "-p", "0"], ["eval", "m"],
     ["eval", "m", "--perplexity", "/nowhere"], ["chat", "m", "--nonsense"]],
)  # fmt: skip
def test_wrong_usage(args, capsys):
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and "Traceback" not in err


def test_other_failures_are_one_line_too(dist, capsys, monkeypatch):
    for raised, code, line in [
        (MlcrtError("This\nfailed."), 1, "mlcrt: This failed.\n"),
        (FileNotFoundError(2, "No such file", "x.bin"), 1, "mlcrt: x.bin: No such file.\n"),
        (ZeroDivisionError("oops"), 1, "mlcrt: internal error, ZeroDivisionError: oops (MLCRT_DEBUG=1 shows where).\n"),
        (KeyboardInterrupt(), 130, ""),
    ]:

        def fail(*args, error=raised, **kw):
            raise error

        monkeypatch.setattr(toy_engine.Engine, "prefill", fail)
        assert cli.main(["chat", str(dist), "--prompt", "q"]) == code
        assert capsys.readouterr().err == line
        monkeypatch.setenv("MLCRT_DEBUG", "1")
        if code == 1:
            with pytest.raises(type(raised)):
                cli.main(["chat", str(dist), "--prompt", "q"])
        monkeypatch.delenv("MLCRT_DEBUG")
        capsys.readouterr()


def test_json_needs_a_prompt(dist, capsys):
    assert cli.main(["chat", str(dist), "--json"]) == 2 and "--prompt" in capsys.readouterr().err


def test_notices_go_to_stderr(tmp_path, capsys):
    dist = make_dist(tmp_path, template=None, ends=0)
    assert cli.main(["chat", str(dist), "--prompt", "Hi", "--context", "30", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() and err.startswith("toy-q0f32 has no chat template") and "context of 30 tokens is full" in err


@pytest.mark.parametrize("command", ["chat {dist} --prompt q --max-tokens 60 | head -c 1", "chat --help | true"])
def test_a_closed_pipe_is_quiet(tmp_path, command):
    command = f"{sys.executable} {HERE / 'toy_main.py'} {command}".format(dist=make_dist(tmp_path, ends=0))
    # slow enough that the reader has left long before the answer ends, and buffered as output to a pipe usually is
    env = {**os.environ, "TOY_DELAY": "0.02", "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60, env=env
    )
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, "", command.count("head"))


def test_help_has_examples_and_is_quick(capsys):
    for verb in cli.VERBS:
        assert cli.main([verb, "--help"]) == 0
        assert f"  mlcrt {verb} " in capsys.readouterr().out
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"mlcrt {__version__}\n"
    # what it imports decides how long it takes, on any machine
    code = "import sys; from mlcrt import cli; cli.main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent.parent
    )
    heavy = {"numpy", "tvm", "tvm_ffi", "rich", "prompt_toolkit", "jinja2", "tokenizers", "huggingface_hub", "gguf"}
    assert not heavy & set(eval(done.stderr)) and "mlcrt chat" in done.stdout


# -- a conversation without a terminal


def test_lines_from_a_pipe(dist, tmp_path, answer):
    saved = tmp_path / "talk"
    script = [
        "What is a prime?", "", "/stats", f"/save {saved}", "/reset", "What is \\", "this?", "/regen", f"/load {saved}",
        "/set seed 5", "/set", "/set nonsense 1", "/set top_p", "/frobnicate", "/help", "/save", "/load /nowhere",
        "/system You are brief.", "/regen", "/set temperature hot", "/exit", "never read",
    ]  # fmt: skip
    done = process("chat", dist, *GREEDY, stdin="\n".join(script))
    assert done.returncode == 0
    lines = done.stdout.split("\n")
    with ChatModule(dist, temperature=0, max_tokens=12) as chat:
        second = chat.generate("What is \nthis?")
    assert done.stdout == f"{answer}\n{second}\n{second}\n" and "\x1b" not in done.stdout + done.stderr, lines
    for part in (
        "tok/s", "prompt tokens were cached", f"Saved to {saved}.", "starts over", "2 messages", "seed = 5",
        "temperature = 0.0", "There is no sampling setting 'nonsense'", "/set NAME VALUE", "no command /frobnicate",
        "/regen           answer the last message again", "/save needs the name of a file", "no saved conversation",
        "The system message is set", "ask something first", "temperature must be a number",
    ):  # fmt: skip
        assert part in done.stderr, part
    assert "never read" not in done.stdout and "Traceback" not in done.stderr


def test_end_of_input_ends_and_ctrl_c_exits(dist, tmp_path):
    done = process("chat", dist, *GREEDY, stdin="Hi\\")
    assert done.returncode == 0 and done.stdout.strip()
    import signal

    dist = make_dist(tmp_path / "endless", ends=0)
    running = subprocess.Popen(
        [sys.executable, str(HERE / "toy_main.py"), "chat", str(dist), "--prompt", "q"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TOY_DELAY": "0.2"},
    )  # fmt: skip
    assert running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err == b"" and out.endswith(b"\n")
    # lines from a pipe are a program, and Ctrl-C ends all of it
    running = subprocess.Popen(
        [sys.executable, str(HERE / "toy_main.py"), "chat", str(dist)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TOY_DELAY": "0.2"},
    )  # fmt: skip
    running.stdin.write(b"one\ntwo\n")
    running.stdin.flush()
    assert running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1] == b"" and running.returncode == 130


# -- verbs that call the compiler


@pytest.fixture
def calls(monkeypatch):
    calls = []

    def record(name):
        def call(model, *, report, **kw):
            report("working")
            calls.append((name, model, kw))
            return Path("dist/made")

        return call

    monkeypatch.setitem(sys.modules, "mlcrt.compile", types.SimpleNamespace(compile_model=record("compile")))
    monkeypatch.setitem(sys.modules, "mlcrt.quant", types.SimpleNamespace(convert_model=record("convert")))
    return calls


def test_compile_and_convert(calls, capsys):
    line = "compile m --quantization q8f16_1 --target cpu,rocm:gfx1100 --output o --dump-ir d --context 99 --check"
    assert cli.main([*line.split(), "--jobs", "3"]) == 0 and capsys.readouterr() == ("dist/made\n", "working\n")
    expected = {"quantization": "q8f16_1", "targets": "cpu,rocm:gfx1100", "out": Path("o"), "dump_ir": Path("d")}
    more = {"context": 99, "check": True, "progress": None, "jobs": 3, "table": None, "slots": None}
    assert calls.pop() == ("compile", "m", {**expected, **more})
    assert cli.main(["compile", "m"]) == 0
    nothing = {"quantization": None, "targets": "auto", "out": None, "dump_ir": None, "context": None, "check": False}
    assert calls.pop() == ("compile", "m", {**nothing, "progress": None, "jobs": None, "table": None, "slots": None})
    assert cli.main(["convert", "m", "--quantization", "q0f32", "--output", "o"]) == 0
    assert calls.pop() == ("convert", "m", {"quantization": "q0f32", "out": Path("o")})


def test_devices(monkeypatch, capsys):
    there = types.SimpleNamespace(
        available=True, devices=[{"name": "Some [CPU]", "cores": 2, "flags": list(range(20))}], reason=""
    )
    missing = types.SimpleNamespace(available=False, devices=[], reason="libcuda.so is not there.")
    targets = {
        "cpu": types.SimpleNamespace(probe=lambda: there),
        "cuda": types.SimpleNamespace(probe=lambda: missing),
    }
    monkeypatch.setitem(sys.modules, "mlcrt.targets", types.SimpleNamespace(all_targets=lambda: targets))
    assert cli.main(["devices"]) == 0
    out = capsys.readouterr().out
    assert "Some [CPU], cores 2" in out and "libcuda.so is not there." in out and "yes" in out and "no" in out
    assert cli.main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["target"] for entry in found] == ["cpu", "cuda"]
    assert found[0]["devices"][0]["flags"][-1] == 19 and found[1]["reason"] == "libcuda.so is not there."
