"""From token Parquet to batches."""
