"""Recipes: configurations with a name, small TOML files."""
