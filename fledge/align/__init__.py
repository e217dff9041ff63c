"""Alignment: what preferences, rewards and advantages say, as functions on tensors and texts."""
