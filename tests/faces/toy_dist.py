"""A compiled folder for the toy engine, with a real tokenizer and template."""

from __future__ import annotations

import json
from pathlib import Path

import toy
from toy_engine import toy_config

from mlcrt.dist import FORMAT, MANIFEST

TEMPLATES = Path(__file__).parent.parent / "text" / "templates"


def make_dist(folder: Path, name: str = "toy-q0f32", template: str | None = "chatml", ends: int = 25, **more) -> Path:
    """Write a compiled folder for the toy engine; `more` goes into toy.json."""
    dist = folder / name
    dist.mkdir(parents=True)
    tokenizer = toy.byte_level()
    tokenizer.save(str(dist / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "add_bos_token": False}
    if template:
        config["chat_template"] = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    (dist / "tokenizer_config.json").write_text(json.dumps(config))
    words = [i for text, i in tokenizer.get_vocab().items() if i > 2 and len(text) > 1 and text.isascii()]
    settings = {"name": name, "vocab": tokenizer.get_vocab_size() + 8, "eos": [2], "context": 512, "ends": ends}
    settings |= {"text_tokens": sorted(words), **more}
    (dist / "toy.json").write_text(json.dumps(settings))
    manifest = {"format": FORMAT, "name": "toy", "quantization": "q0f32", "schemes": {}, "targets": {"cpu": {}}}
    manifest |= {"config": toy_config(settings).to_dict(), "params": {"files": [], "signature": name}}
    (dist / MANIFEST).write_text(json.dumps(manifest))
    return dist
