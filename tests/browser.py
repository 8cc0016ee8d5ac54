"""Pages as a person sees them: Debian's chromium without a window, driven through the pipe
of its DevTools protocol (JSON messages, each with a null byte at its end)."""

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import pytest

_PATIENCE_SECONDS = 120
_TEXT = """
(() => {
    const found = [];
    const walk = node => {
        if (node.nodeType === Node.TEXT_NODE && node.textContent.trim())
            found.push(node.textContent.trim());
        if (["STYLE", "SCRIPT", "NOSCRIPT", "TEMPLATE"].includes(node.nodeName)) return;
        if (node.shadowRoot) walk(node.shadowRoot);
        node.childNodes.forEach(walk);
    };
    walk(document.body);
    return found;
})()
"""
"""All texts of a page in order, those in shadow roots, too: TensorBoard is made of them."""


class Browser:
    """One page."""

    def __init__(self, *, width: int = 1280, height: int = 1000) -> None:
        """Skips the test where there is no chromium. It reads from descriptor 3 and writes to 4.

        Args:
            width: of the page in pixels, as is `height`.
        """
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
        self._profile = TemporaryDirectory(ignore_cleanup_errors=True)
        read_by_it, self._to = os.pipe()
        self._from, written_by_it = os.pipe()
        descriptors = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (read_by_it, written_by_it)]
        command = [
            program, "--headless=new", "--no-sandbox", "--no-first-run", "--disable-gpu",
            f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}",
            "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process_id = os.posix_spawn(
            program,
            command,
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, one, n) for n, one in enumerate(descriptors, start=3)),
                *((os.POSIX_SPAWN_CLOSE, one) for one in descriptors),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for one in (read_by_it, written_by_it, *descriptors):
            os.close(one)
        self._session: str | None = None
        self._calls = 0
        self._unread = b""
        (page,) = (
            target
            for target in self._call("Target.getTargets")["targetInfos"]
            if target["type"] == "page"
        )
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.kill(self._process_id, signal.SIGTERM)
        os.waitpid(self._process_id, 0)
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def _call(self, method: str, **parameters: Any) -> Any:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._unread:
                read = os.read(self._from, 1 << 16)
                assert read, "chromium has ended"
                self._unread += read
            one, _, self._unread = self._unread.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str, is_ready: Callable[[list[str]], bool]) -> list[str]:
        """Opens a page and waits for what it loads.

        Args:
            is_ready: whether the texts of the page are what was waited for.

        Returns:
            The texts of the page, in order.
        """
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            texts = list(self.evaluate(_TEXT))
            if is_ready(texts):
                return texts
            assert time.monotonic() < end, f"{url} has only {texts}"
            time.sleep(0.2)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value", [])

    def screenshot(self, file: Path) -> None:
        """Writes a png of what is in the window."""
        content = self._call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(content))
