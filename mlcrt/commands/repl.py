"""The conversation in the terminal: reading lines, slash commands, printing answers while they come."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcrt.errors import MlcrtError, UsageError

if TYPE_CHECKING:
    from mlcrt.chat import ChatModule

# Everything a terminal might take as a command, except newline and tab: a model's text must not move the cursor.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PROMPT = "> "


class Leave(Exception):
    """The user wants to go."""


def converse(chat: ChatModule) -> int:
    """Talk until the end of input. Lines come from prompt_toolkit on a terminal, else from stdin as it is."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    conversation = Conversation(chat, terminal)
    if terminal:
        conversation.note(f"{chat.dist.name} on {chat.device}, context {chat.engine.context}; /help lists the commands")
    for line in _terminal_lines() if terminal else _plain_lines():
        try:
            conversation.handle(line)
        except Leave:
            break
        except MlcrtError as error:
            conversation.complain(str(error))
        except KeyboardInterrupt:
            if not terminal:
                raise
    return 0


class Conversation:
    """What one line of input does. `terminal` says whether a person types and reads."""

    def __init__(self, chat: ChatModule, terminal: bool):
        from rich.console import Console

        self.chat = chat
        self.terminal = terminal
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def handle(self, line: str) -> None:
        """Run a slash command, or let the model answer."""
        if not line.strip():
            return
        if not line.startswith("/"):
            self._say(lambda write: self.chat.generate(line, write))
            return
        name, _, argument = line[1:].strip().partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise UsageError(f"There is no command /{name}; /help lists them.")
        command(self, argument.strip())

    def note(self, text: str) -> None:
        """Anything that is not the model's words goes to stderr."""
        self._notes.print(text, style="dim", markup=False)

    def complain(self, text: str) -> None:
        """An error."""
        self._notes.print(text, style="red", markup=False)

    def _say(self, answer: Callable[[Callable[[str], None]], str]) -> None:
        """Print an answer as it comes; on a terminal Ctrl-C ends the answer, not the conversation."""

        def write(piece: str) -> None:
            sys.stdout.write(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece) if self.terminal else piece)
            sys.stdout.flush()

        ended, earlier = "", self.chat.last
        try:
            answer(write)
        except KeyboardInterrupt:
            if not self.terminal:
                raise
            ended = "stopped"
        write("\n")
        last = self.chat.last
        if last is None or last is earlier:
            return
        usage = last.usage
        figures = f"{usage.completion_tokens} tokens, {usage.decode_rate:.1f} tok/s"
        prefill = f"prompt {usage.prefill_tokens} new + {usage.reused_tokens} cached, {usage.prefill_rate:.1f} tok/s"
        ended = ended or {"length": "cut at the limit"}.get(last.finish_reason or "", "")
        self.note(f"[{figures}; {prefill}{'; ' + ended if ended else ''}]")
        if last.notice:
            self.note(last.notice)

    # -- commands: the docstring is the line in /help

    def reset(self, _: str) -> None:
        """/reset: start the conversation over"""
        self.chat.reset_chat()
        self.note("The conversation starts over.")

    def stats(self, _: str) -> None:
        """/stats: speed, reused tokens, context and memory"""
        self.note(str(self.chat.stats()))

    def regen(self, _: str) -> None:
        """/regen: answer the last message again"""
        self._say(self.chat.regenerate)

    def save(self, argument: str) -> None:
        """/save FILE: write the conversation with its cache to a file"""
        path = _path(argument, "/save")
        self.chat.save(path)
        self.note(f"Saved to {path}.")

    def load(self, argument: str) -> None:
        """/load FILE: go on from a saved conversation"""
        path = _path(argument, "/load")
        self.chat.load(path)
        self.note(f"Loaded {path}: {len(self.chat.messages)} messages.")

    def system(self, argument: str) -> None:
        """/system TEXT: set the system message and start over (no TEXT: remove it)"""
        self.chat.system = argument or None
        self.note(f"The system message is {'set' if argument else 'removed'} and the conversation starts over.")

    def set(self, argument: str) -> None:
        """/set NAME VALUE: change a sampling setting, for example /set temperature 0.7 (no NAME: show them)"""
        name, _, value = argument.partition(" ")
        params = self.chat.sampling
        if argument and not value:
            raise UsageError("A setting is changed with /set NAME VALUE, for example /set temperature 0.7.")
        if argument:
            self.chat.sampling = params = params.but_parsed(name, value.strip())
        shown = [name] if argument else [item.name for item in fields(params)]
        self.note("\n".join(f"{item} = {_shown(getattr(params, item))}" for item in shown))

    def help(self, _: str) -> None:
        """/help: this list"""
        lines = [inspect.getdoc(command).partition(": ") for command in COMMANDS.values()]
        keys = [
            ("Esc Enter", "or a backslash at the end of a line: another line"),
            ("Ctrl-C", "end the answer, or clear the line"),
            ("Ctrl-D", "leave"),
        ]
        pairs = [(usage, text) for usage, _, text in lines] + keys
        self.note("\n".join(f"{usage:<16} {text}" for usage, text in pairs))

    def exit(self, _: str) -> None:
        """/exit: leave"""
        raise Leave


COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    command.__name__: command
    for command in (
        Conversation.help,
        Conversation.reset,
        Conversation.stats,
        Conversation.regen,
        Conversation.save,
        Conversation.load,
        Conversation.system,
        Conversation.set,
        Conversation.exit,
    )
}


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs the name of a file, for example {command} talk.mlcrt.")
    return Path(argument).expanduser()


def _shown(value: Any) -> str:
    return "none" if value in (None, (), {}) else str(value)


def _plain_lines() -> Iterator[str]:
    """Lines of stdin; a backslash at the end joins the next one."""
    pending = ""
    for line in sys.stdin:
        line = line.rstrip("\n")
        if line.endswith("\\"):
            pending += line[:-1] + "\n"
            continue
        yield pending + line
        pending = ""
    if pending:
        yield pending


def history_path() -> Path:
    """The file of earlier input: $XDG_STATE_HOME/mlcrt/history, by default under ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "mlcrt" / "history"


def _history() -> Any:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _terminal_lines() -> Iterator[str]:
    """Lines of the terminal, with history, completion of commands and several lines at a time."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    session: Any = PromptSession(
        history=_history(),
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
        completer=_completer(),
        complete_while_typing=True,
    )
    prompt = FormattedText([("ansigreen bold", _PROMPT)])
    while True:
        try:
            yield session.prompt(prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _completer() -> Any:
    """Commands after a slash, and the names of settings after /set."""
    from prompt_toolkit.completion import Completer, Completion

    from mlcrt.runtime.sampling import SamplingParams

    class Commands(Completer):
        def get_completions(self, document: Any, event: Any) -> Iterator[Any]:
            text = document.text_before_cursor
            choices = ["/" + name for name in COMMANDS]
            if text.startswith("/set "):
                choices = ["/set " + item.name for item in fields(SamplingParams)]
            if text.startswith("/"):
                yield from (Completion(item, -len(text)) for item in choices if item.startswith(text))

    return Commands()
