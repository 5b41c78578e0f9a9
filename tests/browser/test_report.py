"""A report in a real Chromium: it asks for nothing, says nothing on the console, shows all images and compares two."""

import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from helpers.runs import ATTACK

pytestmark = pytest.mark.browser


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
        "const found = [...document.querySelectorAll('.shots img')]; found.forEach(i => { i.loading = 'eager' });"
        "await Promise.all(found.map(i => i.decode()));"
        "return found.map(i => ({width: i.naturalWidth, alt: i.alt, done: i.complete}))"
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


def test_bars_of_a_histogram_lie_beside_their_labels(opened: webdriver.Chrome) -> None:
    rows = opened.find_elements(By.CSS_SELECTOR, ".columns .bar")
    assert len(rows) > 5 and {row.value_of_css_property("display") for row in rows} == {"grid"}


def test_an_instruction_stays_text(opened: webdriver.Chrome) -> None:
    assert opened.title == "demo: Omnitune report"
    assert len(opened.find_elements(By.TAG_NAME, "script")) == 1, "our own"
    texts = [entry.text for entry in opened.find_elements(By.CLASS_NAME, "instruction")]
    assert ATTACK in texts
    enlarge(opened, "t2i-000")
    assert opened.find_element(By.CSS_SELECTOR, "#viewer .instruction").text == ATTACK
    assert opened.title == "demo: Omnitune report"


def test_scripts_of_others_do_not_run(opened: webdriver.Chrome) -> None:
    opened.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
    run = "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s);"
    assert opened.execute_script(f"{run} return window.owned ?? null") is None
    assert "Content Security Policy" in opened.get_log("browser")[0]["message"]


def enlarge(browser: webdriver.Chrome, key: str) -> None:
    """Clicks the last row's image of a prompt of the first gallery."""
    links = browser.find_elements(By.CSS_SELECTOR, f".gallery [data-key={key}] [data-kind=row] a.enlarge")
    browser.execute_script("arguments[0].click()", links[1])


def choose(browser: webdriver.Chrome, control: str, value: str) -> None:
    browser.execute_script(
        "const c = document.querySelector(arguments[0]); c.value = arguments[1];"
        "for (const kind of ['input', 'change']) c.dispatchEvent(new Event(kind))",
        *(control, value),
    )


def shown_keys(browser: webdriver.Chrome) -> list[str]:
    return browser.execute_script(
        "const shown = document.querySelector('.gallery').querySelectorAll('.example:not([hidden])');"
        "return [...shown].map(e => e.dataset.key)"
    )


def test_images_are_filtered_searched_and_sorted(opened: webdriver.Chrome) -> None:
    assert len(shown_keys(opened)) == 12
    opened.execute_script("document.querySelector('.more').click()")
    assert len(shown_keys(opened)) == 16
    choose(opened, ".gallery .task", "edit")
    assert {key[:4] for key in shown_keys(opened)} == {"edit"} and len(shown_keys(opened)) == 8
    choose(opened, ".gallery input", "EDIT-003")
    assert shown_keys(opened) == ["edit-003"]
    choose(opened, ".gallery input", "")
    choose(opened, ".gallery .task", "")
    choose(opened, ".gallery .order", "check_passed 1")
    assert set(shown_keys(opened)[-3:]) == {"edit-001", "t2i-000", "edit-015"}, "right before, or wrong after"


def test_scores_are_sorted_and_filtered(opened: webdriver.Chrome) -> None:
    def column(number: int) -> list[str]:
        table = opened.find_element(By.CSS_SELECTOR, "table.scores")
        rows = table.find_elements(By.CSS_SELECTOR, "tbody tr:not([hidden])")
        return [row.find_elements(By.XPATH, "*")[number].text for row in rows]

    assert set(column(0)) == {"all"}
    choose(opened, "select.task", "edit")
    assert set(column(0)) == {"edit"}
    button = opened.find_element(By.XPATH, "//table[contains(@class, 'scores')]//th/button[.='verdict']")
    for order, verdicts in (("ascending", ["better"]), ("descending", ["better"])):
        opened.execute_script("arguments[0].click()", button)
        assert opened.find_element(By.CSS_SELECTOR, f"th[aria-sort={order}]").text.startswith("verdict")
        assert column(7)[:1] == verdicts, "what has none stays last"


def test_the_viewer_compares_two_images(opened: webdriver.Chrome) -> None:
    enlarge(opened, "t2i-000")

    def state(body: str) -> Any:
        return opened.execute_script(f"const v = document.getElementById('viewer'); return {body}")

    sources = "[...v.querySelectorAll('.pane img')].map(i => i.getAttribute('src'))"
    assert state("v.open")
    assert state(sources) == [f"../evaluation/{step}/scenes/images/t2i-000.png" for step in (0, 120)], "whole images"
    choose(opened, "#viewer input[type=range]", "25")
    assert state("getComputedStyle(v.querySelector('.pane:last-child')).clipPath") == "inset(0px 0px 0px 25%)"
    body = opened.find_element(By.TAG_NAME, "body")
    body.send_keys("+")
    scales = "[...v.querySelectorAll('.pane img')].map(i => new DOMMatrix(getComputedStyle(i).transform).a)"
    assert state(scales) == [1.5, 1.5], "together"
    body.send_keys("j")
    assert state("v.querySelector('.note').textContent") == "t2i-002"
    assert state(sources)[1] == "../evaluation/120/scenes/images/t2i-002.png"
    body.send_keys("kk")
    assert state("v.querySelector('.note').textContent") == "edit-011"
    assert opened.get_log("browser") == []


