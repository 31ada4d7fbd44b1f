"""The parametric head: linear blend skinning as FLAME's, the built-in template, loaders, the fit to a picture."""
