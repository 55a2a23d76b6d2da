"""Small real tokenizers, made here: a byte-level BPE and a SentencePiece-like BPE with byte fallback."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a small compiler.",
    "Größe, naïve café, 日本語のテキスト, русский текст, עברית, 🙂🚀 and numbers 1234567890!",
    "def main(argv):\n    return [x * 2 for x in argv]\n\n\n\tUser: what is a prime number?\nAssistant: it has none.",
] * 3
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(vocab: int = 600) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it, with ChatML's special tokens (ids 0 to 2) and one that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=CHATML, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call é>", special=False)])
    return tokenizer


def sentencepiece(prefix: bool = True) -> Tokenizer:
    """As Llama 2 (`prefix`: a space goes in front and comes off again) or Gemma have it."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "</s>"]
    # the alphabet is fixed: which of the rarest characters make it into one is up to a hash table
    alphabet = [*map(chr, range(33, 127)), "▁", "é", "ü"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
        max_token_length=8,
    )
    trained.train_from_iterator(CORPUS, trainer)
    data = json.loads(trained.to_str())
    vocab = data["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    data["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece unigram models had it in older files."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    """A decoder that is not read into bytes."""
    words = ["[UNK]", "the", "quick", "##er", "fox", "##es", ".", "don", "'", "t"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
