"""What differs between tasks: target, model, feed, loss, baselines and judge. One folder a task."""
