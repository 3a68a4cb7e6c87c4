"""fedsim's ServerApp: a scenario of the run config, served to Flower's nodes as `fedsim serve` serves it to its own workers."""

import json
import shlex
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from time import sleep
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.base.errors import FedsimError, RunError, ScenarioError, SettingError
from fedsim.deploy.peers.introducer import without_server
from fedsim.deploy.serve import Service, beginning, unused
from fedsim.flower.client_app import app_folder
from fedsim.flower.network import GridNetwork, refuse_peers
from fedsim.report.mlflow.tracking import start_follower
from fedsim.report.screen.progress import Progress
from fedsim.report.tables import print_summary
from fedsim.run.folders import RunFolder
from fedsim.run.guard import ByHand
from fedsim.run.resume import reopen
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.scenario.loader import Loaded

DEFAULT, COMMAND = "scenario.yaml", "flwr run"


def made() -> ServerApp:
    """The app."""
    app = ServerApp()
    app.main()(main)
    return app


class GridService(Service):
    """One run over a Flower Grid."""

    def __init__(self, loaded: Loaded, folder: Path, grid: Grid, beside: str, say: Callable[[str], None]) -> None:
        """Raises SettingError for a scenario that can't be deployed."""
        self.grid, self.beside = grid, beside
        super().__init__(loaded, folder, [], None, say)

    def _network(self, listen: list[str], identity: Any) -> GridNetwork:
        job, self.carrier = self.loaded.scenario.deploy.job, "Flower"
        patience = None if job is None else float(job)
        self.over = GridNetwork(self.grid, self.store, self.door, self.beside, self._verdict, patience, self.say)
        return self.over

    def _pause(self) -> None:
        self.over.look()
        sleep(0.1)

    def await_workers(self) -> None:
        """Nobody: they are Flower's."""


def main(grid: Grid, context: Context) -> None:
    """Runs the scenario to its end. Raises FedsimError where it can't be run, RunError where it failed: Flower's run has failed, too."""
    app = app_folder()
    extra = app / f"run-config-{context.run_id}.json"
    try:
        loaded, beside = scenario(context.run_config, app, extra)
        serve(loaded, beside, grid, Path(str(context.run_config.get("runs") or "runs")))
    finally:
        extra.unlink(missing_ok=True)


def scenario(config: Mapping[str, Any], app: Path, extra: Path) -> tuple[Loaded, str]:
    """The one run that a run config means, and where in the app's folder its own modules lie. A scenario that stands there as JSON goes to
    the file `extra`. Raises FedsimError, with the key of the run config, where there is none."""
    text = str(config.get("scenario") or DEFAULT)
    try:
        settings = shlex.split(str(config.get("settings") or ""))
    except ValueError as error:
        raise FedsimError(f"run config `settings`: {error}; KEY=VALUE with spaces between them are due") from None
    if text.lstrip().startswith("{"):
        try:
            named = "name" in json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FedsimError(f"run config `scenario`: no JSON: {error}") from None
        extra.write_text(text)
        file, settings = extra, settings if named else ["name=flower", *settings]
    else:
        file = app / text
        if not file.is_file():
            near = ", ".join(sorted(one.relative_to(app).as_posix() for one in app.rglob("*.yaml"))) or "none"
            raise FedsimError(
                f"run config `scenario`: there is no file `{text}`; the app has {near}, and a path on the server may be absolute"
            )
    try:
        group = load(file, settings)
        if len(group) > 1:
            raise FedsimError(
                f"run config `scenario`: {len(group)} runs; one is due: choose with `settings`, or take `sweep` out: sweep=null"
            )
        if without_server(group[0].scenario.strategy):
            schedule = group[0].scenario.strategy.schedule
            raise refuse_peers(schedule.name if schedule.peers else group[0].scenario.strategy.name)
    except ScenarioError as error:
        for problem in error.problems:
            problem.file = "run config `scenario`" if problem.file == str(extra) else problem.file.removeprefix(f"{app}/")
        raise
    base = group[0].base
    return group[0], base.relative_to(app.resolve()).as_posix() if base.is_relative_to(app.resolve()) else "."


def serve(loaded: Loaded, beside: str, grid: Grid, root: Path) -> None:
    """The run, from an empty folder or from where one of before broke off. Raises FedsimError where it can't be started, RunError where it
    failed."""
    folder, loaded, again = beginning(root.resolve(), loaded)
    early = list[str]()
    log: Callable[[str], None] = early.append  # until there is a run that has a log

    def say(text: str) -> None:
        log(text)
        print(text, flush=True)

    if note := unused(loaded):
        say(note)
    try:
        service = GridService(loaded, folder, grid, beside, say)
        if not again:
            service.start()
        run = service.build()
    except SettingError as error:
        raise ScenarioError([loaded.problem(error)]) from None
    for note in reopen(run, folder, COMMAND) if again else []:
        say(note)
    log, info = run.log, dict[str, Any]()
    try:
        info = _execute(run, folder)
    finally:
        service.stop(info.get("status", "failed"), f"the run is over: {info.get('status')}: {info.get('reason')}")
    if info["status"] != "finished":
        raise RunError(f"the run {info['status']}: {info['reason']}; kept: {folder}")


def _execute(run: Run, folder: Path) -> dict[str, Any]:
    """run.json of the run, tracked and with its table. `flwr stop` ends it as Ctrl-C does: the next call goes on from there."""
    track = run.scenario.track
    follower = start_follower(folder, track.uri, track.experiment)
    mine = threading.current_thread() is threading.main_thread()  # else no signal comes here
    with ByHand() if mine else nullcontext() as hands, Progress() as progress:
        run.report = progress
        if hands:
            hands.guard = run.guard
        info = run.execute(folder, COMMAND)
        print_summary([RunFolder(folder)], [], progress.console)
        if follower:
            progress.console.print(f"  {follower.finish()}", soft_wrap=True, markup=False)
    return info
