"""Who decodes and when: threads and worker processes, the memory that they share, and batches ahead. `loader` chooses."""
