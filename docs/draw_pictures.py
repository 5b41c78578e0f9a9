"""Draw README's pictures from the reports that `make demo` has left: `make pictures`. Takes Chromium and its driver."""

import shutil
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parent
TASKS = {  # which benchmark shows what an experiment learns, and what that is
    "demo": ("demo_star", "demo: all parameters learn a new shape"),
    "demo_lora": ("demo_background", "demo_lora: a LoRA learns to repaint the background"),
}
PROMPTS = 6  # the first ones of the report, whatever came of them
WIDTH, HEAD_HEIGHT = 1000, 520
STYLE = """body { margin: 0; font: 13px/1.35 system-ui, sans-serif; color: #1b2330; background: #fff; }
table { border-spacing: 10px 6px; } h2 { font-size: 16px; margin: 12px 12px 0; }
th { text-align: right; width: 56px; } td { width: 128px; vertical-align: bottom; }
img { width: 128px; height: 128px; object-fit: contain; object-position: left top; border-radius: 6px; display: block;
  image-rendering: pixelated; }"""


def main() -> None:
    """Writes docs/base_against_tuned.png and docs/report.png."""
    reports = {name: ROOT / f"experiments/{name}/report/index.html" for name in TASKS}
    missing = [str(path) for path in reports.values() if not path.is_file()]
    if missing:
        sys.exit(f"{', '.join(missing)}: not there; run `make demo` first")
    with TemporaryDirectory() as folder:
        browser = start_browser(Path(folder))
        try:
            tables = [table(browser, reports[name], *TASKS[name]) for name in TASKS]
            page = Path(folder) / "pictures.html"
            page.write_text(f"<style>{STYLE}</style><main style='display: inline-block'>{''.join(tables)}</main>")
            browser.get(page.as_uri())
            browser.find_element(By.TAG_NAME, "main").screenshot(str(DOCS / "base_against_tuned.png"))
            browser.set_window_size(WIDTH, HEAD_HEIGHT)
            browser.get(reports["demo"].as_uri())
            browser.save_screenshot(str(DOCS / "report.png"))
        finally:
            browser.quit()


def start_browser(folder: Path) -> webdriver.Chrome:
    """A Chromium without a window, with a profile of its own below `folder`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.set_window_size(WIDTH, 1400)
    return browser


def table(browser: webdriver.Chrome, report: Path, benchmark: str, title: str) -> str:
    """HTML: a column for each prompt, a line for references, base and tuned."""
    browser.get(report.as_uri())
    path = f"//section[@id='images']/h3[.='{benchmark}']/following-sibling::div[1]//article[position() <= {PROMPTS}]"
    articles = browser.find_elements(By.XPATH, path)
    words = [article.find_element(By.CLASS_NAME, "instruction").text for article in articles]
    columns = [[shot for shot in shots(article) if shot[0] != "target"] for article in articles]
    lines = [f"<tr><td></td>{''.join(f'<td>{escape(text)}</td>' for text in words)}</tr>"]
    for cells in zip(*columns, strict=True):
        pictures = "".join(f"<td><img src='{uri}'></td>" for _, uri in cells)
        caption = cells[0][0].replace("step ", "tuned, step ")
        lines.append(f"<tr><th>{caption}</th>{pictures}</tr>")
    return f"<h2>{title}</h2><table>{''.join(lines)}</table>"


def shots(article: WebElement) -> list[tuple[str, str]]:
    """Caption and data URI of each picture of a prompt."""
    figures = article.find_elements(By.TAG_NAME, "figure")
    return [
        (
            figure.find_element(By.CSS_SELECTOR, "figcaption b").text,
            figure.find_element(By.TAG_NAME, "img").get_attribute("src") or "",
        )
        for figure in figures
    ]


if __name__ == "__main__":
    main()
