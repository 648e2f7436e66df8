"""What a training run is of, its checkpoints, how it is stopped and finished."""
