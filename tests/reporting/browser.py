"""A headless Chromium, driven by its DevTools protocol through a pipe, without a package for it."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def installed():
    """The path of a browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. `messages` and `requests` are of the page that was opened last."""

    def __init__(self, program, profile):
        (read, self._write), (self._read, write) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
                 f"--user-data-dir={profile}", "about:blank"]
        # The protocol is spoken on descriptors 3 and 4. (Not sh: some know descriptors of one digit alone.)
        self._process = subprocess.Popen(["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", program, *flags],
                                         pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self._count, self._bytes, self._events, self._session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self._process.kill()
        self._process.wait()
        for descriptor in (self._write, self._read):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def _next(self):
        while b"\0" not in self._bytes:
            got = os.read(self._read, 1 << 20)
            assert got, "the browser has ended"
            self._bytes += got
        one, _, self._bytes = self._bytes.partition(b"\0")
        return json.loads(one)

    def open(self, url, width=1280, dark=False):
        """Open a page in a window of this width and 844 pixels of height."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events = []
        self.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def wait_for(self, method, count=1):
        while sum(event.get("method") == method for event in self._events) < count:
            self._events.append(self._next())

    def value(self, expression):
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_until(self, expression, seconds=30):
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.1)

    def screenshot(self, path):
        clip = {"x": 0, "y": 0, "width": self.value("innerWidth"), "scale": 1,
                "height": self.value("document.documentElement.scrollHeight")}
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    @property
    def messages(self):
        """Everything that is written to the console: errors, warnings, refused loads."""
        return [event["params"] for event in self._events if event.get("method") in
                ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")]

    @property
    def requests(self):
        """Addresses that were asked for, those of data inside the page left out."""
        urls = [event["params"]["request"]["url"] for event in self._events
                if event.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]
