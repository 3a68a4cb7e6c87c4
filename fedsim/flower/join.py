"""`fedsim join --app`: one machine that hosts nodes of a Flower app."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedsim.deploy.join import Machine
from fedsim.flower.app import Config
from fedsim.flower.work import prepare


@dataclass
class AppMachine(Machine):
    """`app`: a folder, or `module:name` of a ClientApp in the folder `code`; `node_config`: of all its nodes."""

    app: str = ""
    node_config: Config = field(default_factory=dict)
    role: ClassVar[str] = "run an app"

    def setup(self, scenario: dict[str, Any]) -> dict[str, Any]:
        told = super().setup(scenario) | {"prepare": prepare, "app": self.app, "node_config": self.node_config}
        del told["device"]
        return told
