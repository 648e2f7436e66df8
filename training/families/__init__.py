"""What differs between families of models in training: recipes, heads, collators, adapters."""
