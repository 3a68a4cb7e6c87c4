"""Runs without a server on real machines: workers that exchange models among themselves, and one that introduces them to each other."""
