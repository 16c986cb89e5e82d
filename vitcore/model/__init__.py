"""The Vision Transformer: sizes, modules, initialisation, loss. Import the submodule you need; this one is empty."""
