"""Inference Endpoints: the code that serves a published model over HTTP, and what copies it into a repository.

`handler.py` and the ``endpoint_*`` files are Hub files: they run in a repository, without cellglot.
"""
