"""Training steps: of a whole batch, of a batch in micro-batches, and of a batch spread over replicas.

Each gives the gradients and the outputs of a batch; `RobustTrainer.apply` and `RobustTrainer.record` do the rest.
"""
