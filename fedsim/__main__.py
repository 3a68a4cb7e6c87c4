"""`python -m fedsim` is the `fedsim` command: the working folder's files don't come before other modules, nor before a run's own copies."""

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

from fedsim.commands.cli import main

if __name__ == "__main__":
    main()
