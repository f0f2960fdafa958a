"""A headless Chromium driven over its own pipe: pages are opened, asked and photographed; no library is needed.

The protocol is Chromium's DevTools protocol (https://chromedevtools.github.io/devtools-protocol/): JSON messages that
end in NUL, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = os.environ.get("TALIK_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium (or set TALIK_CHROMIUM to one)")
    return found


class Browser:
    """One tab."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._number, self._rest = send, receive, 0, b""
        self.problems: list[str] = []  # errors and warnings of the console, exceptions, refused loads
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call one method of the protocol in the tab."""
        return self._call(method, session=self._session, **parameters)

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file as a page of this width, and wait until its script has ended."""
        self.problems.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.scheme(dark=dark)
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.run("document.documentElement?.dataset.ready") != "yes":
            assert time.monotonic() < deadline, f"the page's script did not end: {self.problems}"
            time.sleep(0.05)

    def scheme(self, *, dark: bool = False, media: str = "") -> None:
        """Take the system for one of light or dark colours, and the page for a screen or "print"."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def photograph(self, file: Path, *, selector: str = "", whole: bool = False) -> None:
        """Write a PNG of what is seen, of an element, or of the whole page."""
        clip = None
        if selector:
            box = (
                f"(e => {{e.scrollIntoView(); const b = e.getBoundingClientRect(); "
                f"return [b.x + scrollX, b.y + scrollY, b.width, b.height]}})(document.querySelector({selector!r}))"
            )
            clip = dict(zip(("x", "y", "width", "height"), self.run(box), strict=True)) | {"scale": 1}
        extra = {} if clip is None else {"clip": clip}
        beyond = whole or clip is not None
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=beyond, **extra)
        file.write_bytes(base64.b64decode(image["data"]))

    def _call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": session} if session else {}))
        os.write(self._send, text.encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return dict(found["result"])
            self._note(found.get("method", ""), found.get("params", {}))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._receive, 1 << 20)
            assert piece, "Chromium ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))

    def _note(self, event: str, found: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(str(found["exceptionDetails"].get("exception", found["exceptionDetails"])))
        elif event == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.problems.append(f"{found['type']}: {found['args']}")
        elif event == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser until the block ends; skips the test where there is none."""
    program = chromium()
    (to_read, to_write), (back_read, back_write) = os.pipe(), os.pipe()
    # the child finds its ends at descriptors 3 and 4, wherever this process has them
    start = f'exec 3<&{to_read} 4>&{back_write}; exec "$@"'
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    flags += ["--no-first-run", "--mute-audio", "--remote-debugging-pipe", "--disable-background-networking"]
    with TemporaryDirectory() as profile:
        command = ["bash", "-c", start, "bash", program, *flags, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command, pass_fds=(to_read, back_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(back_write)
        try:
            yield Browser(to_write, back_read)
        finally:
            os.close(to_write)
            os.close(back_read)
            process.terminate()
            process.wait(timeout=30)