def test_it_is_dark_where_people_want_it(opened: webdriver.Chrome) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(colour)
    wish = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    dark = opened.execute_script(colour)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (light, dark) == ("rgb(245, 247, 250)", "rgb(18, 23, 31)")


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


def test_a_curve_can_be_enlarged(opened: webdriver.Chrome) -> None:
    button = opened.find_element(By.CSS_SELECTOR, ".plots .widen")
    widths = []
    for pressed in ("true", "false"):
        opened.execute_script("arguments[0].click()", button)
        assert button.get_attribute("aria-pressed") == pressed
        widths.append(opened.find_element(By.CSS_SELECTOR, ".plots .plot svg").size["width"])
    assert widths[0] > 2 * widths[1]


# Of the last place of a plot's first curve the numbers that the axes' ticks say; and what the ticks say.
READ = """
const [svg] = arguments, numberOf = (text) => Number(text.textContent.replaceAll('\u2212', '-'));
const partsOf = (name, hasTick) =>
  [...svg.querySelectorAll(`.${name}-axis > g`)].filter((g) => Boolean(g.querySelector('use')) === hasTick);
const [factor] = [...partsOf('y', false).map((g) => numberOf(g.querySelector('text'))), 1];
const ticksOf = (name) => partsOf(name, true).map((g) => {
  const by = g.transform.baseVal.consolidate()?.matrix ?? {e: 0, f: 0};
  const place = Number(g.querySelector('use').getAttribute(name)) + (name === 'x' ? by.e : by.f);
  return [place, numberOf(g.querySelector('text')) * (name === 'y' ? factor : 1)];
}).sort((a, b) => a[1] - b[1]);
const [curve] = [...svg.querySelectorAll('path[clip-path]')].filter((p) => !p.closest('.x-axis, .y-axis'));
const last = curve.getAttribute('d').trim().split(/\\s+/).slice(-2).map(Number);
return ['x', 'y'].map((name, i) => {
  const ticks = ticksOf(name), [[a, m], [b, n]] = [ticks[0], ticks.at(-1)];
  return {last: m + (last[i] - a) / (b - a) * (n - m), ticks: ticks.map((tick) => tick[1])};
});
"""


@pytest.mark.parametrize("title", ["Loss", "Learning rate"])
def test_a_part_of_a_curve_can_be_looked_at_alone(opened: webdriver.Chrome, title: str) -> None:
    """Axes and curve say the same numbers before and after, whole axes with a factor among them; a second stroke takes
    a part of the part."""
    plot = opened.find_element(By.XPATH, f"//figure[contains(@class, 'plot')][figcaption/b = '{title}']")
    svg, back = plot.find_element(By.TAG_NAME, "svg"), plot.find_element(By.XPATH, ".//button[.='whole']")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    width, height = svg.size["width"], svg.size["height"]

    def drag(x: float, y: float, to_x: float, to_y: float) -> None:
        """In shares of the picture, from its middle."""
        chain = ActionChains(opened, duration=50).move_to_element_with_offset(svg, round(x * width), round(y * height))
        chain.click_and_hold().move_by_offset(round((to_x - x) * width), round((to_y - y) * height)).release().perform()

    whole = opened.execute_script(READ, svg)
    assert not back.is_displayed()
    drag(-0.1, -0.2, 0.4, 0.3)
    part = opened.execute_script(READ, svg)
    assert back.is_displayed()
    for before, after in zip(whole, part, strict=True):
        assert after["last"] == pytest.approx(before["last"], abs=0.002 * max(before["ticks"]))
        assert 2 <= len(after["ticks"]) <= 7
        assert max(after["ticks"]) - min(after["ticks"]) < 0.8 * (max(before["ticks"]) - min(before["ticks"]))
    drag(-0.2, 0.1, 0.1, 0.1)
    smaller = opened.execute_script(READ, svg)
    assert smaller[0]["ticks"] != part[0]["ticks"] and smaller[1]["ticks"] == part[1]["ticks"], "a level stroke"
    assert smaller[0]["last"] == pytest.approx(whole[0]["last"], abs=0.002 * max(whole[0]["ticks"]))
    drag(0, 0, 0, 0)
    assert opened.execute_script(READ, svg) == smaller, "a click is no stroke"
    opened.execute_script("arguments[0].click()", back)
    assert opened.execute_script(READ, svg) == whole and not back.is_displayed()
    assert opened.get_log("browser") == []
