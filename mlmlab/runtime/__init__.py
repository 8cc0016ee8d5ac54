"""The machine: devices and precision, processes, signals."""
