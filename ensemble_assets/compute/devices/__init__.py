"""What can compute: one small interface with a CUDA, a host-memory and a simulated implementation, and discovery."""
