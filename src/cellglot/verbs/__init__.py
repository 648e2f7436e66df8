"""What cellglot does, one function each, for files and for AnnData; `cellglot` and the command line call these."""
