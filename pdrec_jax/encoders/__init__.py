"""Sequential encoders on packed rows, and their training with the plugins."""
