"""Writes template_golden.json: what transformers' `apply_chat_template` renders. Needs the [reference] extra.

python tests/text/make_template_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter für <Ort> & Umgebung",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}


def say(role: str, content: str, **more: object) -> dict:
    return {"role": role, "content": content, **more}


TALKS = {
    "one": [say("user", "Hi")],
    "system": [say("system", "Be brief. "), say("user", " What's 2 < 3? 'yes' \"no\" ")],
    "turns": [say("system", "S"), say("user", "a\nb"), say("assistant", "é 日本 🙂\n"), say("user", "c")],
    "plain_turns": [say("user", "a"), say("assistant", "b"), say("user", "<|im_end|>\\n")],
    "two_users": [say("user", "a"), say("user", "b")],
    "thinking": [say("user", "q"), say("assistant", "<think>\nhm\n</think>\n\nanswer"), say("user", "r")],
    "reasoning": [say("user", "q"), say("assistant", "answer", reasoning_content="hm hm")],
    "tool_use": [say("user", "w?"), say("assistant", "", tool_calls=[CALL]), say("tool", "12°"), say("tool", "13°")],
    "two_calls": [say("user", "w?"), say("assistant", "", tool_calls=[CALL, CALL])],
    "controls": [say("user", "a<b"), say("skip", "x"), say("assistant", "y"), say("stop", "z"), say("user", "no")],
}
OPTIONS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": [TOOL]},
    {"add_generation_prompt": True, "enable_thinking": False},
]


def main() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for name, messages in TALKS.items():
            for options in OPTIONS:
                extra = {"date_string": "26 Jul 2024"} if path.stem == "llama3" else {}
                case = {"template": path.stem, "talk": name, "messages": messages, "options": {**options, **extra}}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, chat_template=source, tokenize=False, **case["options"]
                    )
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    text = json.dumps({"tokens": TOKENS, "cases": cases}, ensure_ascii=False, indent=1)
    (HERE / "template_golden.json").write_text(text + "\n", encoding="utf-8")
    print(len(cases), "cases,", sum("error" in case for case in cases), "of them refused")


if __name__ == "__main__":
    main()
