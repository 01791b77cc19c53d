"""Reinforcement learning towards broadly and persistently beneficial models."""
