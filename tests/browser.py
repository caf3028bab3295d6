"""A headless Chromium, spoken to in the WebDriver protocol."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.request


def missing():
    """Why no browser can be had here; empty where one can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


class Browser:
    """One window of a browser."""

    def __init__(self, url):
        self._url = url

    def open(self, url, width, height=900, **headers):
        """Show a page in a viewport of this size; `headers` go with every request from now on."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        self._devtools("Network.enable", {})
        self._devtools("Network.setExtraHTTPHeaders", {"headers": headers})
        self._call("url", {"url": url})

    def picture(self):
        """What the window shows, as PNG."""
        return base64.b64decode(self._devtools("Page.captureScreenshot", {})["data"])

    def run(self, script):
        """What the body of a JavaScript function returns in the page."""
        return self._call("execute/sync", {"script": script, "args": []})

    def errors(self):
        """What the console has said since the last call."""
        return [f"{line['level']}: {line['message']}" for line in self._call("se/log", {"type": "browser"})]

    def _devtools(self, command, parameters):
        return self._call("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, command, content):
        return _post(f"{self._url}/{command}", content)


def _post(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    # Never through a proxy: it is this machine that answers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as reply:
        return json.load(reply)["value"]


@contextlib.contextmanager
def browser(profile):
    """A `Browser` whose files lie in the folder `profile`; gone at the end."""
    command = [shutil.which("chromedriver"), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            port = next(
                found[1]
                for line in driver.stdout
                if (found := re.search(r"successfully on port (\d+)", line))
            )
            options = {
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    f"--user-data-dir={profile}",
                ],
                "binary": shutil.which("chromium"),
            }
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            base = f"http://127.0.0.1:{port}/session"
            session = _post(base, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            try:
                yield Browser(f"{base}/{session}")
            finally:
                quit_ = urllib.request.Request(f"{base}/{session}", method="DELETE")
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(quit_, timeout=60).close()
        finally:
            # It may have been born deaf to SIGTERM, as children of a process that ignores it are.
            driver.kill()
