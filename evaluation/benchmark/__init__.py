"""The tasks of ``cellglot evaluate``: jobs, baselines, records, figures."""
