"""Experiment configs: functions that return data."""
