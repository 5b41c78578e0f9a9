"""Files: local or at a URL, written whole or not at all, line by line, in parquet, by several processes."""
