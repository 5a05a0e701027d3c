"""Where in a trace a hidden state was read."""

FINISH = 0
"""The position of a trace's last state, however long the trace is; other positions count generated tokens."""
