"""Model families: a file is a family, named by `config.model.module`."""
