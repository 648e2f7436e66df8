"""``cellglot demo``: the whole way on a small file of real cells."""
