"""A real MLflow server on a file of SQLite: runs that arrive there over HTTP, and what its pages show of them in a browser."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from folders import simulate, write_run, write_sweep

from fedsim.report.mlflow.store import opened
from fedsim.report.mlflow.ui import pages, served
from fedsim.report.mlflow.upload import upload

pytestmark = pytest.mark.slow  # a server and a browser take half a minute of CPU
VARIANTS = ("synchronous", "Größe_50 %", "fixed 4 s")
SCENARIO = "seed: {seed}\nstrategy: {{name: fedavg}}\ntask: {{data: digits}}\ntrack: {{tags: {{team: blue}}}}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and a sweep of three variants with four seeds each that was uploaded there."""
    root = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with opened(uri, "demo"):
        pass
    upper, names = root / "runs/demo/20261121-142530-3f9a1c", []
    for variant in VARIANTS:
        for seed in range(4):
            rows, records = simulate([300 + 20 * seed, 200], 2, 2000, 500)
            name = f"{variant.split()[0]}-seed{seed}"
            known: dict[str, Any] = {"label": f"{variant} seed {seed}", "variant": variant, "seed": seed, "data": "ab" * 32}
            names.append(write_run(upper / name, rows, records, SCENARIO.format(seed=seed), **known).name)
    write_sweep(upper, names)
    with served(uri, None) as (address, _):
        assert upload(upper, address, "demo").startswith(f"demo: 12 runs, 60 evaluations at {address}")
        yield address, upper


def test_runs_are_whole_at_a_server(server: tuple[str, Path]) -> None:
    address, upper = server
    client = mlflow.MlflowClient(address)
    parent, child = (
        client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"]) for folder in (upper, upper / "Größe_50-seed2")
    )
    experiment = parent.info.experiment_id
    assert pages(address, address) == [f"demo  {address}/#/experiments/{experiment}/runs"]
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 12 and {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert parent.data.params == {"seed": "0, 1, 2, 3"} and {name.split("/")[0] for name in parent.data.metrics} == {
        "mean",
        "mean_low",
        "mean_high",
    }
    assert child.data.tags["fedsim.variant"] == "Größe_50 %" and child.data.tags["team"] == "blue" and child.data.params["seed"] == "2"
    records = [json.loads(line) for line in (upper / "Größe_50-seed2/metrics.jsonl").read_text().splitlines()]
    for name, step in (("test/accuracy", "round"), ("x_by_second/test/accuracy", "time/seconds")):
        history = [(point.step, point.value) for point in client.get_metric_history(child.info.run_id, name)]
        assert history == [(int(record[step]), record["test/accuracy"]) for record in records]


def test_pages_show_them(server: tuple[str, Path]) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium or Chrome is installed here")
    address, upper = server
    ids = [json.loads((folder / "mlflow.json").read_text())["run_id"] for folder in (upper, upper / "Größe_50-seed2")]
    shown = pages(address, address)[0].partition("  ")[2]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        for place, texts in (
            (shown, [upper.name, "13 matching runs"]),
            (f"{shown}/{ids[0]}", ["Finished", "Child runs", "fedsim.folder"]),
            (f"{shown}/{ids[0]}/model-metrics", ["mean/clients/accuracy_mean", *(name.replace("%", "_") for name in VARIANTS)]),
            (f"{shown}/{ids[1]}", ["Größe_50 % seed 2", "fedsim.variant", "team", "time/seconds"]),
        ):
            page.goto("about:blank")
            page.goto(place)
            for text in texts:
                page.get_by_text(text).first.wait_for()
        browser.close()
