"""Kernels of mstar_engine: sampling, attention over a prefix tree, paged K/V. Imports torch and triton only."""
