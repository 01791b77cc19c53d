"""Data sources: a file is a stream, named by `config.streams.<key>.module`."""
