"""The page of scripts/report.py in a real browser: what it shows, and what it does when somebody uses it."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from browser import MISSING, Browser
from make_result import make_result
from PIL import Image
from test_report import Tables, judged, report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import cnnscope  # noqa: E402

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING}: not here; CNNSCOPE_TESTS=1 scripts/setup.sh installs it")
HUES = np.array([[int(hue[i : i + 2], 16) for i in (1, 3, 5)] for hue in cnnscope.HUES])


@pytest.fixture(scope="module")
def browser():
    driven = Browser()
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """(page, what is behind it): ten classes, two maps, all measures."""
    folder = tmp_path_factory.mktemp("page")
    truth = judged(folder / "a.nc", trust=True, several=True, unlabelled=0.05)
    ds = cnnscope.open_result(folder / "a.nc")
    truth["tsne"] = ds.logits_tsne.values
    return report(folder / "a.nc"), truth


@pytest.fixture
def shown(browser, synthetic):
    """The same, opened anew; at the end no error was on the console and nothing was fetched."""
    browser.open(synthetic[0])
    yield browser, synthetic[1]
    assert browser.complaints() == []
    assert browser.requests() == set()


def seen_at(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """The colour at a place of a map, inside its border."""
    return picture[round(y) + 1, round(x) + 1].astype(int)


def lonely(points: np.ndarray, wanted: np.ndarray, number: int = 20) -> list[int]:
    """Those of the wanted points that have no other near."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return sorted(np.flatnonzero(wanted).tolist(), key=lambda i: -apart[i].min())[:number]


@needs_browser
def test_points_have_their_colours(shown):
    """By label, by prediction, right or wrong: read from the screen at the places of lonely points."""
    browser, truth = shown
    browser.find("#fade").click()
    probes = lonely(truth["tsne"], truth["label"] >= 0)
    for colour in ("label", "prediction"):
        browser.choose("colour", colour)
        picture = browser.picture(".map", 1)
        for i in probes:
            expected = 0.85 * HUES + 0.15 * 255  # not quite opaque
            distance = np.abs(expected - seen_at(picture, *browser.place(1, i))).sum(1)
            assert distance.argmin() == truth[colour][i] and distance.min() < 30, f"sample {i}"
    browser.choose("colour", "right or wrong")
    picture = browser.picture(".map", 1)
    for i in lonely(truth["tsne"], truth["wrong"], 5) + probes[:5]:
        red, _, blue = seen_at(picture, *browser.place(1, i))
        assert (red > blue) == truth["wrong"][i]
    assert browser.text("#key").split() == ["right", "wrong", "no", "label"]
    browser.choose("colour", "probability")
    assert browser.text("#key").startswith("probability 0.")


@needs_browser
def test_what_is_not_to_be_trusted_fades(shown):
    browser, truth = shown
    assert "low trustworthiness" in browser.text("#fade-why")
    probes = lonely(truth["tsne"], truth["label"] >= 0, 60)
    faded = browser.picture(".map", 1)
    browser.find("#fade").click()
    plain = browser.picture(".map", 1)
    light = np.array([seen_at(faded, *browser.place(1, i)).sum() - seen_at(plain, *browser.place(1, i)).sum() for i in probes])
    order = np.argsort(truth["trust"][probes])
    assert np.median(light[order[:6]]) > 150 and np.abs(light[order[-6:]]).max() < 60
    assert not browser.find("#fade-why").is_displayed()


