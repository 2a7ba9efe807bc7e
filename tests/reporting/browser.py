"""A real headless Chromium, driven by selenium, that knows what the page asked of the network and complained about."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT_SECONDS = 60


def require_chromium() -> tuple[str, str]:
    """Return the browser and its driver, or skip the test and say what is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = "chromium" if browser is None else "chromedriver"
        pytest.skip(f"{missing} is not installed: apt-get install chromium chromium-driver")
    return browser, driver


@contextmanager
def chromium(width: int = 1280) -> Iterator[Any]:
    """Yield a driver with an empty profile."""
    from selenium import webdriver

    browser, driver = require_chromium()
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": profile})
        found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield found
        finally:
            found.quit()


def until(driver: Any, script: str) -> Any:
    """Return what a script returns as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT_SECONDS, poll_frequency=0.1).until(lambda found: found.execute_script(script))


def prefer(driver: Any, scheme: str) -> None:
    """Let the system prefer "light" or "dark"."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def open_page(driver: Any, path: Path) -> None:
    """Open a report, and wait until it can be used."""
    driver.get_log("performance")
    driver.get(path.as_uri())
    until(driver, "return document.documentElement.dataset.ready")


def draw_everything(driver: Any) -> None:
    """Scroll through the page, so that every figure is drawn as it should be shown now."""
    for place in driver.find_elements("css selector", ".panel:not(.off) .plot"):
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
        until(driver, f"return document.getElementById({json.dumps(place.get_attribute('id'))}).dataset.drawn")


def complaints(driver: Any) -> list[str]:
    """Everything the console was told."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    """Addresses that the page asked for, other than itself and what is inside it."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"].get("documentURL", "").startswith("file:")
    ]
    return [address for address in asked if not address.startswith(("data:", "blob:", "file:"))]
