"""Optimizers, schedules, weight averages, and how a model is spread over devices."""