@needs_browser
def test_hover_shows_the_sample(shown):
    """Its numbers, its own pixels, and a ring at its place on the other maps."""
    browser, truth = shown
    for i in [*lonely(truth["tsne"], truth["wrong"], 1), *lonely(truth["tsne"], truth["label"] >= 0, 2)]:
        browser.hover(1, i)
        panel = browser.text("#panel")
        assert panel.splitlines()[0] == f"Sample {i}"
        assert f"prediction\n{truth['prediction'][i]}{' (wrong)' if truth['wrong'][i] else ''}\n" in panel and f"label\n{truth['label'][i]}" in panel
        assert float(re.search(r"probability\n([\d.]+)", panel)[1]) == pytest.approx(truth["probability"][i], abs=1e-3)
        assert float(re.search(r"t-SNE of logits: trustworthiness\n([\d.]+)", panel)[1]) == pytest.approx(truth["trust"][i], abs=1e-3)
        assert float(re.search(r"deletion ([\d.]+)", panel)[1]) == pytest.approx(truth["deletion"][i], abs=1e-3)
        lines = browser.js("""return [...document.querySelectorAll('#panel dd')].map((e) => {
            const range = document.createRange(); range.selectNodeContents(e); return range.getClientRects().length; })""")
        assert max(lines) == 1  # no number is broken over lines
        seen = Image.fromarray(browser.picture("#panel .tile")).resize((24, 20), Image.Resampling.BOX)
        assert np.abs(np.asarray(seen)[:, :, 0].astype(int) - truth["image"][i, 0]).mean() < 4
        for view in (0, 1):
            ring = browser.js("const r = views[arguments[0]].ring.style; return [parseFloat(r.left), parseFloat(r.top)]", view)
            assert ring == pytest.approx(browser.place(view, i), abs=0.5)
            edge = browser.picture(".map", view)[round(ring[1]) - 9 : round(ring[1]) - 5, round(ring[0]) + 1]
            assert edge.min() < 60  # the black of the ring above the point


@needs_browser
def test_a_selection_shows_in_all_maps(shown):
    """A lasso around points of the t-SNE map: the others fade in the PCA, and in the gaps of what was said before."""
    browser, truth = shown
    browser.find("#fade").click()
    at = np.array([browser.place(1, i) for i in range(400)])
    inside = np.linalg.norm(at - np.median(at[truth["label"] == 4], 0), axis=1) < 40
    before = browser.picture(".map", 0)
    turns = np.linspace(0, 2 * np.pi, 24)
    browser.drag(1, [tuple(np.median(at[truth["label"] == 4], 0) + 40 * np.array([np.cos(a), np.sin(a)])) for a in turns])
    found = set(browser.js("return [...state.selected]"))
    assert len(found) >= 15 and len(found ^ set(np.flatnonzero(inside).tolist())) <= 3  # the circle has 23 corners
    mistakes = sum(truth["wrong"][i] for i in found)
    assert f"{len(found)} selected, {mistakes} of these wrong" in browser.text("#count")
    after = browser.picture(".map", 0)
    pca = np.array([browser.place(0, i) for i in range(400)])
    chosen = np.isin(np.arange(400), list(found))
    change = np.array([seen_at(after, *p).sum() - seen_at(before, *p).sum() for p in pca])
    kept, lost = lonely(pca, chosen, 8), lonely(pca, ~chosen, 8)
    assert change[lost].min() > 60 and change[kept].max() < 40
    browser.choose("kind", "selected")
    assert browser.text("#count").startswith(f"{len(found)} of 400 samples shown")
    browser.find("#clear").click()
    assert browser.text("#count") == "400 of 400 samples shown."


@needs_browser
def test_filters_and_search(shown):
    browser, truth = shown
    for choice, wanted in {"wrong": truth["wrong"], "likely label errors": np.isin(np.arange(400), truth["suspects"])}.items():
        browser.choose("kind", choice)
        assert browser.text("#count") == f"{wanted.sum()} of 400 samples shown."
        assert set(browser.js("return views[0].shown")) == set(np.flatnonzero(wanted).tolist())
    browser.choose("kind", "all")
    browser.choose("category", "3")
    browser.find("#fade").click()
    assert browser.text("#count") == f"{(truth['label'] == 3).sum()} of 400 samples shown."
    picture = browser.picture(".map", 1)[40:]
    colours = picture.reshape(-1, 3)[np.ptp(picture.reshape(-1, 3), 1) > 60]
    assert len(colours) and (np.abs(colours[:, None].astype(int) - HUES).sum(2).argmin(1) == 3).mean() > 0.7
    browser.find("#search").send_keys("257\n")
    assert browser.text("#panel").startswith("Sample 257")
    browser.find("#search").clear()
    browser.find("#search").send_keys("1234\n")
    assert browser.text("#count").startswith("No sample 1234 in this page")


