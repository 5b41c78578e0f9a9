"""A report in a real Chromium: it asks for nothing, says nothing on the console, and shows all of its images."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from helpers.runs import ATTACK, write_run
from helpers.system_packages import need

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    need([name for name in ("chromium", "chromedriver") if shutil.which(name) is None])
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what an earlier test has left
    browser.set_window_size(1280, 900)
    browser.get(page.as_uri())
    return browser


def requested(browser: webdriver.Chrome) -> list[str]:
    messages: list[dict[str, Any]] = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_it_requests_nothing_and_logs_nothing(opened: webdriver.Chrome, page: Path) -> None:
    addresses = requested(opened)
    assert page.as_uri() in addresses
    assert [address for address in addresses if not address.startswith(("data:", page.as_uri()))] == []
    assert opened.get_log("browser") == []


def test_every_image_is_decoded_and_named(opened: webdriver.Chrome) -> None:
    images = opened.execute_script(
        "return [...document.images].map(i => ({width: i.naturalWidth, alt: i.alt, done: i.complete}))"
    )
    assert len(images) == 16 * 3 + 8 + 8 * 3 + 4
    assert all(image["done"] and image["width"] > 0 and image["alt"] for image in images)


def test_sections_and_plots_are_there(opened: webdriver.Chrome) -> None:
    titles = [heading.text for heading in opened.find_elements(By.TAG_NAME, "h2")]
    wanted = ["What was run", "Data", "Training", "Evaluation", "Images", "Options", "Provenance"]
    assert titles == wanted
    plots = opened.find_elements(By.CSS_SELECTOR, "figure.plot svg")
    assert len(plots) == 6
    assert all(plot.size["height"] > 100 for plot in plots)
    for link in opened.find_elements(By.CSS_SELECTOR, "nav a"):
        target = (link.get_attribute("href") or "").split("#")[1]
        assert opened.find_elements(By.ID, target)


def test_an_instruction_stays_text(opened: webdriver.Chrome) -> None:
    assert opened.title == "demo: Omnitune report"
    assert opened.find_elements(By.TAG_NAME, "script") == []
    texts = [entry.text for entry in opened.find_elements(By.CLASS_NAME, "instruction")]
    assert ATTACK in texts


def test_tables_have_headers(opened: webdriver.Chrome) -> None:
    counts = opened.execute_script(
        "return [...document.querySelectorAll('table')].map(t => t.querySelectorAll('thead th[scope=col]').length)"
    )
    assert counts
    assert min(counts) >= 2


@pytest.mark.parametrize("width", [420, 768, 1280])
def test_the_page_never_scrolls_sideways(opened: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide[0] <= wide[1] == width
