"""Rewards: a file is a reward, named by `config.streams.<key>.reward`."""
