"""What a run shows to people: figures (PNG), the terminal summary and the self-contained report.html.

Every function here reads the dictionary that `python -m nftk_jax.fit` writes as metrics.json and nothing else.
"""
