"""Kernels of mstar_engine: sampling, tree attention, paged K/V, step rewards. Imports torch and triton only."""
