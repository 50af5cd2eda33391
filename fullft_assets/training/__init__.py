"""The training loop. Imports torch: only launched processes import it.

In the order of reading:

- `finetuning`: `fine_tune` refuses what this machine cannot run, and trains a model in segments, from one
  setback to the next: set up, train, choose the weights.
- `loop`: where the model is placed, the optimizer steps, and what a checkpoint contains.
- `watching`: validation, and what follows from what the guards find.
- `recorder`: the metrics of each step, their rates, and the trackers that they are copied to.
- `guards`: rules on the metrics.
- `checkpoints`: what a run keeps in its work folder so that it can resume.
- `stored_checkpoints`: the checkpoints' copies in the store, and the one that a segment begins with.

What is trained, and how:

- `recipe`: the protocol of a task: model, rows, loss, scores.
- `feed`: the planned order of the rows, and their batches.
- `optimizers`: one class in one file each.
- `ranks`: what several processes agree on.
- `regularization`: what keeps a model near the base model, distillation included.
- `kernels`: liger-kernel's fused layers.
- `spot`: notices that a spot instance is taken away.

Before anything is trained, `measuring` times real passes on the training machine and measures their memory;
and it counts the memory and the operations without weights, and plans on other machines.
"""
