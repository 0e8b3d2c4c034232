"""mstar_engine: self-evolving training of vision-language models (M-STaR, arXiv 2412.17451)."""

__version__ = "0.1.0"
