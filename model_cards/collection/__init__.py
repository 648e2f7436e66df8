"""The collection: recipes of the models that ship with the package, and the command that builds them again.

Each folder here that has a ``collection.json`` is a model. ``python -m cellglot.model_cards.collection NAME --data
FOLDER`` builds it from public cells.
"""
