"""Training: data, collators, the Trainer, pretraining, fine-tuning and the demo."""
