"""The assets, one file a stage. A body reads its inputs, calls one plain function or launches one workload.

Bodies carry no return annotation: Dagster would take `MaterializeResult` as `produces nothing`, and ours
carry a manifest.
"""
