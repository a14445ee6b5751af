"""A real browser without a window, for the tests of scripts/report.py: chromium, driven by selenium.

Both come with scripts/setup.sh when CNNSCOPE_TESTS=1; MISSING says what to install where they are not there.
"""

from __future__ import annotations

import io
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
MISSING = ", ".join(name for name, there in (("chromium", CHROMIUM), ("chromium-driver", DRIVER), ("selenium", find_spec("selenium"))) if not there)
# In the page: where a sample of this index is drawn, from the left and top edge of the n-th map.
PLACE = """const [n, i] = arguments, v = views[n], l = v.div._fullLayout, [x, y] = v.map.axes;
           return [l.xaxis.l2p(x[i]) + l.xaxis._offset, l.yaxis.l2p(y[i]) + l.yaxis._offset];"""


class Browser:
    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader", "--hide-scrollbars",
                         "--disable-background-networking", "--force-device-scale-factor=1"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.address = ""
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_page_load_timeout(120)
        self.driver.set_script_timeout(60)

    def open(self, page: Path, width: int = 1280, height: int = 1000, dark: bool = False) -> None:
        """Ready when the maps are drawn."""
        self.size(width, height)
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.address = page.resolve().as_uri()
        self.complaints()
        self.requests()
        self.driver.get(self.address)
        self.wait("return document.documentElement.dataset.ready")

    def size(self, width: int, height: int) -> None:
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})

    def js(self, script: str, *arguments: object):
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, timeout: float = 60):
        """The first true value of a script."""
        end = time.monotonic() + timeout
        while not (value := self.js(script)):
            assert time.monotonic() < end, f"still false after {timeout} s: {script}"
            time.sleep(0.05)
        return value

    def find(self, css: str):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", css)

    def choose(self, name: str, value: str) -> None:
        """Of a select with that id, as a person would; returns when the maps are drawn anew."""
        from selenium.webdriver.support.ui import Select

        Select(self.find(f"#{name}")).select_by_value(value)
        self.frames()

    def frames(self) -> None:
        """Waits until what was drawn is on the screen."""
        self.driver.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60)))")

    def actions(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver, duration=20)

    def place(self, view: int, index: int) -> tuple[float, float]:
        return tuple(self.js(PLACE, view, index))

    def hover(self, view: int, index: int, alone: bool = True) -> None:
        """Moves the mouse to the point of a sample, by way of the map's corner; one that is alone there comes into the panel."""
        self.hover_at(view, *self.place(view, index))
        if alone:
            self.wait(f"return document.getElementById('panel').dataset.index === '{index}'", timeout=5)

    def hover_at(self, view: int, x: float, y: float) -> str:
        """The index of the sample that the panel shows then."""
        self.js("views[arguments[0]].div.scrollIntoView({block: 'center', behavior: 'instant'})", view)
        left, top = self.js("const r = views[arguments[0]].div.getBoundingClientRect(); return [r.left, r.top]", view)
        move = self.actions()
        move.w3c_actions.pointer_action.move_to_location(round(left + 3), round(top + 200))
        move.w3c_actions.pointer_action.move_to_location(round(left + x), round(top + y))
        move.perform()
        self.frames()
        return self.js("return document.getElementById('panel').dataset.index")

    def drag(self, view: int, way: list[tuple[float, float]]) -> None:
        """Presses the mouse at the first of these places on a map (pixels), releases it at the last."""
        self.js("views[arguments[0]].div.scrollIntoView({block: 'center', behavior: 'instant'})", view)
        left, top = self.js("const r = views[arguments[0]].div.getBoundingClientRect(); return [r.left, r.top]", view)
        move = self.actions()
        pointer = move.w3c_actions.pointer_action
        for step, (x, y) in enumerate(way):
            pointer.move_to_location(round(left + x), round(top + y))
            if step == 0:
                pointer.pointer_down()
        pointer.release()
        move.perform()
        time.sleep(0.5)  # a lasso ends after the time of a double click
        self.frames()

    def picture(self, css: str, number: int = 0) -> np.ndarray:
        """The pixels (height, width, 3) of an element."""
        from selenium.webdriver.common.by import By

        element = self.driver.find_elements(By.CSS_SELECTOR, css)[number]
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        self.frames()
        return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))

    def complaints(self) -> list[str]:
        """Errors on the console since the last call."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]

    def requests(self) -> set[str]:
        """Addresses asked for since the last call, but the page and what lies in it."""
        import json

        messages = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
        return {address for address in asked if address != self.address and not address.startswith(("data:", "blob:"))}

    def close(self) -> None:
        self.driver.quit()
