"""The differences between families of models in training: recipes, heads, collators, adapters."""
