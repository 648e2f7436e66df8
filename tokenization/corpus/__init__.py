"""From files of cells to token Parquet: the plan, the passes, the shards, the manifest."""
