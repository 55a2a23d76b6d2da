"""What surrounds the tokenizer: end tokens, BOS, defaults, and keeping known tokens at the front."""

from __future__ import annotations

import json

import pytest
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_dist import make_dist

from mlcrt.errors import MlcrtError
from mlcrt.runtime.tokenizer import ModelTokenizer


def configure(dist, **changes):
    path = dist / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_way_an_answer_may_end(dist):
    (dist / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [7, 9], "temperature": 0.4, "top_k": 20.0})
    )
    tokenizer = ModelTokenizer(dist, eos=[5])
    assert tokenizer.stop_ids == {5, 7, 9, 2}
    assert tokenizer.defaults == {"temperature": 0.4, "top_k": 20} and isinstance(tokenizer.defaults["top_k"], int)
    (dist / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "do_sample": False}))
    assert ModelTokenizer(dist).stop_ids == {7, 2} and ModelTokenizer(dist).defaults == {"temperature": 0.0}
    # the end of a turn counts even if the model's own end token is another
    configure(dist, eos_token={"content": "<|endoftext|>", "special": True})
    assert ModelTokenizer(dist).stop_ids == {7, 0, 2}
    configure(dist, chat_template=None)
    assert ModelTokenizer(dist).stop_ids == {7, 0}


def test_beginning_of_text(dist):
    assert ModelTokenizer(dist).encode_text("fox") == ModelTokenizer(dist).encode("fox")
    configure(dist, add_bos_token=True)
    assert ModelTokenizer(dist).encode_text("fox") == [0, *ModelTokenizer(dist).encode("fox")]
    configure(dist, add_bos_token=None)
    from tokenizers.processors import TemplateProcessing

    raw = toy.byte_level()
    raw.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    raw.save(str(dist / "tokenizer.json"))
    assert ModelTokenizer(dist).encode_text("fox")[0] == 0 != ModelTokenizer(dist).encode("fox")[0]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_damaged_files_are_named(dist, name, content):
    (dist / name).write_text(content)
    try:
        ModelTokenizer(dist)
    except MlcrtError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert name != "tokenizer.json" and content == '{"model": 3}'  # a valid object without anything we read


def test_missing_tokenizer(dist):
    (dist / "tokenizer.json").unlink()
    with pytest.raises(MlcrtError, match="tokenizer.json is missing"):
        ModelTokenizer(dist)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return ModelTokenizer(make_dist(tmp_path_factory.mktemp("chatml")))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.integers(3, 400), max_size=8))
def test_known_tokens_stay_and_the_rest_is_split_as_ever(chatml, start, rest, answer):
    head = f"<|im_start|>user\n{start}"
    text = head + "<|im_end|>\n" + rest
    known = (head, chatml.encode(head))
    assert chatml.encode_after(text, [known]) == chatml.encode(text)
    spelled = chatml.decode(answer, skip_special=False)  # other tokens than encoding the same text would give
    longer = (head + spelled, [*known[1], *answer])
    text = longer[0] + "<|im_end|>\n" + rest
    assert chatml.encode_after(text, [known, longer]) == [*longer[1], *chatml.encode("<|im_end|>\n" + rest)]
    assert chatml.encode_after(head + "fox", [known]) == chatml.encode(head + "fox")
    assert chatml.encode_after("<|im_end|>" + head, [known]) == chatml.encode("<|im_end|>" + head)
    assert chatml.encode_after(head, [known]) == known[1]


def test_a_beginning_is_known_only_up_to_an_added_token(chatml):
    whole = chatml.encode("<|im_start|>quick")
    part = ("<|im_start|>qui", chatml.encode("<|im_start|>qui"))
    assert [*part[1], *chatml.encode("ck")] != whole == chatml.encode_after("<|im_start|>quick", [part])


def test_the_longest_known_beginning_counts(chatml):
    # neither is how the tokenizer would split it, so that one sees which was taken
    short, long = ("a", [chatml.encode(" a")[0]]), ("a<|im_end|>b", [9, 2, 11])
    for known in ([short, long], [long, short]):
        assert chatml.encode_after("a<|im_end|>b<|im_end|>", known) == [9, 2, 11, 2]
        assert chatml.encode_after("a<|im_end|>c", known) == [*short[1], *chatml.encode("<|im_end|>c")]
