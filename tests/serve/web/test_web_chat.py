"""A conversation in a real browser: typing, streaming, stop, regenerate, edit, settings."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys
from web_server import WAIT_S, Answer


def test_typing_and_streaming(page, server):
    answer = server.next(Answer(held=True))
    page.prompt.send_keys("First line", Keys.SHIFT, Keys.ENTER, Keys.NULL, "second line")
    assert page.prompt.get_attribute("value") == "First line\nsecond line" and not server.bodies
    page.prompt.send_keys(Keys.ENTER)
    assert page.prompt.get_attribute("value") == ""
    page.until(lambda: page.questions == ["First line\nsecond line"])
    page.until(lambda: page.note() == "Reading the prompt")
    seen = ""
    for piece in ("One", " and two", ", *three", "*."):  # each is on the screen before the next leaves the server
        answer.say(piece)
        seen += piece
        page.shows(seen.replace("*three*", "three"))
    assert page.find(".turn.assistant article").get_attribute("aria-busy") == "true"
    assert page.find(".turn.assistant em").text == "three"
    answer.end()
    page.idle()
    assert page.find(".turn.assistant article").get_attribute("aria-busy") == "false"
    (body,) = server.bodies
    assert body == {
        "model": "toy-model",
        "messages": [{"role": "user", "content": "First line\nsecond line"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert page.find("#title").text == "First line second line"


def test_figures_and_context(page, server):
    answer = server.next(Answer(held=True))
    page.send("How fast?")
    for number in range(6):
        answer.say(f" {number}")
        page.until(lambda number=number: page.answers[-1].endswith(str(number)))
    page.until(lambda: "tokens/s" in page.find(".turn.assistant .margin").text, "no speed while it streams")
    answer.end()
    page.idle()
    page.until(lambda: "6 tokens\n" in page.find(".turn.assistant .margin").text + "\n", "the usage is not shown")
    margin = page.find(".turn.assistant .margin").text.splitlines()
    assert margin[0] == "toy-model" and margin[1].endswith(" tokens/s") and margin[2] == "6 tokens"
    assert margin[3].startswith("first after ")
    assert page.find("#used").text == "8 of 2,048 tokens of context"  # 2 words asked, 6 pieces said


def test_the_conversation_is_sent_whole(page, server):
    server.next(Answer("Mars."), Answer("Phobos and Deimos."))
    page.ask("Name a planet.")
    page.ask("Its moons?")
    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "Name a planet."},
        {"role": "assistant", "content": "Mars."},
        {"role": "user", "content": "Its moons?"},
    ]


def test_stop_keeps_what_came(page, server):
    answer = server.next(Answer("Half an ", held=True))
    page.send("Tell me")
    page.shows("Half an")
    page.press("Stop")
    page.idle()
    assert answer.left.wait(WAIT_S), "the server was not told that nobody listens any more"
    assert page.answers == ["Half an"] and page.note() == "Stopped."
    assert page.focused() == "Message"
    page.ask("Go on")
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "Half an "}
    page.shows("Certainly.")


def test_questions_without_an_answer_between_are_one(page, server):
    server.next(Answer(held=True))
    page.send("First")
    page.until(lambda: len(server.bodies) == 1)
    page.press("Stop")
    page.idle()
    page.ask("Second")
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "First\n\nSecond"}]


def test_edit_and_regenerate_while_an_answer_runs(page, server):
    server.next(Answer("One."))
    page.ask("Question")
    running = server.next(Answer("Long", held=True))
    page.send("Next")
    page.shows("Long")
    page.js("document.querySelector('.turn.assistant .regenerate').click()")
    page.shows("Certainly.")
    page.idle()
    assert running.left.wait(WAIT_S) and page.questions == ["Question"]
    page.press("Earlier version")
    page.shows("Long")
    running = server.next(Answer("Longer", held=True))
    page.send("And")
    page.shows("Longer")
    page.js("document.querySelectorAll('.turn.user .edit')[1].click()")
    page.keys(" then", Keys.ENTER)
    page.until(lambda: page.questions == ["Question", "Next then"])
    page.idle()
    assert running.left.wait(WAIT_S) and page.answers == ["One.", "Certainly."]


def test_a_model_that_is_served_no_longer(page, server):
    server.models = ("toy-model", "other-model")
    page.reload()
    page.press("Settings")
    page.until(lambda: page.find("#model-choice").is_displayed())
    page.find("#model-choice").send_keys("other")
    page.ask("Hello")
    assert server.bodies[-1]["model"] == "other-model"
    server.models = ("toy-model",)
    page.reload()
    page.until(lambda: page.find("#model").text == "toy-model")
    page.ask("Hello")
    assert server.bodies[-1]["model"] == "toy-model"


def test_regenerate_keeps_both_answers(page, server):
    server.next(Answer("Heads."), Answer("Tails."))
    page.ask("Toss a coin.")
    page.press("Regenerate")
    page.until(lambda: len(server.bodies) == 2)
    page.shows("Tails.")
    page.idle()
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]
    assert page.questions == ["Toss a coin."] and page.find(".turn.assistant .count").text == "2 of 2"
    page.press("Earlier version")
    page.shows("Heads.")
    page.ask("Again?")
    assert server.bodies[2]["messages"][1]["content"] == "Heads."
    page.driver.execute_script("document.querySelector('.turn.assistant [aria-label=\"Later version\"]').click()")
    page.until(lambda: page.answers == ["Tails."])  # the other branch has no second question
    page.press("Earlier version")
    page.until(lambda: page.answers == ["Heads.", "Certainly."])


def test_edit_a_past_message(page, server):
    server.next(Answer("Paris."), Answer("Two million."), Answer("Rome."))
    page.ask("Capital of France?")
    page.ask("How many people?")
    page.js("document.querySelector('.turn.user .edit').click()")
    box = page.driver.switch_to.active_element
    assert box.accessible_name == "Edit your message" and box.get_attribute("value") == "Capital of France?"
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("Capital of Italy?", Keys.ENTER)
    page.shows("Rome.")
    page.idle()
    assert page.questions == ["Capital of Italy?"]
    assert server.bodies[2]["messages"] == [{"role": "user", "content": "Capital of Italy?"}]
    page.press("Earlier version", ".turn.user")
    page.until(lambda: page.answers == ["Paris.", "Two million."])


def test_edit_can_be_left(page, server):
    page.ask("Something")
    page.press("Edit")
    page.keys("else", Keys.ESCAPE)
    assert page.questions == ["Something"] and len(server.bodies) == 1
    assert page.focused() == "Edit"


def test_settings_reach_the_server(page, server):
    page.press("Settings")
    values = {
        "temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "repetition_penalty": "1.1",
        "max_tokens": "64", "seed": "7",
    }  # fmt: skip
    page.find("#system").send_keys("Answer in French.")
    for name, value in values.items():
        page.find(f"#set-{name}").send_keys(value)
    page.ask("Hello")
    body = server.bodies[0]
    assert {name: body[name] for name in values} == {name: float(value) for name, value in values.items()}
    assert body["messages"][0] == {"role": "system", "content": "Answer in French."}
    for name, wrong in {"top_p": "1.5", "top_k": "2.5", "temperature": "-1"}.items():
        field = page.find(f"#set-{name}")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(wrong)
        assert field.get_attribute("aria-invalid") == "true"
        assert page.find(f"#hint-{name}").text.endswith("It is not sent.")
    page.ask("Again")
    assert not {"top_p", "top_k", "temperature"} & server.bodies[1].keys() and server.bodies[1]["seed"] == 7
    page.press("New conversation")  # takes over what was set last
    page.ask("New")
    assert server.bodies[2]["seed"] == 7
    page.press("Leave all to the server")
    page.ask("Plain")
    assert server.bodies[3].keys() == {"model", "messages", "stream", "stream_options"}


def test_cut_off_answers_say_so(page, server):
    server.next(Answer("As long as", finish="length"))
    page.ask("Tell me everything")
    assert page.note().startswith("Cut off")


def test_thinking_is_folded_away(page, server):
    answer = server.next(Answer("<think>Let me see.", held=True))
    page.send("Think")
    page.until(lambda: page.all("details") and page.find("summary").text == "Thinking…")
    answer.say("</think>\n\nFour.")
    answer.end()
    page.idle()
    assert page.find("summary").text == "Thoughts before the answer"
    assert page.find(".answer").text == "Four."
    page.find("summary").click()
    assert page.find("details .prose").text == "Let me see."


def test_code_can_be_copied(page, server):
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite"], "origin": server.url}
    )
    code = "def f(x):\n    return x  # <b>"
    server.next(Answer(f"```python\n{code}\n```"))
    page.ask("Code, please")
    assert page.find("pre code").get_attribute("textContent") == code
    assert page.find(".c-keyword").text == "def" and page.find(".c-comment").text == "# <b>"
    # The word on the button goes back after two seconds: here it stays until it was looked at.
    page.js("const real = setTimeout; window.setTimeout = (f, ms, ...a) => ms === 2000 || real(f, ms, ...a)")
    page.press("Copy python code")
    page.until(lambda: page.find(".listing button").text == "Copied")
    copied = "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)))"
    assert page.driver.execute_async_script(copied) == code
    assert page.find("#said").get_attribute("textContent") == "Code copied."
