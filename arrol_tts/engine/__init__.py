"""Engines: language models that sample traces, score them and stop them early."""