@needs_browser
def test_pages_of_maps(shown):
    """All t-SNE maps of a layer; back and forth often: a browser has few drawing contexts, and takes the oldest away."""
    browser, truth = shown
    titles = "return views.map((v) => v.title.innerText)"
    first = browser.js(titles)
    for _ in range(5):
        browser.choose("page", "0")
        assert browser.js(titles) == ["t-SNE of logits", "t-SNE of logits, perplexity 30, seed 1", "t-SNE of logits, perplexity 5+50, seed 0",
                                      "t-SNE of logits, perplexity 5+50, seed 1"]
        browser.choose("page", "")
        assert browser.js(titles) == first
    browser.choose("page", "0")
    for view in range(4):
        assert (np.ptp(browser.picture(".map", view).reshape(-1, 3).astype(int), 1) > 60).sum() > 2000


@needs_browser
def test_keyboard(shown):
    """From the first Tab on: the controls, the maps, a sample's neighbour, selection."""
    browser, truth = shown
    from selenium.webdriver.common.keys import Keys

    def press(key: str) -> str:
        browser.actions().send_keys(key).perform()
        return browser.js("const e = document.activeElement; return e.id || e.className")

    assert press(Keys.TAB) == "skip"
    reached = [press(Keys.TAB) for _ in range(30)]
    assert {"layer", "page", "colour", "category", "kind", "fade", "search", "clear"} <= set(reached)
    assert sum("map" in name.split() for name in reached) == 2
    browser.js("views[1].div.focus()")
    press(Keys.ARROW_RIGHT)
    for key, axis, sign in ((Keys.ARROW_RIGHT, 0, 1), (Keys.ARROW_LEFT, 0, -1), (Keys.ARROW_UP, 1, 1), (Keys.ARROW_DOWN, 1, -1)):
        start = browser.js("return state.current")
        press(key)
        end = browser.js("return state.current")
        assert end == start or sign * (truth["tsne"][end] - truth["tsne"][start])[axis] > 0
    assert browser.text("#panel").startswith(f"Sample {end}")
    press(" ")
    assert "1 selected" in browser.text("#count")
    press(Keys.ESCAPE)
    assert "selected" not in browser.text("#count")
    assert not browser.find("#beside").is_displayed()  # there is one layer
    buttons = set(browser.js("return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)"))
    assert buttons == {"Lasso Select", "Box Select", "Pan", "Zoom", "Zoom in", "Zoom out", "Reset axes"}  # none that sends data away
    assert browser.js("""return [...document.querySelectorAll('img,svg.chart,.pictures .over,.map')]
        .filter((e) => !e.alt && !e.getAttribute('aria-label')).length""") == 0


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """(page, first, second): the second lacks some samples, and its maps are turned."""
    folder = tmp_path_factory.mktemp("two")
    first = judged(folder / "early.nc", samples=300, trust=True)
    second = judged(folder / "late.nc", samples=280, trust=True)
    with netCDF4.Dataset(folder / "late.nc", "a") as late, netCDF4.Dataset(folder / "early.nc", "a") as early:
        late["label"][:] = early["label"][:280]
        late["logits_tsne"][:] = early["logits_tsne"][:280].filled() @ np.array([[0, 2], [-2, 0]]) + 5
        second["prediction"] = np.where(np.arange(280) % 7 == 0, (first["prediction"][:280] + 1) % 10, first["prediction"][:280])
        late["prediction"][:] = second["prediction"]
    return report(folder / "early.nc", folder / "late.nc"), first, second


