"""Devices, the ways to them, and what is measured there."""
