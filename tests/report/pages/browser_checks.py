"""Opens finished pages in headless Chromium, without a network, and says what is wrong with them.

Knows nothing of the library: `check_page(path)` works on any report on disk.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)
PRINTED = 672  # pixels of an A4 sheet between its margins
_PATIENCE = 3_600_000  # milliseconds; a guard against a browser that hangs, however busy all is
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= wide + 1) return [];
  const inside = e => e.closest('.scroll, pre, .skip') !== null;
  const found = [...document.body.querySelectorAll('*')]
    .filter(e => !inside(e) && e.getBoundingClientRect().right > wide + 1)
    .map(e => e.tagName.toLowerCase() + '.' + (e.getAttribute('class') || ''));
  return found.length ? found.slice(-4) : ['the page as a whole'];
}"""

_PRINTED = """() => [...document.querySelectorAll('main table, main img, main pre')]
  .filter(e => e.offsetParent && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => `${e.tagName} ${e.caption ? e.caption.textContent.slice(0, 60) : ''}`)"""

_ALTERNATIVES = """() => {
  const named = e => {
    const ids = (e.getAttribute('aria-labelledby') || '').split(/\\s+/).filter(Boolean);
    const told = ids.map(id => document.getElementById(id)?.textContent || '').join(' ');
    return (told || e.getAttribute('aria-label') || '').trim() !== '';
  };
  const hidden = e => e.closest('[aria-hidden="true"]') !== null;
  const bad = [...document.querySelectorAll('img')]
    .filter(e => !(e.getAttribute('alt') || '').trim() && !hidden(e)).map(() => 'img without alt');
  for (const e of document.querySelectorAll('svg'))
    if (!e.parentElement.closest('svg') && !hidden(e) && !named(e)) bad.push('svg without a name');
  return bad;
}"""

_PICTURES = """async () => {
  const bad = [];
  for (const e of document.querySelectorAll('img')) {
    e.loading = 'eager';
    await e.decode().catch(() => bad.push('picture that cannot be shown: ' + e.alt));
  }
  return bad;
}"""

_CONTRAST = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = parse(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const bad = new Set();
  for (const e of document.querySelectorAll('main :is(p, th, td, li, a, code, span, summary)')) {
    const written = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!e.offsetParent || !written) continue;
    const [x, y] = [parse(getComputedStyle(e).color), behind(e)].map(light).sort((a, b) => b - a);
    const ratio = (x + 0.05) / (y + 0.05);
    if (ratio < 4.5) bad.add(`contrast ${ratio.toFixed(1)}: ${e.tagName} ${e.className}`);
  }
  return [...bad];
}"""

_STRUCTURE = """() => {
  const bad = [], seen = new Set();
  if (!document.documentElement.lang) bad.push('no lang attribute');
  if (!document.title.trim()) bad.push('no title');
  if (document.querySelectorAll('h1').length !== 1) bad.push('not exactly one h1');
  if (!document.querySelector('main')) bad.push('no main element');
  const policy = document.querySelector('meta[http-equiv="Content-Security-Policy"]');
  const scripts = [...document.querySelectorAll('script')];
  if (scripts.length > 1 || (scripts.length && !/script-src 'sha256-/.test(policy?.content)))
    bad.push('a script element that the policy does not name');
  for (const e of document.querySelectorAll('table')) {
    if (!e.caption) bad.push('table without a caption: ' + e.textContent.slice(0, 60));
    if ([...e.querySelectorAll('th')].some(th => !th.scope)) bad.push('heading without a scope');
  }
  for (const e of document.querySelectorAll('.scroll'))
    if (scripts.length && [...e.querySelectorAll('a, button, input')].some(i => i.tabIndex >= 0))
      bad.push('more than one tab stop: ' + e.getAttribute('aria-label'));
  for (const e of document.querySelectorAll('[id]')) {
    if (seen.has(e.id)) bad.push('id used twice: ' + e.id);
    seen.add(e.id);
  }
  for (const a of document.querySelectorAll('a[href^="#"]'))
    if (!seen.has(decodeURIComponent(a.getAttribute('href').slice(1))))
      bad.push('link to nowhere: ' + a.getAttribute('href'));
  let level = 0;
  for (const h of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
    const now = Number(h.tagName[1]);
    if (now > level + 1) bad.push('heading level skipped: ' + h.textContent);
    level = now;
  }
  for (const e of document.querySelectorAll('.scroll'))
    if (e.tabIndex < 0 || !e.getAttribute('aria-label')) bad.push('scroll region without focus');
  return bad;
}"""


def browser_path() -> str | None:
    """The installed Chromium or Chrome, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def why_no_browser() -> str:
    """The reason why pages cannot be opened here; "" if they can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "the Python package playwright is not installed"
    if browser_path() is None:
        return f"no browser on the PATH ({', '.join(BROWSERS[:3])}, ...)"
    return ""


def problems(path: Path, widths: Sequence[int] = WIDTHS, shots: Path | None = None) -> list[str]:
    """What is wrong with the page, one sentence each; screenshots go into the folder `shots`."""
    from playwright.sync_api import sync_playwright

    found: list[str] = []
    url = Path(path).resolve().as_uri()
    with sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-dev-shm-usage"],
            timeout=_PATIENCE,
        )  # fmt: skip
        try:
            for width in widths:
                context = browser.new_context(
                    viewport={"width": width, "height": 844}, offline=True
                )
                context.set_default_timeout(_PATIENCE)
                found += [f"{width} px: {text}" for text in _visit(context, url, width, shots)]
                context.close()
        finally:
            browser.close()
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The page at `path` in a browser, while the block lasts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-dev-shm-usage"],
            timeout=_PATIENCE,
        )  # fmt: skip
        try:
            context = browser.new_context(viewport={"width": 1280, "height": 844}, offline=True)
            context.set_default_timeout(_PATIENCE)
            page = context.new_page()
            page.goto(Path(path).resolve().as_uri())
            yield page
        finally:
            browser.close()


def check_page(path: Path, widths: Sequence[int] = WIDTHS) -> None:
    """Raise AssertionError with every problem of the page at `path`."""
    found = problems(path, widths)
    assert not found, f"{path}:\n" + "\n".join(found)


def _visit(context: object, url: str, width: int, shots: Path | None) -> list[str]:
    found: list[str] = []
    page = context.new_page()

    def guard(route: object) -> None:
        target = route.request.url
        if target.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            found.append(f"asked the network for {target}")
            route.abort()

    page.route("**/*", guard)
    page.on("console", lambda m: m.type == "error" and found.append(f"console error: {m.text}"))
    page.on("pageerror", lambda error: found.append(f"page error: {error}"))
    page.on("requestfailed", lambda r: found.append(f"request failed: {r.url[:200]}"))
    page.goto(url, wait_until="load")
    found += [f"wider than the screen: {name}" for name in page.evaluate(_OVERFLOW)]
    found += page.evaluate(_ALTERNATIVES) + page.evaluate(_STRUCTURE) + page.evaluate(_PICTURES)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {text}" for text in page.evaluate(_CONTRAST)]
    page.emulate_media(color_scheme="light")
    # Folded code must not be what breaks the page either.
    page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true })")
    found += [f"wider with code open: {name}" for name in page.evaluate(_OVERFLOW)]
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PRINTED, "height": 1000})
    found += [f"lost in print: {name}" for name in page.evaluate(_PRINTED)]
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": width, "height": 844})
    if shots is not None:
        page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = false })")
        name = Path(url).stem
        page.screenshot(path=str(Path(shots) / f"{name}-{width}.png"), full_page=True)
    return found
