"""Answers for any number of pictures, as one Parquet file: `atm-export predict`.

`pictures` (what is asked) -> `answering` (what a row holds) -> `shards` (fixed numbers of pictures,
each whole or not there) -> `table` (Parquet); `run` puts them together.
"""
