"""Driving the page: what a person does and sees, by the names that a screen reader would read out."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from web_server import WAIT_S, ScriptedServer

BUTTONS = """
    return [...document.querySelectorAll(arguments[0])].filter((button) =>
        button.checkVisibility() && (button.getAttribute('aria-label') ?? button.textContent) === arguments[1]);
"""
# Calls back when the page has been told of a screen of this size and kind, its listeners too.
SEEN = """
    const [width, height, touch, done] = arguments;
    const coarse = () => matchMedia("(pointer: coarse)").matches && !matchMedia("(any-pointer: fine)").matches;
    const { documentElement: root } = document;
    const right = () => root.clientWidth === width && root.clientHeight === height && coarse() === touch;
    const look = (times) => times === 2 ? done() : requestAnimationFrame(() => look(right() ? times + 1 : 0));
    look(0);
"""
ALLOWED = ("GET /", "GET /v1/models", "POST /v1/chat/completions")


def unavailable(reason: str):
    """Skip, or fail where everything is expected to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true but {reason}", pytrace=False)
    pytest.skip(reason)


def start_chromium(browser: str, driver: str, downloads: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")  # an alert must be seen by the test, not dismissed
    started = webdriver.Chrome(options=options, service=Service(driver))
    started.downloads = downloads
    started.set_script_timeout(WAIT_S)
    return started


class Page:
    def __init__(self, driver: webdriver.Chrome, server: ScriptedServer):
        self.driver, self.server = driver, server
        self.touch = False

    # ---- the window ----

    def screen(
        self, width: int = 1280, height: int = 800, touch: bool = False, dark: bool = False, still: bool = False
    ):
        self.touch = touch
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        if self.driver.current_url.startswith("http"):  # else the page will find it so
            self.driver.execute_async_script(SEEN, width, height, touch)

    def open(self, url: str | None = None) -> None:
        self.driver.get(url or self.server.url)
        self.ready()

    def reload(self) -> None:
        self.driver.refresh()
        self.ready()

    def ready(self) -> None:
        self.until(
            lambda: self.js("return document.documentElement.dataset.ready === 'true'"), "the page did not start"
        )

    @contextlib.contextmanager
    def before_the_page(self, script: str):
        """In this block every page that is opened runs this before anything of its own."""
        added = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

    def leave(self) -> None:
        self.driver.get("about:blank")

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def module(self, script: str, *arguments):
        """The value of the body of an async function, in which `load(name)` imports a module of the page."""
        wrapped = f"""
            const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);
            const load = (name) => import(`/web/${{name}}`);
            (async (...arguments) => {{ {script} }})(...given).then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));
        """  # noqa: E501
        answer = self.driver.execute_async_script(wrapped, *arguments)
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    # ---- finding and waiting ----

    def until(self, condition, message: str = "did not happen"):
        """What `condition` gives once it is true; elements that went stale between two looks are looked up again."""
        wait = WebDriverWait(
            self.driver, WAIT_S, poll_frequency=0.02, ignored_exceptions=[StaleElementReferenceException]
        )
        return wait.until(lambda _: condition(), message)

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def button(self, name: str, within: str = "body"):
        """The visible button of this accessible name or None; the last one, where messages have one each."""
        found = self.js(BUTTONS, f"{within} button", name)
        return found[-1] if found and found[-1].accessible_name == name else None

    def press(self, name: str, within: str = "body") -> None:
        def pressed() -> bool:
            button = self.button(name, within)
            if button:
                self.js("arguments[0].scrollIntoView({block: 'center'})", button)
                button.click()
            return bool(button)

        self.until(pressed, f"there is no button {name!r}")

    def keys(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        """The accessible name of what has the focus."""
        return self.driver.switch_to.active_element.accessible_name

    # ---- the conversation ----

    @property
    def prompt(self):
        return self.find("#prompt")

    def send(self, text: str) -> None:
        self.prompt.send_keys(text)
        if self.touch:  # Enter begins a new line there
            self.press("Send")
        else:
            self.prompt.send_keys(Keys.ENTER)

    def ask(self, text: str) -> None:
        """Send and wait for the whole answer."""
        before = len(self.server.bodies)
        self.send(text)
        self.until(lambda: len(self.server.bodies) > before, "nothing was sent")
        self.idle()

    def idle(self) -> None:
        self.until(lambda: self.find("#send").is_displayed(), "the answer did not end")

    def texts(self, role: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return self.js(script, f".turn.{role} .words")

    @property
    def questions(self) -> list[str]:
        return self.texts("user")

    @property
    def answers(self) -> list[str]:
        return self.texts("assistant")

    def shows(self, text: str) -> None:
        """Wait until the last answer is exactly this."""
        self.until(lambda: self.answers[-1:] == [text], f"the last answer did not become {text!r}")

    def note(self) -> str:
        """The sentence below the last answer."""
        return self.js("return [...document.querySelectorAll('.turn .note')].at(-1)?.innerText ?? ''")

    def notice(self) -> str:
        return self.js("return document.getElementById('notice').innerText")

    def titles(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#list .name')].map((e) => e.textContent)")

    def spoken(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#spoken p')].map((e) => e.textContent)")

    # ---- what the browser noted ----

    def drain(self) -> None:
        self.driver.get_log("browser")
        self.driver.get_log("performance")

    def addresses(self) -> list[str]:
        """Every address asked for since the last look, by whatever means."""
        out = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                out.append(message["params"]["request"]["url"])
        return out

    def check_traffic(self) -> None:
        own = (self.server.url, "about:", "data:,", "blob:" + self.server.url.rstrip("/"))
        strangers = [url for url in self.addresses() if not url.startswith(own)]
        assert not strangers, f"the page asked for {strangers}"
        other = {p for p in self.server.paths if p not in ALLOWED and not p.startswith("GET /web/")}
        assert not other, f"the page asked its server for {other}"
        bad = [
            entry
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and entry["source"] != "network"
        ]
        assert not bad, bad


def wait_for(condition, message: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)
