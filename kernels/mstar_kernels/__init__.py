"""Kernels of mstar_engine: sampling, tree attention, paged K/V, step rewards, what else a decoder layer does.

Imports torch and triton only.
"""
