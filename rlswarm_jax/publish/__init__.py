"""Weights that leave the house: to a model hub, a directory or an object store, by the name that records give them."""
