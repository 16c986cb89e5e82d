"""Where samples come from: one format a file. Each opens as a `vitcore.data.datasets.Dataset`; import the one you need."""
