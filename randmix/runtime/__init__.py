"""The process and its surroundings: settings, peers, signals, locks, disk, terminal."""
