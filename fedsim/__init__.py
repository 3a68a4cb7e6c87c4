"""fedsim: federated and decentralized learning, simulated, deployed and compared from one scenario."""

__version__ = "0.1.0"
