"""`fedsim join --app`: one machine that hosts nodes of a Flower app."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import sleep
from typing import Any, ClassVar

from fedsim.deploy import join as deploy
from fedsim.deploy.crew import Died
from fedsim.deploy.join import Machine
from fedsim.flower.app import Config
from fedsim.flower.work import prepare

PAUSE = 0.5  # seconds before a process that died is started again


@dataclass
class AppMachine(Machine):
    """`app`: a folder, or `module:name` of a ClientApp in the folder `code`. `died`: its process did before."""

    app: str = ""
    node_config: Config = field(default_factory=dict)
    died: bool = False
    role: ClassVar[str] = "run an app"

    def setup(self, scenario: dict[str, Any]) -> dict[str, Any]:
        return super().setup(scenario) | {"prepare": prepare, "app": self.app, "node_config": self.node_config, "died": self.died}


def join(machine: AppMachine, identity: Any, say: Callable[[str], None], show: Callable[[str], None]) -> str:
    """Hosts nodes until the run is over; why it ended. A ClientApp that ends its process is started again; what it was at is error 8.

    Raises FedsimError where it can't.
    """
    while True:
        try:
            return deploy.join(machine, identity, say, show)
        except Died as error:
            say(f"{error}; it is started again")
            machine.died = True
            sleep(PAUSE)
