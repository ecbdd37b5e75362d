"""Devices, processes, and the signals that stop them."""
