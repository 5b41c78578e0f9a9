"""The report of 500 prompts and four rows: how fast it is there, and that it scrolls."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver

from helpers.runs import save_json, write_evaluation, write_options, write_training
from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt
from omnitune.paths import EvaluatedStep
from omnitune.report.build import BenchmarkEntry, build_report

pytestmark = pytest.mark.browser

PROMPTS, STEPS = 500, (0, 40, 80, 120)
SIDE = 160
SCROLLED = """
const done = arguments[0], frames = []; let last = performance.now();
function step(now) {
  frames.push(now - last); last = now;
  window.scrollBy({top: 600, behavior: 'instant'});
  if (frames.length < 150) requestAnimationFrame(step); else done([frames, window.scrollY]);
}
requestAnimationFrame(step);
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page. Images are slight noise, of which the encoder makes about as many bytes as are allowed for each."""
    root = tmp_path_factory.mktemp("large")
    noise = np.random.default_rng(0).normal(128, 8, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    image = root / "noise.png"
    Image.fromarray(noise).save(image, compress_level=1)
    experiment = root / "experiments/demo"
    write_options(experiment)
    write_training(experiment)
    save_json(root / "prepared/demo/validation/summary.json", {})
    prompts = [Prompt(f"t2i-{number:03d}", "t2i", f"a picture of the number {number}") for number in range(PROMPTS)]
    entry = BenchmarkEntry("large", Benchmark(prompts="p.jsonl", check="demo_scene"), prompts)
    for step in STEPS:
        write_evaluation(experiment, entry, step, 0.2 + step / 200, image=image)
    folders = {EvaluatedStep(step): experiment / f"evaluation/{step}" for step in STEPS}
    page = experiment / "report/index.html"
    return build_report(experiment, root / "prepared/demo", [entry], page, evaluations=folders)


def test_five_hundred_prompts_are_there_at_once_and_scroll(browser: webdriver.Chrome, large: Path) -> None:
    size = large.stat().st_size
    assert 5_000_000 < size < 15_000_000, "a page that people send to others"
    browser.set_window_size(1280, 900)
    started = time.perf_counter()
    browser.get(large.as_uri())
    loaded = time.perf_counter() - started
    browser.execute_script(
        "document.querySelector('.more').click(); document.querySelector('#images').scrollIntoView()"
    )
    frames, place = browser.execute_async_script(SCROLLED)
    shown = browser.execute_script("return document.querySelectorAll('.gallery .example:not([hidden])').length")
    slow = sorted(frames)[-5:]
    print(f"{size / 1e6:.1f} MB, loaded in {loaded:.2f} s, {place:.0f} pixels scrolled, longest frames {slow} ms")
    assert shown == PROMPTS and place > 20_000
    assert loaded < 2
    assert np.percentile(frames, 95) < 200, "no stall"
