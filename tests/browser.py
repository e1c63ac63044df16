"""A real browser, driven over Chromium's own DevTools protocol: what a page shows, and what it complains about.

Selenium would bring ten packages and a second program for the few commands that are needed here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*", "--lang=en-GB",
)  # fmt: skip
START_SECONDS = 30.0
ANSWER_SECONDS = 30.0


class Tab:
    """One tab. `complaints`: errors and warnings of the page's console, exceptions, failed requests."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=ANSWER_SECONDS, suppress_origin=True)
        self.complaints: list[str] = []
        self._number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, answered within ANSWER_SECONDS."""
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end:
            message = json.loads(self.socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result = message["result"]
                assert isinstance(result, dict)
                return result
            self._notice(message)
        raise AssertionError(f"{method} was not answered")

    def open(self, url: str) -> None:
        """And wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Poll until the expression is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"never true: {expression}; {self.complaints}"
            time.sleep(0.1)
        return value

    def look(self, *, width: int, height: int, dark: bool = False, phone: bool = False, scale: float = 1.0) -> None:
        """The size of the window, and whether the reader likes it dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole_page: bool = False) -> None:
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole_page)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _notice(self, message: dict[str, Any]) -> None:
        what, about = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"].get("exception", about))[:500])
        elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(it.get("value", it.get("description"))) for it in about["args"]))
        elif what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif what == "Network.responseReceived" and about["response"]["status"] >= 400:
            self.complaints.append(f"{about['response']['status']} {about['response']['url']}")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A fresh Chromium with one tab, gone when the block ends."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder), "TZ": "UTC"},
    )  # fmt: skip
    try:
        tab = Tab(_address(process, folder / "DevToolsActivePort"))
        try:
            yield tab
        finally:
            tab.socket.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(process: subprocess.Popen[bytes], file: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, IndexError, StopIteration, ValueError):
            port = int(file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                return next(str(it["webSocketDebuggerUrl"]) for it in json.load(answer) if it["type"] == "page")
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not start within {START_SECONDS:.0f} s (exit code {process.poll()})")
