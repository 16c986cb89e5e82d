"""The passes, one a file: `Program -> Program`, verified after each, numbered in the log, disabled by name."""
