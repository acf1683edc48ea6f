"""Search of scales by the error of each layer's output (PTQ4ViT: Yuan et al., ECCV 2022).

`settings` is the declarative part of a recipe; `run` is the procedure.
"""
