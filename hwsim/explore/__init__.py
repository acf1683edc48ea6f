"""Exploration: many recipes on one network, what each is worth and what it costs.

A *space* names fields of a recipe and their values (`space`), a *search* proposes points of it (`search`), a *bench*
measures one (`bench`), a *store* keeps every finished one (`records`), and a *sweep* runs them here or on a cluster
(`sweep`, `cluster`). `fronts` and `pages` say what came out.
"""
