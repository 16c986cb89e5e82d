"""Where samples come from: one format a file, and what formats share (listings, shards, downloads, pickles). Each opens as a
`vitcore.data.datasets.Dataset`; import the one you need."""