@needs_browser
def test_two_files_side_by_side(browser, two_runs):
    page, first, second = two_runs
    browser.open(page)
    titles = [h.text for h in browser.driver.find_elements("css selector", ".view h3")]
    assert titles == ["PCA of logits (early)", "PCA of logits (late)", "t-SNE of logits (early)", "t-SNE of logits (late)"]
    places = [np.array(browser.js("return views[arguments[0]].map.axes.map((a) => [...a])", view)).T for view in (2, 3)]
    np.testing.assert_allclose(*places, atol=2e-3 * np.ptp(places[0]))
    flips = np.flatnonzero(first["prediction"][:280] != second["prediction"])
    label = first["label"][:280]
    better = ((second["prediction"] == label) & (first["prediction"][:280] != label)).sum()
    assert f"{len(flips)} of 280 samples are predicted differently: {better} became right" in browser.text("#flipped-predictions")
    assert [int(row[0]) for row in Tables(page).tables["Predictions that differ"][1:]] == flips.tolist()
    browser.choose("kind", "flipped")
    assert browser.text("#count").startswith(f"{len(flips)} of 280 samples")
    i = int(flips[3])
    browser.hover(3, i)
    panel = browser.text("#panel")
    assert panel.startswith(f"Sample {i}") and "saliency (1)" in panel and "saliency (2)" in panel
    for name, run in (("early", first), ("late", second)):
        assert f"{name}: prediction\n{run['prediction'][i]}" in panel
    assert browser.complaints() == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_looks(browser, synthetic, width, dark):
    """Nothing wider than the window; text that stands out from what it lies on; each map as wide as its place."""
    browser.open(synthetic[0], width, 900, dark)
    assert browser.js("return document.documentElement.scrollWidth") == width
    contrast = browser.js("""
        const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        const rgba = (text) => { const p = text.match(/[\\d.]+/g).map(Number); return p.length > 3 && p[3] === 0 ? null : p; };
        const ground = (e) => {
          for (; e; e = e.parentElement) {
            const c = rgba(getComputedStyle(e).backgroundColor);
            if (c && (c[3] ?? 1) === 1) return c;
          }
          return [255, 255, 255];
        };
        document.querySelectorAll('details').forEach((d) => d.open = true);
        const found = [];
        for (const e of document.querySelectorAll('h1,h2,h3,h4,p,td,th,a,label,button,figcaption,caption,summary,small,dt,dd')) {
          if (!e.innerText || !e.offsetParent || e.matches('.cell')) continue;
          const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
          if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${e.tagName} ${e.className}: ${e.innerText.slice(0, 40)}`);
        }
        return found;""")
    assert contrast == []
    paper = browser.picture("header")[2, 2]
    assert (paper.mean() < 60) == dark
    view, drawn = browser.js("const v = views[1].div; return [v.clientWidth, v.querySelector('.main-svg').getBoundingClientRect().width]")
    assert drawn == pytest.approx(view, abs=2) and view > 300
    colours = browser.picture(".map", 1).reshape(-1, 3).astype(int)
    assert (np.ptp(colours, 1) > 60).sum() > 2000  # points are there


@needs_browser
@pytest.mark.parametrize("kind", [{"axes": 3, "samples": 200}, {"classes": 16, "embed": True}, {"classes": 30, "labels": False},
                                  {"embed": True, "fixed": 50}, {"samples": 30, "channels": 3, "chosen": True, "names": True}])
