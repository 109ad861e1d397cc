"""The front page in a real browser: its length, paper, two schemes of colour and the keyboard."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.report.pages.index import write_index
from lib.report.summaries import SCHEMA
from lib.runs.settings import ROOT
from tests.report.pages.browser_checks import browser_path, check_page, why_no_browser
from tests.report.pages.test_index import OTHER, SUMMARY

reason = why_no_browser()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"pages are not opened: {reason}")
PUBLISHED = sorted((ROOT / "outputs" / "reference").glob("*.summary.json"))
SCREENS = 3  # of 1280 x 900

# The smallest contrast of a text with what lies behind it, and that text (WCAG 2.1, 1.4.3).
_CONTRAST = """() => {
  const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = parts(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  let least = [Infinity, ''];
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('.skip, .unseen') || !e.getClientRects().length) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
    const found = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (found < least[0]) least = [found, e.textContent.trim().slice(0, 60)];
  }
  return least;
}"""


@pytest.fixture
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        found = tool.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    for paper in (SUMMARY, OTHER):
        (folder / paper.report).write_text("x")
    return write_index(folder, [SUMMARY, OTHER])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The front page that this version makes of the published summaries."""
    found = [json.loads(path.read_text("utf-8")) for path in PUBLISHED]
    if not found or any(one["schema"] != SCHEMA for one in found):
        pytest.skip("the published summaries are of another version: ./run_all.sh --reference")
    folder = tmp_path_factory.mktemp("published")
    for one in found:
        (folder / one["report"]).write_text("x")
    return write_index(folder, found)


def test_the_published_front_page_is_a_few_screens_long(browser: object, published: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(published.as_uri())
    height = page.evaluate("document.documentElement.scrollHeight")
    page.close()
    assert height <= SCREENS * 900


def test_the_published_front_page_is_sound(published: Path) -> None:
    check_page(published, (1280, 400))


def test_the_front_page_is_sound_from_desktop_to_phone(invented: Path) -> None:
    check_page(invented, (1280, 800, 400))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: object, invented: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(invented.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    least, text = page.evaluate(_CONTRAST)
    page.close()
    assert 4.5 <= least < 21, text


def test_no_column_is_lost_on_paper(browser: object, invented: Path) -> None:
    page = browser.new_page(viewport={"width": 672, "height": 986})  # A4 within its margins
    page.emulate_media(media="print")
    page.goto(invented.as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    shown = page.evaluate(
        "[...document.querySelector('.matrix thead tr').children]"
        ".every(e => e.getBoundingClientRect().width > 20)"
    )
    page.close()
    assert wide == 672 and shown


def test_a_sentence_opens_by_keyboard_in_the_order_of_the_page(
    browser: object, invented: Path
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(invented.as_uri())
    focused = "document.activeElement.textContent.trim()"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the results"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "MELO"  # the first report's name leads to it
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Sentence best."
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    met = []
    for _ in range(3):
        page.keyboard.press("Tab")
        met.append(page.evaluate(focused))
    page.close()
    assert met == ["Table 2: what it says", "Table 2", "Sentence local."]
