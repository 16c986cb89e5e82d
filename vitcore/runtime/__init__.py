"""What runs a sealed program: reference kernels, the executable, guards and statistics."""
