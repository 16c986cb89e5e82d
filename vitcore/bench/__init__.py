"""What is said of measured times: ratios with intervals, and two files of a benchmark beside each other. Imports no torch."""
