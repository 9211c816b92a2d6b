"""From a config to a finished run: its parts, the pure steps, the loop, and its evaluation."""
