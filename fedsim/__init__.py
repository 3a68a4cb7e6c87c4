"""fedsim: federated and decentralized learning, simulated from one scenario."""

import os

# Without it MKL picks kernels by the alignment of its arguments, and a row's bits would depend on where in a chunk it stands.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"
