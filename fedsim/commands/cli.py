"""The `fedsim` command."""

import faulthandler

from fedsim.commands import running

# isort: split
from fedsim.commands import making, showing

# isort: split
from fedsim.commands import deploying, flowering, trusting, watching  # in the order of the help
from fedsim.commands.words import app

__all__ = ["app", "deploying", "flowering", "main", "making", "running", "showing", "trusting", "watching"]


def main() -> None:
    """Entry point of the `fedsim` command."""
    faulthandler.enable()
    app()


if __name__ == "__main__":
    main()
