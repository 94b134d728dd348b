"""Measured latency tables, one folder a device."""
