"""Kernels of mstar_engine: sampling, tree attention, paged K/V, step rewards, parts of a decoder layer. Imports torch and triton only."""
