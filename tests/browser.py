"""A browser without a window, driven over chromedriver's HTTP interface; nothing to install but Debian's chromium."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--disable-dev-shm-usage", "--no-first-run", "--window-size=1400,1000"]  # fmt: skip


def programs() -> tuple[str, str]:
    """Chromium and its driver; without them the tests are skipped, but not in CI, which installs them."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    missing = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


class Browser:
    """One session; `run` evaluates JavaScript on the page."""

    def __init__(self, folder: Path) -> None:
        chromium, driver = programs()
        command = [driver, "--port=0"]
        self.driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started = next(line for line in self.driver.stdout if "started successfully on port" in line)
        port = started.rpartition(" ")[2].strip(".\n")
        self.address = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={folder}"], "binary": chromium}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"

    def close(self) -> None:
        self.ask("DELETE", self.session)
        self.driver.terminate()
        self.driver.communicate(timeout=30)

    def ask(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, file: Path) -> None:
        self.ask("POST", f"{self.session}/url", {"url": file.as_uri()})

    def run(self, script: str, *arguments):
        return self.ask("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Keys as a person types them, wherever the focus is."""
        typed = [KEYS.get(key, key) for key in keys]
        strokes = [{"type": kind, "value": key} for key in typed for kind in ("keyDown", "keyUp")]
        actions = {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]}
        self.ask("POST", f"{self.session}/actions", actions)

    def click(self, selector: str, number: int = 0) -> None:
        found = self.ask("POST", f"{self.session}/elements", {"using": "css selector", "value": selector})
        assert len(found) > number, f"no {selector} number {number} on the page"
        self.ask("POST", f"{self.session}/element/{found[number][ELEMENT]}/click", {})

    def texts(self, selector: str) -> list[str]:
        """The text of everything that is shown and matches."""
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).map(e => e.innerText)"
        return self.run(script, selector)

    def dark(self, on: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self.ask("POST", f"{self.session}/goog/cdp/execute", command)

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.ask("POST", f"{self.session}/se/log", {"type": "browser"})]

    def until(self, condition, seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the page did not come to it"
            time.sleep(0.02)
