"""Tiny workloads and the Dagster jobs that launch them, for the tests of the launchers."""
