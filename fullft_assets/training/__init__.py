"""The training loop. Imports torch: only launched processes import it.

In the order of reading:

- `finetuning`: `fine_tune` refuses what this machine cannot run, and trains a model in segments, from one
  setback to the next.
- `segment`: one segment: set up, train, choose the weights.
- `trainer`: transformers' Trainer, its arguments and the methods that differ.
- `callback`: what happens after each step: record, check, validate, save.
- `recorder`, `trackers`: the metrics of each step, their rates, and where they are copied to.
- `validation`: scores on the validation rows and on the general set.
- `guards`, `guard_actions`: rules on the metrics, and what follows when one is broken.
- `run_history`, `checkpoints`: what a run keeps in its work folder so that it can resume.
- `stored_checkpoints`, `resuming`: the checkpoints' copies in the store, and the one that a segment begins
  with.

What is trained, and how:

- `recipe`: the protocol of a task: model, rows, loss, scores.
- `feed`, `packed_rows`: the planned order of the rows, and batches collated ahead.
- `optimizers`: one class in one file each.
- `sharding`, `ranks`: several processes that share a model, and what they agree on.
- `regularization`, `distillation`: what keeps a model near the base model.
- `kernels`: liger-kernel's fused layers.
- `spot`: notices that a spot instance is taken away.

Before anything is trained:

- `measuring`: times real passes on the training machine, and measures their memory.
- `outline`: counts the memory and the operations without weights, and plans on other machines.
"""
