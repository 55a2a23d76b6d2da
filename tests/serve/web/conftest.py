"""Fixtures: a scripted server, and pages of it in a real headless Chromium (Debian: chromium, chromium-driver)."""

from __future__ import annotations

import shutil

import pytest
from web_browser import Page, start_chromium, unavailable
from web_server import ScriptedServer


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        unavailable("there is no Chromium with its driver (Debian: apt install chromium chromium-driver)")
    started = start_chromium(browser, driver, tmp_path_factory.mktemp("downloads"))
    yield started
    started.quit()


@pytest.fixture
def server():
    with ScriptedServer() as started:
        yield started


@pytest.fixture
def page(chromium, server):
    """The page, open, on a desktop-sized light screen. Every server has a port of its own: storage is empty.

    At the end nothing but the page's own addresses may have been asked for, and the console must be free of errors.
    """
    opened = Page(chromium, server)
    opened.screen()
    opened.drain()
    opened.open()
    yield opened
    opened.check_traffic()
    opened.leave()
