"""The optimizers: one class in one file each, see `settings.optimizers.Optimizer`. Only `low_memory`, which
they import when they are built, imports torch.
"""