def test_other_files_in_the_browser(browser, tmp_path, kind):
    truth = make_result(tmp_path / "a.nc", **kind)
    browser.open(report(tmp_path / "a.nc"))
    n = len(truth["label"])
    assert browser.text("#count").startswith(f"{n} of {n} samples shown")
    browser.find("#search").send_keys("8\n")
    assert browser.text("#panel").startswith("Sample 8")
    if kind.get("chosen"):
        name = cnnscope.category_names(cnnscope.open_result(tmp_path / "a.nc"), [truth["label"][8]])[0]
        assert "file8.png" in browser.text("#panel") and f"label\n{name}" in browser.text("#panel")
        seen = Image.fromarray(browser.picture("#panel .tile")).resize((24, 20), Image.Resampling.BOX)
        own = truth["image"][list(truth["kept"]).index(8)].transpose(1, 2, 0)
        assert np.abs(np.asarray(seen).astype(int) - own).mean() < 4
    if kind.get("axes") == 3:
        assert browser.js("return views.map((v) => v.div.data[0].type)") == ["scatter3d"] * 2
        pixels = browser.picture(".map").reshape(-1, 1, 3).astype(int)
        found = np.abs(pixels - (0.85 * HUES + 0.15 * 255)).sum(2).min(0)
        assert (found < 12).sum() >= 8  # some may be hidden
        places = np.argwhere(np.ptp(browser.picture(".map").astype(int), 2) > 60)
        seen = {browser.hover_at(0, x - 1, y - 1) for y, x in places[:: max(len(places) // 10, 1)]}
        assert len(seen - {"8"}) >= 3 and all(0 <= int(i) < n for i in seen)
        i = int(browser.js("return state.current"))
        browser.frames()
        assert browser.js("const t = views[1].div.data.at(-1); return [t.x[0], t.y[0], t.z[0]]") == pytest.approx(
            cnnscope.open_result(tmp_path / "a.nc").logits_tsne.values[i].tolist(), abs=2e-3)  # the ring of the other map
    if "fixed" in kind:
        assert browser.js("return views[0].div.data.map((t) => t.x.length)") == [50, n]
        assert (np.ptp(browser.picture(".map").reshape(-1, 3).astype(int), 1) < 3).sum() - (browser.picture(".map") > 240).all(2).sum() > 200  # grey
    names = browser.text("#key").split("\n")
    assert len(names) == (10 if kind.get("classes", 10) <= 10 else 16 if kind["classes"] == 16 else len(names))
    colours = browser.picture(".map").reshape(-1, 3).astype(int)
    assert (np.ptp(colours, 1) > 40).sum() > 300
    assert browser.complaints() == [] and browser.requests() == set()


@needs_browser
def test_ten_thousand_digits(browser, demo, tmp_path, capsys):
    """Small enough to send; how long the first paint and a hover take is printed, not asserted: machines differ."""
    page = report(demo, "-o", tmp_path / "mnist.html")
    assert page.stat().st_size < 12e6
    browser.open(page)
    paint = browser.js("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    drawn = float(browser.js("return document.documentElement.dataset.ready"))
    browser.js("""window.took = [];
        addEventListener('mousemove', () => window.moved = performance.now(), true);
        new MutationObserver(() => requestAnimationFrame(() => took.push(performance.now() - moved)))
            .observe(document.getElementById('panel'), {childList: true});""")
    for i in range(0, 10000, 500):
        browser.hover(1, i, alone=False)
    took = browser.js("return took")
    assert len(took) > 10
    with capsys.disabled():
        print(f"\nreport of 10,000: {page.stat().st_size / 1e6:.1f} MB, first paint {paint:.0f} ms, maps {drawn:.0f} ms, "
              f"hover {np.median(took):.0f} ms, at most {max(took):.0f} ms")


@needs_browser
def test_sixty_thousand_points(browser, tmp_path, capsys):
    make_result(tmp_path / "a.nc", samples=60000, embed=True)
    browser.open(report(tmp_path / "a.nc"))
    start = time.monotonic()
    browser.choose("category", "3")
    assert browser.text("#count") == "6,000 of 60,000 samples shown."
    with capsys.disabled():
        print(f"\nreport of 60,000: maps {browser.js('return document.documentElement.dataset.ready')} ms, a filter {time.monotonic() - start:.1f} s")
