"""The five networks, their artificial defects, losses and fitting (torch)."""
