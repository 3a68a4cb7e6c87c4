"""The `fedsim` command."""

import faulthandler

from fedsim.commands import deploying, running, showing, trusting
from fedsim.commands.words import app

__all__ = ["app", "deploying", "main", "running", "showing", "trusting"]


def main() -> None:
    """Entry point of the `fedsim` command."""
    faulthandler.enable()
    app()


if __name__ == "__main__":
    main()
