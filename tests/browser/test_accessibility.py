"""axe-core over the pages: what keyboards, screen readers and weak eyes need; light and dark, wide and on a phone."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

pytestmark = pytest.mark.browser

SERIOUS = ("serious", "critical")


def findings(browser: webdriver.Chrome) -> list[str]:
    """Rule, weight and first place of each serious finding."""
    script = (resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(script)
    found: dict[str, Any] = browser.execute_async_script("axe.run(document).then(arguments[0])")
    assert found["passes"], "it has looked"
    return [
        f"{entry['id']} ({entry['impact']}, {len(entry['nodes'])}): {entry['nodes'][0]['html'][:200]}"
        for entry in found["violations"]
        if entry["impact"] in SERIOUS
    ]


@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_serious_finding(opened: webdriver.Chrome, width: int, scheme: str) -> None:
    wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    page = findings(opened)
    opened.execute_script("document.querySelector('.gallery a.enlarge').click()")
    viewer = findings(opened)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert page + viewer == []


def test_axe_finds_what_is_wrong(opened: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text('<html lang="en"><title>x</title><main><h1>x</h1><img src="data:,"><button></button></main></html>')
    opened.get(page.as_uri())
    assert [line.partition(" ")[0] for line in findings(opened)] == ["button-name", "image-alt"]
