"""The page of `fedsim report` in a real browser without a screen: Chromium or Chrome as the system has it, driven by Playwright."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import simulate, write_labels, write_run

from fedsim.report.page.page import report
from fedsim.run.folders import RunFolder

HARD = "</script><script>alert(1)</script> é学"
SCENARIO = "seed: 0\ntask: {data: DATA}\nstrategy: {name: fedavg, server_lr: 1}\n"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants, one of two seeds, with energy, clients, labels and a graph; a run that failed; and a run of another task."""
    folder = tmp_path_factory.mktemp("page")
    runs = []
    for place, (name, seed, data) in enumerate([("plain", 0, "digits"), ("plain", 1, "digits"), (HARD, 0, "digits"), ("far", 0, "mnist")]):
        rows, records = simulate([300 + 100 * place, 500, 700, 900], 2, 10_000, 500, drop=7 if name == HARD else 0)
        records = [record | {"energy/joules": 2.5 * record["work/updates"] ** 2} for record in records]
        hit = {"round": 9.0, "seconds": 4.0, "bytes": 2e6, "updates": 18.0, "joules": 45.0, "apart": 0.1}
        known: dict[str, Any] = {"label": f"{name} seed {seed}", "variant": name, "seed": seed, "nodes": 4, "target": 0.2}
        path = write_run(folder / f"run{place}", rows, records, SCENARIO.replace("DATA", data), **known, target_reached=hit)
        write_labels(path, 4, 10, 0.5)
        np.savez(path / "graph.npz", hearer=[0, 1, 2, 3], sender=[1, 2, 3, 0], nodes=4, gap=0.5)
        runs.append(path)
    runs.append(write_run(folder / "failed", rows, records, label="failed seed 0", variant="failed", status="failed", reason="no room"))
    report([RunFolder(run) for run in runs], folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium or Chrome is installed here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser: Any, file: Path) -> Iterator[Open]:
    """Opens the page offline in a window of a size; no error may be said, nor a network asked, during the test."""
    said: list[str] = []
    contexts = []

    def opened(width: int = 1280, height: int = 900, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, offline=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
        page.on("dialog", lambda dialog: said.append("a name was run as code"))
        page.goto(file.as_uri())
        page.wait_for_selector(".curve")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def first(page: Any) -> str:
    """How the first chart's first curve is drawn."""
    drawn: str = page.locator(".curve").first.get_attribute("d")
    return drawn


def test_axis_legend_keys_and_task(show: Open) -> None:
    page = show()
    assert page.locator("h1").inner_text() == "demo" and "4 finished runs" in page.locator("#subtitle").inner_text()
    assert "failed seed 0: failed (no room, at round " in page.locator(".notice li").inner_text()
    # The axis: all curves are drawn anew, and say so
    axis = page.locator("section[aria-label=Curves]").get_by_role("radio", name="energy of the clients")
    before, label = first(page), page.locator("svg.chart").first
    axis.check(force=True)
    assert first(page) != before and "against energy of the clients" in label.get_attribute("aria-label")
    page.keyboard.press("ArrowRight")  # radio buttons: the next one
    assert "against updates merged" in label.get_attribute("aria-label")
    # The legend: in all charts
    curves, button = page.locator(".curve").count(), page.get_by_role("toolbar").get_by_role("button", name=HARD)
    assert button.get_attribute("aria-pressed") == "true"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator(".curve").count() == curves - 5  # two curves, participation, staleness, clients at work
    assert page.locator(".point").count() == 2  # of each picture of costs
    # The keyboard: a cursor, and the table of what is drawn
    label.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "plain" in page.locator(".readout").first.inner_text() and page.locator("svg.chart").first.locator(".cursor").count() > 0
    page.keyboard.press("Enter")
    names = page.locator("figure.card").first.locator("tbody th")
    names.first.wait_for()
    assert names.count() > 10 and {*names.all_inner_texts()} == {"plain"}
    # Another task
    page.get_by_role("radio", name="mnist").check(force=True)
    assert page.locator(".legend button").all_inner_texts() == ["far"]


@pytest.mark.slow
def test_sorting_and_zoom(show: Open) -> None:
    page = show()
    results = page.get_by_role("region", name="results", exact=True).first
    names = results.locator("tbody th")
    title = results.get_by_role("button", name="accuracy", exact=True)
    title.click()
    rising = names.all_inner_texts()
    title.click()
    assert names.all_inner_texts() == rising[::-1] and results.locator("[aria-sort=descending]").count() == 1
    work = page.locator("section[aria-label='Work over time']")
    chart = work.locator("svg.chart")
    before = chart.get_attribute("aria-label")
    work.get_by_role("button", name="enlarge").click()
    near = chart.get_attribute("aria-label")
    chart.focus()
    page.keyboard.press("ArrowRight")
    later = chart.get_attribute("aria-label")
    page.keyboard.press("0")
    assert len({before, near, later}) == 3 and chart.get_attribute("aria-label").endswith("from 0 s to 10 s")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(show: Open, width: int) -> None:
    page = show(width, 740)
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_light_and_dark(show: Open) -> None:
    def ground(page: Any) -> str:
        found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    light, dark = show(color_scheme="light"), show(color_scheme="dark")
    bright, dim = ground(light), ground(dark)
    assert bright != dim
    button = light.locator("#theme")  # automatic, light, dark
    button.click()
    assert ground(light) == bright
    button.click()
    assert ground(light) == dim and button.get_attribute("aria-label") == "colours: dark; change"
