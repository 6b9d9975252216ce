"""What several tests share: servers, workers, kernels, terminals, and the model of a queue."""
