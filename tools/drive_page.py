#!/usr/bin/env python3
"""Uses the page of `ferrotype serve` in a headless Chromium as a person would: keys typed, buttons clicked. Prints what it saw
as JSON, for serve/tests/serve/clients.rs, and writes screenshots.

usage: PYTHON drive_page.py CHROMIUM URL FOLDER KEYED_URL KEY

The server at KEYED_URL wants KEY.
"""

import base64
import json
import pathlib
import subprocess
import sys
import time
import urllib.request

import websocket

browser, url, folder, keyed_url, key = sys.argv[1:]
folder = pathlib.Path(folder)
WAIT = 20.0
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> & a \"tin\" cup"


class Page:
    """A page, by Chromium's DevTools protocol."""

    def __init__(self, port):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=WAIT) as answer:
            target = next(target for target in json.load(answer) if target["type"] == "page")
        # The protocol refuses connections that come with an origin.
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], suppress_origin=True, timeout=WAIT)
        self.number = 0
        self.complaints = []
        self.outside = []
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.hear(message)

    def hear(self, message):
        """Events: complaints in the console, and requests to anywhere else than the server."""
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(parameters["args"])[:600])
        elif method == "Log.entryAdded":
            entry = parameters["entry"]
            self.complaints.append(f"{entry['source']} {entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            if not parameters["request"]["url"].startswith((url, keyed_url, "data:")):
                self.outside.append(parameters["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.number += 1
            self.socket.send(json.dumps({"id": self.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}))

    def take_complaints(self, first):
        """Those that were expected: the browser itself writes each answer with an error status to the console."""
        taken = self.complaints[first:]
        del self.complaints[first:]
        return taken

    def look(self, script):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, script):
        """Waits until an expression is true."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if value := self.look(script):
                return value
            time.sleep(0.02)
        state = self.look("document.getElementById('status').textContent + '|' + document.getElementById('alert').textContent")
        raise RuntimeError(f"not within {WAIT} s: {script} ({state}; {self.complaints})")

    def press(self, key, modifiers=0):
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, " ": 32, "a": 65}
        event = {"key": key, "code": key, "modifiers": modifiers, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector):
        """Where a person would click: refuses what is hidden or covered."""
        self.look(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        place = self.look(
            f"(() => {{ const wanted = document.querySelector({json.dumps(selector)}); const r = wanted.getBoundingClientRect();"
            " const [x, y] = [r.x + r.width / 2, r.y + r.height / 2]; const hit = document.elementFromPoint(x, y);"
            " return wanted.contains(hit) || hit?.contains(wanted) ? [x, y] : null; })()"
        )
        if place is None:
            raise RuntimeError(f"{selector} cannot be clicked")
        for kind in ["mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, selector, text):
        """Replaces what a field holds."""
        self.look(f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.focus(); field.select(); }})()")
        self.call("Input.insertText", text=text)

    def dress(self, width, height, theme, phone=False):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def shoot(self, name, whole=False):
        time.sleep(0.4)
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        (folder / f"{name}.png").write_bytes(base64.b64decode(data))

    def open(self):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.getElementById('sampler')?.length > 0")

    def generate(self, prompt, **fields):
        self.type("#prompt", prompt)
        for name, value in fields.items():
            self.type(f"#{name}", str(value))
        before = self.look("document.querySelectorAll('.card img').length")
        self.click("#generate")
        return before


CARDS = "[...document.querySelectorAll('.card')]"
SHOWN = f"{CARDS}.filter((card) => card.querySelector('img')?.naturalWidth > 0).length"


def use(page):
    seen = {}
    page.dress(1280, 900, "light")
    page.open()
    seen["focus"] = page.look("document.activeElement.id")
    seen["labels_missing"] = page.look(
        "[...document.querySelectorAll('input, textarea, select, button')]"
        ".filter((e) => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).map((e) => e.id)"
    )
    page.shoot("empty-light")

    # By keyboard alone: a prompt, and Ctrl+Enter.
    page.call("Input.insertText", text="a lighthouse above the sea at dusk")
    page.press("Enter", modifiers=2)
    page.until("!document.getElementById('running').hidden")
    page.until("document.getElementById('progress').value > 0.2")
    seen["progress"] = page.look("document.querySelector('.plate span').textContent")
    seen["focus_while_sampling"] = page.look("document.activeElement.id")
    page.until(f"{SHOWN} === 1 && document.getElementById('running').hidden")
    seen["first"] = page.look(
        "(() => { const image = document.querySelector('.card img');"
        " return { width: image.naturalWidth, alt: image.alt, path: new URL(image.src).pathname }; })()"
    )

    # Several, in other shapes, with the mouse.
    page.click("#sizes label:nth-child(2)")
    page.generate("a tin toy train crossing a viaduct", n=2, steps=12)
    page.until(f"{SHOWN} === 3")
    page.click("#sizes label:nth-child(3)")
    page.generate("an orchard in blossom, seen through morning fog", n=2)
    page.until(f"{SHOWN} === 5")
    page.click("#sizes label:last-child")
    page.generate(HOSTILE, width=512, height=288, n=1, negative_prompt="people, text")
    page.until(f"{SHOWN} === 6")
    page.click("#sizes label:nth-child(1)")
    page.generate("a quiet harbour with fishing boats, early light, long exposure", n=3)
    page.until(f"{SHOWN} === 9 && document.getElementById('running').hidden")
    seen["title"] = page.look("document.title")
    seen["hostile_text"] = page.look(f"{CARDS}.map((card) => card.querySelector('p').textContent)")
    seen["planted_elements"] = page.look("document.querySelectorAll('[onerror]').length")

    # While one samples, with steps enough that it still does after two screenshots on a busy machine: it is cancelled in its middle.
    page.generate("a market square in the rain", n=2, steps=300)
    page.until("document.getElementById('progress').value > 0.3")
    page.look("scrollTo(0, 0)")
    page.shoot("sampling-light")
    page.dress(1280, 900, "dark")
    page.shoot("sampling-dark")
    seen["cancel"] = [page.look(f"{CARDS}.length")]
    page.click("#cancel")
    page.until("document.getElementById('running').hidden")
    seen["cancel"] += [page.look(f"{CARDS}.length"), page.look("document.getElementById('status').textContent")]

    seen["complaints"] = page.take_complaints(0)
    # Faults stand beside their fields; the generator's failure is told.
    page.generate("x", steps=0, guidance=-1)
    page.until("document.getElementById('steps-fault').textContent")
    seen["faults"] = page.look(
        "[...document.querySelectorAll('[aria-invalid=true]')].map((e) => e.id + ': ' + document.getElementById(e.id + '-fault').textContent)"
    )
    seen["complaints_of_faults"] = page.take_complaints(0)
    page.shoot("faults-dark")
    page.generate("fail", steps=4, guidance=4)
    page.until("!document.getElementById('alert').hidden")
    seen["alert"] = page.look("document.getElementById('alert').textContent")

    # The gallery: a large picture, its settings as text, and back into the form.
    page.dress(1280, 900, "light")
    page.click(".card:nth-child(5) button")
    page.until("document.getElementById('large').open && document.getElementById('large-image').complete")
    page.shoot("large-light")
    page.dress(1280, 900, "dark")
    page.shoot("large-dark")
    page.press("ArrowRight")
    seen["place"] = page.look("document.getElementById('large-place').textContent")
    page.press("ArrowLeft")
    seen["large"] = page.look("document.getElementById('large-prompt').textContent")
    page.click("#copy")
    page.until("document.getElementById('copied').textContent")
    seen["copied"] = page.look("navigator.clipboard.readText()")
    seen["download"] = page.look("document.getElementById('download').download")
    page.click("#use")
    seen["used"] = page.look(
        "Object.fromEntries(['prompt', 'negative_prompt', 'steps', 'seed', 'n'].map((id) => [id, document.getElementById(id).value]))"
    )
    seen["used"]["size"] = page.look("document.getElementById('form').elements.size.value")
    count = page.look(SHOWN)
    page.click("#generate")
    page.until(f"{SHOWN} === {count + 1}")
    seen["repeated"] = page.look(
        "(async () => { const images = [...document.querySelectorAll('.card img')];"
        " const digest = async (image) => [...new Uint8Array(await crypto.subtle.digest('SHA-256',"
        " await (await fetch(image.src)).arrayBuffer()))].join();"
        " return await digest(images[0]) === await digest(images[5]); })()"
    )

    # After a reload all is there again; what the server has dropped can be made again, in its place.
    before = page.look(f"{CARDS}.map((card) => card.querySelector('p').textContent)")
    page.look("(() => { const kept = JSON.parse(localStorage.getItem('ferrotype.gallery')); kept[1].path = '/pictures/' + '0'.repeat(32) + '.png';"
              " localStorage.setItem('ferrotype.gallery', JSON.stringify(kept)); })()")
    before_gone = len(page.complaints)
    page.open()
    page.until(f"{SHOWN} === {count}")
    seen["kept"] = before == page.look(f"{CARDS}.map((card) => card.querySelector('p').textContent)")
    page.until("!!document.querySelector('.card .gone')")
    seen["complaints_of_gone"] = page.take_complaints(before_gone)
    page.click(".card:nth-child(2) button")
    page.click("#again")
    page.until(f"{SHOWN} === {count + 1} && document.getElementById('running').hidden")
    seen["made_again"] = before == page.look(f"{CARDS}.map((card) => card.querySelector('p').textContent)")

    page.dress(1440, 960, "light")
    page.look("scrollTo(0, 0)")
    page.shoot("gallery-light")
    page.dress(1440, 960, "dark")
    page.shoot("gallery-dark")
    for theme in ["light", "dark"]:
        page.dress(390, 844, theme, phone=True)
        page.look("scrollTo(0, 0)")
        page.shoot(f"phone-{theme}")
        seen[f"phone_overflow_{theme}"] = page.look("document.documentElement.scrollWidth > innerWidth")
        page.look("document.querySelector('section').scrollIntoView()")
        page.shoot(f"phone-gallery-{theme}")
        page.click(".card button")
        page.until("document.getElementById('large').open")
        page.shoot(f"phone-large-{theme}")
        page.click("#close")
    seen["complaints"] += page.take_complaints(0)

    # A server that wants a key is told one; a wrong one is asked for again.
    page.dress(1280, 900, "light")
    page.call("Page.navigate", url=keyed_url)
    page.until("document.getElementById('key-dialog')?.open")
    # Not in a header: it is neither sent nor kept.
    page.type("#key", "ключ")
    page.press("Enter")
    time.sleep(0.2)
    seen["refused_key"] = page.look(
        "[document.getElementById('key-dialog').open, document.getElementById('key').validity.patternMismatch,"
        " sessionStorage.getItem('ferrotype.key')]"
    )
    page.look("document.getElementById('key').value = ''")
    for typed in ["wrong", key]:
        page.until("document.getElementById('key-dialog')?.open && document.getElementById('key').value === ''")
        if typed == key:
            page.shoot("key-light")
        page.type("#key", typed)
        page.press("Enter")
    page.until("document.getElementById('sampler').length > 0")
    seen["complaints_of_key"] = page.take_complaints(0)
    page.generate("a locked tin box")
    page.until(f"{SHOWN} === 1")
    seen["made_with_key"] = True
    seen["complaints"] += page.complaints
    seen["outside"] = page.outside
    return seen


def main():
    folder.mkdir(parents=True, exist_ok=True)
    profile = folder / "profile"
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
        "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
    ]
    process = subprocess.Popen([browser, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # The port it chose stands in a file of its profile.
        chosen = profile / "DevToolsActivePort"
        end = time.monotonic() + WAIT
        while not (chosen.exists() and len(chosen.read_text().splitlines()) == 2):
            if time.monotonic() > end:
                raise RuntimeError("the browser does not start")
            time.sleep(0.05)
        page = Page(chosen.read_text().splitlines()[0])
        page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"], origin=url)
        print(json.dumps(use(page)))
        page.call("Browser.close")
    finally:
        process.terminate()
        process.wait(timeout=10)


main()
