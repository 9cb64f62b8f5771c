"""Training: the recipe, the loop, checkpoints."""

from seglearn.training.checkpoint import load_model
from seglearn.training.loop import train
from seglearn.training.recipe import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "load_model", "load_recipe", "recipe_names", "train"]
