"""Kernels of mstar_engine: sampling, tree attention, paged K/V, step rewards, what lies between them in a decoder layer.

Imports torch and triton only.
"""
